"""Counts characters of code: each area of the project has a limit, and so have all
together.

Raising one takes a line in docs/decisions.md. What counts are the tokens, so that neither
blanks nor line breaks pay; comments and docstrings do not count. A file's limit is on all
of its lines; how wide they are is ruff's business (pyproject.toml).
"""

from __future__ import annotations

import ast
import io
import sys
import tokenize
from pathlib import Path

ROOT = Path(__file__).parent.parent
AREAS = {("model_delivery",): 735_000, ("loadtests",): 21_000, ("flows", "tasks"): 67_000}
LIMIT = 825_000
FILE_LIMIT = 400
IDLE = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT}


def files(*folders: str) -> list[Path]:
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


def characters(text: str) -> int:
    """Of the code in a file's ``text``."""
    prose = {
        (node.body[0].lineno, node.body[0].col_offset)
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and ast.get_docstring(node, clean=False) is not None
    }
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    return sum(len(token.string) for token in tokens if token.type not in IDLE and token.start not in prose)


def main() -> int:
    counts = {area: sum(characters(path.read_text(encoding="utf-8")) for path in files(*area)) for area in AREAS}
    limits = {" + ".join(area): (counts[area], limit) for area, limit in AREAS.items()}
    limits["all together"] = sum(counts.values()), LIMIT
    for name, (count, limit) in limits.items():
        print(f"{name:16} {count:7,} of {limit:7,} characters of code")
    wrong = [f"{name} is above its limit" for name, (count, limit) in limits.items() if count > limit]
    for path in files("model_delivery", "flows", "tasks", "loadtests", "scripts", "tests"):
        lines = len(path.read_text(encoding="utf-8").splitlines())
        if lines > FILE_LIMIT:
            wrong.append(f"{path.relative_to(ROOT)} has {lines} lines, a file's limit is {FILE_LIMIT}")
    for text in wrong:
        print(f"TOO MUCH: {text}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
