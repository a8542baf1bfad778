"""Counts lines: each area of the project has a limit (raising one takes a line in docs/decisions.md), and so has each file.

An area's limit is on lines of code: blank lines, comments and docstrings are not counted. A file's limit is on all of its lines.
"""

from __future__ import annotations

import ast
import io
import sys
import tokenize
from pathlib import Path

ROOT = Path(__file__).parent.parent
AREAS = {("model_delivery",): 10000, ("loadtests",): 1500, ("flows", "tasks"): 1500}
FILE_LIMIT = 400


def lines(folder: str) -> dict[Path, int]:
    """Of every Python file below ``folder``."""
    return {path: len(path.read_text(encoding="utf-8").splitlines()) for path in sorted((ROOT / folder).rglob("*.py"))}


def code(path: Path) -> int:
    """The lines of a file that hold code."""
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    documented = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    prose = set[int]()
    for node in documented:
        if ast.get_docstring(node, clean=False) is not None:
            prose.update(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    idle = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    told = set[int]()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in idle:
            told.update(range(token.start[0], token.end[0] + 1))
    return len(told - prose)


def main() -> int:
    too_many = []
    for folders, limit in AREAS.items():
        total = sum(code(path) for folder in folders for path in lines(folder))
        name = " + ".join(folders)
        print(f"{name:24} {total:5} of {limit} lines of code")
        if total > limit:
            too_many.append(f"{name} has {total} lines of code, its limit is {limit}")
    for folder in ("model_delivery", "flows", "tasks", "loadtests", "scripts", "tests"):
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
