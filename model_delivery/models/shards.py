"""One set of weights: every ``*.index.json`` against the files, as vLLM reads them."""

from __future__ import annotations

import posixpath
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Container, Iterable, Iterator, Sequence
from pathlib import Path

from model_delivery.base import Finding, Progress, Refused, report, short
from model_delivery.models.contents import EXCLUDE_IT, fault_in, parsed
from model_delivery.models.safetensors import tensors_in
from model_delivery.values import File

INDEX = ".index.json"
SAFETENSORS = ".safetensors"
MAIN = f"model{SAFETENSORS}{INDEX}"
NOT_WHOLE = "the source is not whole: use another revision or repository, or copy the model again"
NUMBERED = re.compile(r"(.+)-(\d+)-of-(\d+)(\.[^/]+)")


def one_set(files: Sequence[File], listed: Container[str], read: Callable[[File], bytes]) -> tuple[File, ...]:
    """``files`` without the second set of weights that lies beside an index; told.

    Refused where an index, or the numbers in their names, say that one is absent.
    ``listed``: what the source has; ``read`` gives a small file's bytes.
    """
    names = {file.path: file for file in files}
    indexes = {file.path: _shards(file, read) for file in files if file.path.endswith(INDEX)}
    beside, left = defaultdict[str, list[str]](list), set[str]()
    for index, shards in indexes.items():
        if any(shard.endswith(SAFETENSORS) for shard in shards):
            beside[posixpath.dirname(index)].append(index)
    for folder, here in beside.items():
        main = next((index for index in here if posixpath.basename(index) == MAIN), here[0] if len(here) == 1 else None)
        if main is not None:
            left |= set(_others(folder, main, indexes[main], names))
    left |= set(_unindexed(name for name in names if posixpath.dirname(name) not in beside))
    faults = [*_absent({index: shards for index, shards in indexes.items() if index not in left}, names, listed)]
    faults += _gaps([name for name in names if posixpath.dirname(name) not in beside and name not in left])
    if faults:
        raise Refused(*faults)
    if left:
        report(Progress("resolve", f"left out, a second set of weights: {', '.join(sorted(left))}"))
    return tuple(file for file in files if file.path not in left)


def _shards(index: File, read: Callable[[File], bytes]) -> set[str]:
    """The files that it names; none where it is an index of something else."""
    held = parsed(read(index), index.path)
    if isinstance(held, Finding):
        raise Refused(held)
    named = held.get("weight_map") if isinstance(held, dict) else None
    if isinstance(named, dict) and named and all(isinstance(shard, str) for shard in named.values()):
        return {posixpath.join(posixpath.dirname(index.path), shard) for shard in named.values()}
    if not index.path.endswith((f"{SAFETENSORS}{INDEX}", f".bin{INDEX}")):
        return set()
    why = "it has no weight_map of names to files"
    raise Refused(Finding("source.broken-config", f"{index.path} is no index of weights", why, EXCLUDE_IT))


def faults_in(folder: Path, names: Collection[str], allow: Sequence[str]) -> list[Finding]:
    """What is wrong in a model's files, ``names`` below ``folder``, all of them there."""
    faults = [fault for name in names if (fault := fault_in(folder / name, name, names, allow))]
    return faults or [*unheld(folder, names)]


def unheld(folder: Path, names: Collection[str]) -> Iterator[Finding]:
    """The tensors that an index names, and its shards (of ``names``, below ``folder``)
    do not hold.
    """
    for index in (name for name in names if name.endswith(INDEX)):
        held = parsed((folder / index).read_bytes(), index)
        named = held.get("weight_map") if isinstance(held, dict) else None
        shards = defaultdict[str, set[str]](set)
        for tensor, shard in named.items() if isinstance(named, dict) else ():
            shards[posixpath.join(posixpath.dirname(index), str(shard))].add(tensor)
        for shard, tensors in sorted(shards.items()):
            if (
                shard.endswith(SAFETENSORS)
                and shard in names
                and (gone := sorted(tensors - tensors_in(folder / shard)))
            ):
                what = f"{index} names {len(gone)} tensors of {shard} that are not in it"
                yield Finding(
                    "source.no-tensor", what, ", ".join(short(repr(name), 100) for name in gone[:5]), NOT_WHOLE
                )


def _others(folder: str, main: str, shards: set[str], names: Iterable[str]) -> Iterator[str]:
    """Of the same folder, what an engine that goes by ``main`` does not read."""
    sets = {_set(shard) for shard in shards}
    for name in names:
        if posixpath.dirname(name) != folder or name == main or name in shards:
            continue
        if name.endswith(f"{SAFETENSORS}{INDEX}") or (name.endswith(SAFETENSORS) and _set(name) not in sets):
            yield name


def _unindexed(names: Iterable[str]) -> Iterator[str]:
    """Where no index speaks an engine loads one file, or else one numbered set: the
    others.
    """
    sets = defaultdict[str, dict[str, list[str]]](dict)
    for name in sorted(name for name in names if name.endswith(SAFETENSORS)):
        sets[NUMBERED.sub(r"\1\4", name)].setdefault(_set(name), []).append(name)
    for whole, there in sets.items():
        main = whole if whole in there else next(iter(there))
        yield from (name for each, shards in there.items() if each != main for name in shards)


def _set(name: str) -> str:
    """What all shards of one set have in common."""
    return NUMBERED.sub(r"\1-*-of-\3\4", name)


def _absent(indexes: dict[str, set[str]], names: Collection[str], listed: Container[str]) -> Iterator[Finding]:
    """Pickles that are not wanted need not be there."""
    for index, shards in indexes.items():
        own = index.endswith(f"{SAFETENSORS}{INDEX}")
        used = own or any(shard.endswith(SAFETENSORS) or shard in names for shard in shards)
        if gone := sorted(shards.difference(names)) if used else []:
            what = f"{index} names {len(gone)} of {len(shards)} files that are not there"
            why = ", ".join(short(repr(name), 100) for name in gone[:5])
            unwanted = "they are there and not wanted: correct model.include and model.exclude"
            fix = unwanted if all(name in listed for name in gone) else NOT_WHOLE
            yield Finding("source.no-shard", what, why, fix)


def _gaps(names: Iterable[str]) -> Iterator[Finding]:
    """Where no index speaks, the names do: 2 of 3 are not all."""
    numbered = [found for name in names if name.endswith(SAFETENSORS) and (found := NUMBERED.fullmatch(name))]
    there = Counter(_set(found[0]) for found in numbered)
    for shards, total in {_set(found[0]): int(found[3]) for found in numbered}.items():
        if there[shards] < total:
            what = f"{there[shards]} of {total} files {shards} are there"
            yield Finding("source.no-shard", what, "their names say how many there are", NOT_WHOLE)
