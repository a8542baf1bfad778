"""docs/findings.md, made from the code: every code of a finding, what it means and what
to do.

``scripts/findings.py`` writes it; ``--check`` fails when it is out of date. A code is a
literal of the form ``area.words-with-dashes``; ``x.code`` hands on one that stands
elsewhere.
"""

from __future__ import annotations

import ast
import re
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from model_delivery.values.metrics import FIGURES

ROOT = Path(__file__).parent.parent
FILE = ROOT / "docs" / "findings.md"
FIELD = re.compile(r"\{[^{}]*\}")
CODE = re.compile(r"([a-z0-9]+)\.[a-z0-9]+(-[a-z0-9]+)*")
AREAS = {
    *("adopt", "claim", "cli", "cluster", "engine", "fetch", "gate", "gateway", "host", "image", "kserve", "lease"),
    *("load", "place", "pod", "prefect", "record", "release", "rollout", "secret", "smoke", "source", "spec"),
    *("step", "store", "t9k", "target"),
}
CALLS = {
    "Finding": ("code", "what", "why", "fix"),
    "Sign": ("code", "pattern", "what", "fix"),
    "Reason": ("gate", "name", "passed", "what", "figure", "bound", "code"),
}
OPTIONAL = {"Reason"}
HEAD = """# Findings

Whatever goes wrong is told as findings: what happened, why, what to do, and a code that stays the same.
For people it stands at the end of the first line: `WHAT: WHY [CODE]`. With `--json`, a command that fails prints
`{"error": {"code", "what", "why", "fix", "evidence"}, "exit_code", "others"}`. The message of a Prefect run's
state carries it too. What an older version wrote into a record has the code `unknown.older-version`.

This page is made from the code by `scripts/findings.py`. `{…}` stands for what differs from case to case.
"""


@dataclass(frozen=True)
class Entry:
    code: str
    what: str
    fix: str


class Scan(ast.NodeVisitor):
    """The entries of one file, and what is wrong with its codes."""

    def __init__(self, where: str, text: str) -> None:
        self.where = where
        self.entries: list[Entry] = []
        self.wrong: list[str] = []
        tree = ast.parse(text)
        functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
        returns = {f.name: f.body[-1] for f in functions}
        self.values = {name: end.value for name, end in returns.items() if isinstance(end, ast.Return) and end.value}
        self.visit(tree)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        outer, self.values = self.values, dict(self.values)
        self.generic_visit(node)
        self.values = outer

    def visit_Assign(self, node: ast.Assign) -> None:
        self.generic_visit(node)
        for target in node.targets:
            if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                self.values |= dict(zip(map(ast.unparse, target.elts), node.value.elts, strict=False))
            elif isinstance(target, ast.Name):
                self.values[target.id] = node.value

    def visit_Call(self, node: ast.Call) -> None:
        self.generic_visit(node)
        called = node.func.id if isinstance(node.func, ast.Name) else ""
        if called not in CALLS:
            return
        given = dict(zip(CALLS[called], node.args, strict=False)) | {k.arg: k.value for k in node.keywords if k.arg}
        code = given.get("code")
        if isinstance(code, ast.Attribute) and code.attr == "code":
            return
        if isinstance(code, ast.Constant) and isinstance(code.value, str):
            self.add(node, code.value, given)
        elif code is not None or called not in OPTIONAL:
            self.report(node, "the code of a finding is no literal")

    def add(self, node: ast.Call, code: str, given: dict[str, ast.expr]) -> None:
        form = CODE.fullmatch(code)
        if code == "todo":
            self.report(node, "a finding has no code yet")
        elif form is None or form[1] not in AREAS:
            self.report(node, f"{code!r} is not of the form area.words-with-dashes, or of an area that is not known")
        else:
            what = given.get("what") or given.get("text")
            fix = "read the report" if form[1] == "gate" else self.words(given.get("fix"))
            self.entries.append(Entry(code, self.words(what), fix))

    def report(self, node: ast.AST, text: str) -> None:
        self.wrong.append(f"{self.where}:{getattr(node, 'lineno', 0)}: {text}")

    def words(self, node: ast.AST | None, seen: frozenset[str] = frozenset()) -> str:
        """A text as a template; ``seen``: the names that it is the value of."""
        match node:
            case None:
                return ""
            case ast.Constant():
                return re.sub(r"\\(\d)", "{…}", str(node.value))
            case ast.JoinedStr():
                return "".join(self.words(part, seen) for part in node.values)
            case ast.FormattedValue():
                return self.words(node.value, seen)
            case ast.BinOp(op=ast.Add()):
                return self.words(node.left, seen) + self.words(node.right, seen)
            case ast.IfExp():
                return " / ".join(filter(None, (self.words(node.body, seen), self.words(node.orelse, seen))))
            case ast.Name(id=name) | ast.Call(func=ast.Name(id=name)) if name in self.values.keys() - seen:
                text = self.words(self.values[name], seen | {name})
                if not FIELD.fullmatch(text):
                    return text
        names = [part for inner in ast.walk(node) if (part := _name(inner))]
        return f"{{{names[0] if names else '…'}}}"


def _name(node: ast.AST) -> str:
    """What to call the value of an expression."""
    match node:
        case ast.Name():
            return node.id
        case ast.Attribute() if not isinstance(node.value, ast.Constant):
            return node.attr
        case ast.Subscript(slice=ast.Constant() as key):
            return str(key.value)
    return ""


def gates() -> Iterator[Entry]:
    """A bound that is broken: a code for each figure of the metrics' table."""
    for figure in FIGURES.values():
        if figure.metric.bounded:
            side = "over" if figure.metric.worse == "above" else "under"
            yield Entry(figure.code, f"{figure.title} is {side} its bound, or was not measured", "read the report")


def page(entries: set[Entry]) -> str:
    areas: dict[str, dict[str, list[Entry]]] = defaultdict(lambda: defaultdict(list))
    for entry in sorted(entries, key=lambda e: (e.code, e.what, e.fix)):
        areas[entry.code.partition(".")[0]][entry.code].append(entry)
    lines = [HEAD]
    for area, codes in areas.items():
        lines += [f"## {area}", "", "| code | what | what to do |", "|---|---|---|"]
        for code, same in codes.items():
            cells = [
                "<br>".join(dict.fromkeys(filter(None, texts)))
                for texts in ([e.what for e in same], [e.fix for e in same])
            ]
            lines.append(f"| `{code}` | {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
        lines.append("")
    return "\n".join(lines)


def main() -> int:
    folders = ("model_delivery", "flows", "tasks", "loadtests")
    files = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    scans = [Scan(str(path.relative_to(ROOT)), path.read_text(encoding="utf-8")) for path in files]
    wrong = [text for scan in scans for text in scan.wrong]
    text = page({entry for scan in scans for entry in scan.entries} | set(gates()))
    if "--check" not in sys.argv[1:]:
        FILE.write_text(text, encoding="utf-8")
    elif not FILE.exists() or FILE.read_text(encoding="utf-8") != text:
        wrong.append("docs/findings.md is out of date: run .venv/bin/python scripts/findings.py")
    print(*wrong, sep="\n" if wrong else "")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
