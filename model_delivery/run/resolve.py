"""Resolve: a branch becomes a commit with its files, an engine its content. Nothing is touched yet."""

from __future__ import annotations

from collections.abc import Iterable

from model_delivery.base.findings import Finding, Retryable, Trouble
from model_delivery.base.progress import Progress, report
from model_delivery.base.secrets import read_secret
from model_delivery.models.sources import open_source
from model_delivery.models.sources.http import NotGiven
from model_delivery.models.sources.listing import is_weights
from model_delivery.models.sources.model import LocalModel, Model
from model_delivery.models.sources.origin import fallbacks, token_of
from model_delivery.places.host.engines import load_engine
from model_delivery.places.registry import pin
from model_delivery.run.frozen import Frozen
from model_delivery.spec import DeliverySpec
from model_delivery.values.release import Lock
from model_delivery.values.snapshot import Snapshot


def resolve_lock(spec: DeliverySpec, last: Snapshot | None = None) -> Lock:
    """The lock of ``spec`` as of now. Raises what the source raises: Retryable when a hub is overloaded, Refused when it says no."""
    named = spec.target
    engine = load_engine(named.engine) if named.engine is not None else None
    image = pin(named.image, spec.serving.pod.image_pull_secrets) if named.image is not None else None
    return Lock(snapshot=resolve_model(spec.model, last), engine=engine, image=image)


def resolve_model(model: Model, last: Snapshot | None = None) -> Snapshot:
    """What ``model.source`` says. When it says nothing and there is a fallback: ``last`` (the snapshot of the last record), else the fallback's list.

    A fallback's list is taken only where ``model.pins`` holds the sha256 of each weights file: nobody else has stated them.
    """
    try:
        return _resolve(model)
    except (Retryable, NotGiven) as trouble:
        if isinstance(model, LocalModel) or not model.fallback:
            raise
        said = trouble.findings[0].what
        if last is not None:
            report(Progress("resolve", f"{said}: the model stays at commit {last.commit} of the last record"))
            return last
        return _first_of(fallbacks(model), trouble)


def last_snapshot(model: Model, releases: Iterable[Frozen]) -> Snapshot | None:
    """The newest snapshot that this very model was resolved to, from its own source; None when there is none."""
    same = [f for f in releases if _place(f.model) == _place(model) and f.lock.snapshot.source == model.source]
    return max(same, key=lambda frozen: frozen.created).lock.snapshot if same else None


def _place(model: Model) -> object:
    return model.model_dump(include={"source", "repo", "revision", "include", "exclude", "pins"})


def _first_of(others: Iterable[Model], trouble: Trouble) -> Snapshot:
    findings = list(trouble.findings)
    for other in others:
        name = open_source(other).name
        try:
            snapshot = _resolve(other)
        except Trouble as bad:
            findings += bad.findings
            continue
        unknown = [f.path for f in snapshot.files if is_weights(f.path) and f.path not in getattr(other, "pins", {})]
        if not unknown:
            report(
                Progress(
                    "resolve", f"{trouble.findings[0].what}: the model is taken from {name}, by the sums of model.pins"
                )
            )
            return snapshot
        why = f"nobody but {name} states the sha256 of {', '.join(unknown[:5])}{' …' if len(unknown) > 5 else ''}"
        findings.append(
            Finding(
                "todo",
                f"the weights of {name} are refused",
                why,
                "pin their sums in model.pins, or wait for the first source",
            )
        )
    raise type(trouble)(*findings)


def _resolve(model: Model) -> Snapshot:
    token = token_of(model)
    return open_source(model).resolve(None if token is None else read_secret(token))
