"""The table of metrics in docs/loadtest.md, made from model_delivery/values/metrics.py:
writes it; tests/unit/test_docs.py compares.
"""

from __future__ import annotations

import re
from pathlib import Path

from model_delivery.values.metrics import METRICS

FILE = Path(__file__).parent.parent / "docs" / "loadtest.md"
PLACE = re.compile(r"<!-- metrics -->.*?\n\n(?=Percentiles)", re.DOTALL)


def table() -> str:
    lines = ["<!-- metrics -->", "| key | | unit | |", "|---|---|---|---|"]
    lines += [f"| `{m.key}` | {m.title} | {m.unit or 'share'} | {m.meaning} |" for m in METRICS]
    return "\n".join(lines) + "\n\n"


def written(text: str) -> str:
    return PLACE.sub(lambda _: table(), text)


if __name__ == "__main__":
    FILE.write_text(written(FILE.read_text(encoding="utf-8")), encoding="utf-8")
