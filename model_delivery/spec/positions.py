"""YAML with positions, from files that nobody vouches for: bounded in size, nodes and
depth; no tags, no loops, one document.
"""

from pathlib import Path
from typing import Any

import yaml

from model_delivery.base import BadInput, Finding

Key = str | int
Marks = dict[tuple[Key, ...], tuple[int, int]]
MAX_BYTES, MAX_NODES, MAX_DEPTH = 1 << 20, 10_000, 40


def read_yaml(path: Path) -> tuple[Any, Marks]:
    """The content of ``path`` and the line and column (from 1) of each of its values.

    BadInput says what is wrong, and where.
    """
    text = _text(path)
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark else str(path)
        what, why = f"{where}: not valid YAML", f"{error.problem or error.context}"
        raise BadInput(Finding("spec.not-yaml", what, why, "correct the YAML there")) from None
    except RecursionError:
        why = f"more than {MAX_DEPTH} levels"
        raise BadInput(Finding("spec.too-large", f"{path}: too much", why, "write it plainly")) from None
    except yaml.YAMLError as error:
        what, why = f"{path}: not valid YAML", str(error).splitlines()[0]
        raise BadInput(Finding("spec.not-yaml", what, why, "write it as UTF-8 text")) from None
    if node is None:
        why = "a spec has at least apiVersion, name, model and target"
        raise BadInput(Finding("spec.empty", f"{path} is empty", why, "start from deliveries/smollm2.yaml"))
    reader = _Reader(path)
    return reader.value(node, (), ()), reader.marks


def _text(path: Path) -> str:
    fix = "name a YAML file, such as deliveries/smollm2.yaml"
    try:
        if path.is_dir():
            raise BadInput(Finding("spec.no-file", f"{path} is a folder", "a spec is a file", fix))
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
        if len(raw) > MAX_BYTES:
            raise BadInput(
                Finding("spec.too-large", f"{path} is too large", f"a spec has at most {MAX_BYTES} bytes", fix)
            )
    except FileNotFoundError:
        raise BadInput(
            Finding("spec.no-file", f"{path} does not exist", f"looked for from {Path.cwd()}", fix)
        ) from None
    except OSError as error:
        why = error.strerror or type(error).__name__
        raise BadInput(Finding("spec.not-readable", f"{path} cannot be read", why, fix)) from error
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadInput(
            Finding("spec.not-text", f"{path} is not text", f"byte {error.start} is not UTF-8", fix)
        ) from None
    if "\0" in text:
        raise BadInput(Finding("spec.not-text", f"{path} is not text", "it holds NUL bytes", fix))
    return text


class _Reader:
    def __init__(self, path: Path) -> None:
        self.path, self.marks, self.count = path, Marks(), 0

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
        try:
            return yaml.SafeLoader("").construct_object(node)
        except (ValueError, yaml.YAMLError) as error:
            raise self.fail(node, "not a value", str(error), "put it in quotes") from None

    def mapping(self, node: yaml.MappingNode, at: tuple[Key, ...], inside: tuple[int, ...]) -> dict[str, Any]:
        fields: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag.endswith(":merge"):
                raise self.fail(key_node, "a field's name is plain text", "this is none", "write the fields out")
            key = key_node.value
            if key in fields:
                raise self.fail(key_node, f"{key} is there twice", "only one of them could count", "remove one")
            self.marks[(*at, key)] = _position(key_node)
            fields[key] = self.value(value_node, (*at, key), inside)
        return fields


def _position(node: yaml.Node) -> tuple[int, int]:
    return node.start_mark.line + 1, node.start_mark.column + 1


_PLAIN = ("map", "seq", "str", "int", "float", "bool", "null", "timestamp")
