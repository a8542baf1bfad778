"""Resolve: a branch becomes a commit with its files, an engine its content. Nothing is
touched yet.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatch
from typing import Any

from model_delivery.base import BadInput, Finding, Progress, Refused, Retryable, Trouble, report
from model_delivery.measure.words import printable
from model_delivery.models.listing import is_weights
from model_delivery.models.sources.http import NotGiven
from model_delivery.models.sources.spec import ModelSpec, RemoteModel
from model_delivery.places.host.engines import load_engine
from model_delivery.run.book import Book
from model_delivery.run.frozen import Frozen
from model_delivery.spec import DeliverySpec
from model_delivery.values import Engine, Lock, Snapshot, means, option
from model_delivery.values.resources import difference

TOKENIZERS = ("tokenizer*", "tekken*.json", "*.tiktoken", "*.model", "*.model.v*", "vocab.*")
ELSEWHERE = ("--tokenizer", "--skip-tokenizer-init")


def resolve_lock(spec: DeliverySpec, book: Book | None = None) -> Lock:
    """The lock of ``spec`` as of now; what cannot be asked is as ``book`` last knew it.

    Raises what the source raises: Retryable when a hub is overloaded, Refused when it
    says no.
    """
    own = upstream(spec)
    if spec.lock is not None:
        return spec.lock.model_copy(update={"engine": own["engine"]()})
    last = last_snapshot(spec.model, book.releases().values()) if book else None
    snapshot, engine = resolve_model(spec.model, last), own["engine"]()
    try:
        return Lock(snapshot=snapshot, engine=engine, image=own["image"]())
    except Retryable as away:
        if book is None or (image := _last_image(book, spec.target.image)) is None:
            raise
        what, kept = f"whether {spec.target.image} has moved is unknown", f"it stays at {image} of the last record"
        unknown = Finding("image.unknown", what, away.findings[0].what, f"{kept}; run again to ask again")
        report(Progress("resolve", str(unknown)))
        return Lock(snapshot=snapshot, engine=engine, image=image)


def _last_image(book: Book, named: str | None) -> str | None:
    """What the image of this very name was, of the candidate or of what serves."""
    record, known = book.record, book.releases()
    for name in (record.candidate.release if record.candidate else None, record.serving):
        frozen = known.get(name or "")
        if frozen and frozen.spec and frozen.spec["target"].get("image") == named:
            return frozen.lock.image
    return None


def upstream(spec: DeliverySpec) -> dict[str, Callable[[], Any]]:
    """How each part of the lock of ``spec`` is asked of its own source: no fallback
    speaks for it, and no record. What a spec has locked moves nowhere.
    """
    if (lock := spec.lock) is not None:
        return {
            "snapshot": lambda: lock.snapshot,
            "engine": lambda: _same_engine(spec, lock.engine),
            "image": lambda: lock.image,
        }
    return {
        "snapshot": spec.model.resolve,
        "engine": lambda: _engine(spec),
        "image": lambda: _pinned(spec),
    }


def _engine(spec: DeliverySpec) -> Engine | None:
    """That of this machine. What it needs to sleep, and its other loaders, are a part of
    it only where the spec asks for them: it is started otherwise. Refused where it cannot
    sleep, BadInput where nothing can race.
    """
    name, sleep, race = spec.target.engine, spec.rollout.sleeps, spec.serving.loader == "race"
    if name is None:
        return None
    engine = load_engine(name)
    if race and not engine.loaders:
        what, why = "serving.loader race is refused", f"engine {name} names no loader beside its own"
        fix = "leave serving.loader out; an engine that has others names them in [loaders] of its engine.toml"
        raise BadInput(Finding("engine.no-loaders", what, why, fix))
    if sleep and engine.sleep is None:
        what, why = "rollout.standby_mode sleep is refused", f"engine {name} cannot be put to sleep"
        fix = "use standby_mode: run, or off; an engine that can says how in [sleep] of its engine.toml"
        raise Refused(Finding("engine.cannot-sleep", what, why, fix))
    asked = {"sleep": engine.sleep if sleep else None, "loaders": engine.loaders if race else None}
    return engine.model_copy(update=asked)


def _same_engine(spec: DeliverySpec, locked: Engine | None) -> Engine | None:
    """The engine of this machine, never the file's: what it starts is not for a file to
    say. Refused where it is another one.
    """
    name = spec.target.engine
    if name is None or locked is None:
        return None
    engine = _engine(spec)
    ours, theirs = (each.model_dump(mode="json", exclude={"folder"}) for each in (engine, locked) if each)
    if differs := [*difference(theirs, ours)]:
        what, why = f"engine {name} is not the one that is locked", printable("; ".join(differs[:5]), 600)
        raise Refused(
            Finding("engine.other-lock", what, why, "use the version that locked it, or deliver without lock")
        )
    return engine


def must_have_tokenizer(snapshot: Snapshot, args: Sequence[str]) -> None:
    """Refused where an engine would only die of it."""
    names = [file.path.rpartition("/")[2] for file in snapshot.files]
    if any(fnmatch(name, pattern) for name in names for pattern in TOKENIZERS):
        return
    if not any(means(option(arg), ELSEWHERE) for arg in args):
        why = f"none of its {len(names)} files is one ({', '.join(TOKENIZERS)})"
        fix = "correct model.include and model.exclude, or name one with --tokenizer in serving.args"
        raise Refused(Finding("source.no-tokenizer", "the model has no tokenizer", why, fix))


def _pinned(spec: DeliverySpec) -> str | None:
    if not spec.target.image:
        return None
    from model_delivery.places.registry import pin

    return pin(spec.target.image, spec.serving.pod.image_pull_secrets)


def resolve_model(model: ModelSpec, last: Snapshot | None = None) -> Snapshot:
    """What the source says.

    When it says nothing and there is a fallback: ``last`` (the snapshot of the last
    record), else the fallback's list, which is taken only where ``model.pins`` holds the
    sha256 of each weights file: nobody else has stated them.
    """
    try:
        return model.resolve()
    except (Retryable, NotGiven) as trouble:
        others = model.fallbacks()
        if not others:
            raise
        if last is None:
            return _first_of(others, trouble)
        what = trouble.findings[0].what
        report(Progress("resolve", f"{what}: the model stays at commit {last.commit} of the last record"))
        return last


def last_snapshot(model: ModelSpec, releases: Iterable[Frozen]) -> Snapshot | None:
    """The newest snapshot that this very model was resolved to, from its own source; None
    when there is none.
    """
    same = [f for f in releases if _place(f.model) == _place(model) and f.lock.snapshot.source == model.source]
    return max(same, key=lambda frozen: frozen.created).lock.snapshot if same else None


def _place(model: ModelSpec) -> object:
    return model.model_dump(include={"source", "repo", "revision", "include", "exclude", "pins"})


def _first_of(others: Iterable[RemoteModel], trouble: Trouble) -> Snapshot:
    findings = list(trouble.findings)
    for other in others:
        try:
            snapshot = other.resolve()
        except Trouble as bad:
            findings += bad.findings
            continue
        unknown = [f.path for f in snapshot.files if is_weights(f.path) and f.path not in other.pins]
        if not unknown:
            note = f"{trouble.findings[0].what}: the model is taken from {other.name}, by the sums of model.pins"
            report(Progress("resolve", note))
            return snapshot
        names = ", ".join(unknown[:5]) + (" …" if len(unknown) > 5 else "")
        what, why = f"the weights of {other.name} are refused", f"nobody but {other.name} states the sha256 of {names}"
        fix = "pin their sums in model.pins, or wait for the first source"
        findings.append(Finding("source.no-hash", what, why, fix))
    raise type(trouble)(*findings)
