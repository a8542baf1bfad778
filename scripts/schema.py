"""The JSON Schemas of a spec and of a report: ``scripts/schema.py`` writes them under
docs/, ``--check`` fails when one is out of date.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from pydantic import BaseModel

from model_delivery.measure.report import Report
from model_delivery.spec import DeliverySpec

DOCS = Path(__file__).parent.parent / "docs"
SCHEMAS: dict[str, type[BaseModel]] = {"spec.schema.json": DeliverySpec, "report.schema.json": Report}


def schema(model: type[BaseModel]) -> str:
    return json.dumps(model.model_json_schema(), indent=2, ensure_ascii=False) + "\n"


def main() -> int:
    stale = [
        name
        for name, model in SCHEMAS.items()
        if not (DOCS / name).exists() or (DOCS / name).read_text("utf-8") != schema(model)
    ]
    if "--check" not in sys.argv[1:]:
        for name in stale:
            (DOCS / name).write_text(schema(SCHEMAS[name]), encoding="utf-8")
    elif stale:
        print(f"out of date: {', '.join(stale)} under docs/: run .venv/bin/python scripts/schema.py")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
