"""YAML with positions, from files that nobody vouches for: bounded in size, nodes and
depth; no tags, no loops, one document.
"""

from __future__ import annotations

import errno
import re
from pathlib import Path
from typing import Any

import yaml

from model_delivery.base import BadInput, Finding, read_file

Key = str | int
MAX_BYTES, MAX_NODES, MAX_DEPTH = 1 << 20, 10_000, 40


class Marks(dict[tuple[Key, ...], tuple[int, int]]):
    """The line and column (from 1) of each value of a ``file``, by its location."""

    def __init__(self, file: str = "") -> None:
        self.file = file

    def where(self, location: tuple[Key, ...]) -> tuple[tuple[int, int], str]:
        """Position and prefix of the deepest part of ``location`` that the file has."""
        for depth in range(len(location), -1, -1):
            if mark := self.get(location[:depth]):
                return mark, f"{self.file}:{mark[0]}:{mark[1]}: "
        return (0, 0), f"{self.file}: " if self.file else ""


def read_yaml(path: Path) -> tuple[Any, Marks]:
    """The content of ``path``, and where each of its values stands.

    BadInput says what is wrong, and where.
    """
    text = _text(path)
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark else str(path)
        why = f"{error.problem or error.context}"
        fault = Finding("spec.not-yaml", f"{where}: not valid YAML", why, "correct the YAML there")
    except RecursionError:
        fault = Finding("spec.too-large", f"{path}: too much", f"more than {MAX_DEPTH} levels", "write it plainly")
    except yaml.YAMLError as error:
        why = str(error).splitlines()[0]
        fault = Finding("spec.not-yaml", f"{path}: not valid YAML", why, "write it as UTF-8 text")
    else:
        if node is not None:
            reader = _Reader(path)
            return reader.value(node, (), ()), reader.marks
        why = "a spec has at least apiVersion, name, model and target"
        fault = Finding("spec.empty", f"{path} is empty", why, "start from deliveries/smollm2.yaml")
    raise BadInput(fault)


def _text(path: Path) -> str:
    fix = "name a YAML file, such as deliveries/smollm2.yaml"
    try:
        text = read_file(path, MAX_BYTES, links=True).decode("utf-8-sig")
    except IsADirectoryError:
        fault = Finding("spec.no-file", f"{path} is a folder", "a spec is a file", fix)
    except FileNotFoundError:
        fault = Finding("spec.no-file", f"{path} does not exist", f"looked for from {Path.cwd()}", fix)
    except OSError as error:
        if error.errno == errno.EFBIG:
            why = f"a spec has at most {MAX_BYTES} bytes"
            raise BadInput(Finding("spec.too-large", f"{path} is too large", why, fix)) from None
        why = error.strerror or type(error).__name__
        fault = Finding("spec.not-readable", f"{path} cannot be read", why, fix)
    except UnicodeDecodeError as error:
        fault = Finding("spec.not-text", f"{path} is not text", f"byte {error.start} is not UTF-8", fix)
    else:
        if "\0" in text:
            fault = Finding("spec.not-text", f"{path} is not text", "it holds NUL bytes", fix)
        else:
            return text
    raise BadInput(fault)


class _Reader:
    def __init__(self, path: Path) -> None:
        self.path, self.marks, self.count = path, Marks(str(path)), 0

    def fail(self, node: yaml.Node, what: str, why: str, fix: str) -> BadInput:
        line, column = _position(node)
        return BadInput(Finding("spec.not-plain", f"{self.path}:{line}:{column}: {what}", why, fix))

    def value(self, node: yaml.Node, at: tuple[Key, ...], above: tuple[int, ...]) -> Any:
        self.count += 1
        if self.count > MAX_NODES or len(above) > MAX_DEPTH:
            why = f"more than {MAX_NODES} values or {MAX_DEPTH} levels, aliases counted where they are used"
            raise self.fail(node, "too much", why, "write it plainly")
        if id(node) in above:
            raise self.fail(node, "an alias that contains itself", "it would never end", "write the value out")
        if not node.tag.startswith("tag:yaml.org,2002:") or node.tag.rpartition(":")[2] not in _PLAIN:
            raise self.fail(node, f"the tag {node.tag} is refused", "a spec is plain data", "remove the tag")
        self.marks.setdefault(at, _position(node))
        inside = (*above, id(node))
        if isinstance(node, yaml.SequenceNode):
            return [self.value(item, (*at, n), inside) for n, item in enumerate(node.value)]
        if isinstance(node, yaml.MappingNode):
            return self.mapping(node, at, inside)
        self.text(node, at)
        kind = node.tag.rpartition(":")[2]
        if kind in NUMBERS and not NUMBERS[kind].fullmatch(node.value):
            what, why = f"{node.value:.40} is no plain number", "YAML 1.1 reads it as octal, sexagesimal or the like"
            raise self.fail(node, what, why, "write a decimal number, or put text in quotes")
        try:
            return yaml.SafeLoader("").construct_object(node)
        except (ValueError, yaml.YAMLError) as error:
            raise self.fail(node, "not a value", str(error), "put it in quotes") from None

    def text(self, node: yaml.Node, at: tuple[Key, ...]) -> str:
        """A scalar's: NUL and half of a surrogate pair stand in no name and no path."""
        text = str(node.value)
        if any(character == "\0" or "\ud800" <= character <= "\udfff" for character in text):
            raise self.fail(
                node,
                f"{'.'.join(map(str, at))}: not text",
                "it holds a NUL, or half of a character",
                "correct the escape there",
            )
        return text

    def mapping(self, node: yaml.MappingNode, at: tuple[Key, ...], inside: tuple[int, ...]) -> dict[str, Any]:
        fields: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag.endswith(":merge"):
                raise self.fail(key_node, "a field's name is plain text", "this is none", "write the fields out")
            key = self.text(key_node, at)
            if key in fields:
                raise self.fail(key_node, f"{key} is there twice", "only one of them could count", "remove one")
            self.marks[(*at, key)] = _position(key_node)
            fields[key] = self.value(value_node, (*at, key), inside)
        return fields


def _position(node: yaml.Node) -> tuple[int, int]:
    return node.start_mark.line + 1, node.start_mark.column + 1


NUMBERS = {
    "int": re.compile(r"[-+]?(0|[1-9][0-9]{0,17})"),
    "float": re.compile(r"[-+]?[0-9]{0,18}\.[0-9]{0,18}([eE][-+][0-9]{1,2})?"),
}
_PLAIN = ("map", "seq", "str", "int", "float", "bool", "null", "timestamp")
