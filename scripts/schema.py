"""The JSON Schema of a spec: ``scripts/schema.py`` writes docs/spec.schema.json, ``--check`` fails when that file is out of date."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from delivery.spec import DeliverySpec

FILE = Path(__file__).parent.parent / "docs" / "spec.schema.json"


def schema() -> str:
    return json.dumps(DeliverySpec.model_json_schema(), indent=2, ensure_ascii=False) + "\n"


def main() -> int:
    if "--check" not in sys.argv[1:]:
        FILE.write_text(schema(), encoding="utf-8")
    elif not FILE.exists() or FILE.read_text(encoding="utf-8") != schema():
        print("docs/spec.schema.json is not the schema of DeliverySpec: run .venv/bin/python scripts/schema.py")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
