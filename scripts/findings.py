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
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from model_delivery.values.metrics import FIGURES

ROOT = Path(__file__).parent.parent
FILE = ROOT / "docs" / "findings.md"
READABLE = re.compile(r"(?!(?:str|map|self|error|shlex)$)[a-z][a-z0-9_]+")
FIELD = re.compile(r"\{[^{}]*\}")
CODE = re.compile(r"([a-z0-9]+)\.[a-z0-9]+(-[a-z0-9]+)*")
AREAS = {
    *("adopt", "claim", "cli", "cluster", "compare", "engine", "fetch", "gate", "gateway", "host", "image", "kserve"),
    *("lease", "load", "place", "pod", "prefect", "record", "release", "rollout", "secret", "smoke", "source", "spec"),
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

This page is made from the code by `scripts/findings.py`: a row for each cause of a code. `{…}` stands for what
differs from case to case.

| exit code | when | such as |
|---|---|---|
| 0 | done | |
| 1 | failed on its way, or for what may pass by itself | `source.unreachable`, `engine.*`, `load.silent` |
| 2 | the spec or an argument is wrong | `spec.*`, `cli.*`, `source.wrong-name`, a DIR that cannot be made |
| 3 | refused before anything was touched | `source.not-found`, `secret.*`, `host.no-room`, `host.no-state-folder` |
| 4 | a gate said no; what served before serves on | `gate.*` |
| 5 | interrupted; running again goes on | `cli.interrupted` |
"""


@dataclass(frozen=True)
class Entry:
    code: str
    what: str
    fix: str


class Scan(ast.NodeVisitor):
    """The entries of one file, and what is wrong with its codes."""

    def __init__(self, where: str, text: str, constants: Mapping[str, ast.expr] | None = None) -> None:
        self.where = where
        self.entries: list[Entry] = []
        self.wrong: list[str] = []
        tree = ast.parse(text)
        self.functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
        returns = {name: function.body[-1] for name, function in self.functions.items()}
        self.values = {**(constants or {})}
        self.values |= {name: end.value for name, end in returns.items() if isinstance(end, ast.Return) and end.value}
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
        args = [part for arg in node.args for part in self.spread(arg)]
        given = dict(zip(CALLS[called], args, strict=False)) | {k.arg: k.value for k in node.keywords if k.arg}
        code = given.get("code")
        if isinstance(code, ast.Attribute) and code.attr == "code":
            return
        if isinstance(code, ast.Constant) and isinstance(code.value, str):
            self.add(node, code.value, given)
        elif code is not None or called not in OPTIONAL:
            self.report(node, "the code of a finding is no literal")

    def spread(self, arg: ast.expr) -> list[ast.expr]:
        """``*f(…)``: the texts that the function returns for these arguments, where that
        is a tuple.
        """
        match arg:
            case ast.Starred(value=ast.Call(func=ast.Name(id=name), args=given)) if name in self.functions:
                function, outer = self.functions[name], self.values
                self.values = outer | dict(zip((one.arg for one in function.args.args), given, strict=False))
                for line in function.body:
                    if isinstance(line, ast.Assign) and isinstance(line.targets[0], ast.Name):
                        self.values[line.targets[0].id] = line.value
                end = function.body[-1]
                parts = end.value.elts if isinstance(end, ast.Return) and isinstance(end.value, ast.Tuple) else []
                texts: list[ast.expr] = [ast.Constant(self.words(part)) for part in parts]
                self.values = outer
                return texts or [arg]
        return [arg]

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
        return f"{{{next(filter(READABLE.fullmatch, _names(node)), '…')}}}"


def _names(node: ast.AST) -> Iterator[str]:
    """What the value of an expression may be called: after what it is made from, never
    after the function that makes it.
    """
    match node:
        case ast.Name():
            yield node.id
        case ast.Attribute():
            yield node.attr
        case ast.Subscript(slice=ast.Constant(value=str(key))):
            yield key
        case ast.Call(func=ast.Attribute(value=made_from)):
            for part in (made_from, *node.args):
                yield from _names(part)
        case ast.Call():
            for part in node.args:
                yield from _names(part)
        case _:
            for part in ast.iter_child_nodes(node):
                yield from _names(part)


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
            for at, entry in enumerate(same):
                cells = (f"`{code}`" if at == 0 else "", *(_cell(text) for text in (entry.what, entry.fix)))
                lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def _cell(text: str) -> str:
    return " ".join(text.replace("|", r"\|").replace("{…}{…}", "{…}").replace("{…}{…}", "{…}").split())


def main() -> int:
    folders = ("model_delivery", "flows", "tasks", "loadtests")
    files = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    texts = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in files}
    constants = {
        target.id: node.value
        for text in texts.values()
        for node in ast.parse(text).body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name) and target.id.isupper() and isinstance(node.value, ast.Constant | ast.JoinedStr)
    }
    scans = [Scan(where, text, constants) for where, text in texts.items()]
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
