"""Counts lines: each area of the project has a limit (raising one takes a line in docs/decisions.md), and so has each file."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
AREAS = {("delivery",): 6000, ("loadtests",): 1500, ("cli", "flows", "tasks"): 1500}
FILE_LIMIT = 400


def lines(folder: str) -> dict[Path, int]:
    """Of every Python file below ``folder``."""
    return {path: len(path.read_text(encoding="utf-8").splitlines()) for path in sorted((ROOT / folder).rglob("*.py"))}


def main() -> int:
    too_many = []
    for folders, limit in AREAS.items():
        total = sum(sum(lines(folder).values()) for folder in folders)
        name = " + ".join(folders)
        print(f"{name:24} {total:5} of {limit} lines")
        if total > limit:
            too_many.append(f"{name} has {total} lines, its limit is {limit}")
    for folder in ("cli", "flows", "tasks", "delivery", "loadtests", "scripts", "tests"):
        too_many += [
            f"{path.relative_to(ROOT)} has {count} lines, a file's limit is {FILE_LIMIT}"
            for path, count in lines(folder).items()
            if count > FILE_LIMIT
        ]
    for text in too_many:
        print(f"TOO MANY LINES: {text}")
    return 1 if too_many else 0


if __name__ == "__main__":
    sys.exit(main())
