"""What others have put into an object of ours, beside what we hold: read from
``managedFields``, by name; pure.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from model_delivery.places.cluster.objects import MANAGER, Object, managers

Path = tuple[str, ...]
AUTOSCALER, REPLICAS = ("kube-controller-manager", "scale"), ("f:spec", "f:replicas")
MAPS = ("f:annotations", "f:labels")
HELD_BY_NAME = (  # what is in them was put there one by one
    "f:spec",
    "f:template",
    "f:metadata",
    "f:predictor",
    *MAPS,
    "f:containers",
    "f:initContainers",
    "f:volumes",
    "f:env",
    "f:volumeMounts",
    "f:ports",
)
BOOKS = (  # what controllers and tools note for themselves: not told
    "deployment.kubernetes.io/",
    "kubectl.kubernetes.io/last-applied-configuration",
    "endpoints.kubernetes.io/",
    "internal.serving.kserve.io/",
)
NOTES = {  # annotations and labels, by how they begin
    "kubectl.kubernetes.io/restartedAt": "`kubectl rollout restart` was asked for",
    "kubernetes.io/change-cause": "a note of who changed it",
    "autoscaling.": "an autoscaler's note",
    "argocd.argoproj.io/": "Argo CD keeps its books there",
    "kustomize.toolkit.fluxcd.io/": "Flux keeps its books there",
    "helm.toolkit.fluxcd.io/": "Flux keeps its books there",
    "meta.helm.sh/": "Helm keeps its books there",
    "field.cattle.io/": "Rancher keeps its books there",
}
INJECTED = {  # by the domain of their annotations: what their containers and volumes are called
    "istio.io": ("istio-", "workload-", "credential-socket"),
    "linkerd.io": ("linkerd-",),
    "vault.hashicorp.com": ("vault-", "home-init", "home-sidecar"),
    "consul.hashicorp.com": ("consul-",),
    "dapr.io": ("daprd", "dapr-"),
    "opentelemetry.io": ("otc-", "opentelemetry-", "otel-"),
    "kuma.io": ("kuma-",),
}


@dataclass(frozen=True)
class Addition:
    """``harmless``: why it is; empty where nobody knows."""

    manager: str
    path: Path
    harmless: str


def additions(live: Object) -> tuple[Addition, ...]:
    """Status, and what tools note for themselves, are none."""
    ours, notes = held(live), {*_notes(live)}
    return tuple(
        Addition(entry["manager"], path, _harmless(entry, path, notes))
        for entry in _others(live)
        for path in _beside(_content(entry), ours)
        if not path[-1].removeprefix("f:").startswith(BOOKS)
    )


def told(live: Object) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Lines for people: what is known to be harmless, and the rest."""
    lines: dict[tuple[str, str], list[str]] = {}
    for one in additions(live):
        lines.setdefault((one.manager, one.harmless), []).append(written(one.path))
    said = {key: f"{key[0]} added {', '.join(paths)}" for key, paths in lines.items()}
    harmless = tuple(f"{text} (harmless: {key[1]})" for key, text in said.items() if key[1])
    return harmless, tuple(text for key, text in said.items() if not key[1])


def is_applied(entry: Object, manager: str) -> bool:
    return bool(entry["manager"] == manager and entry["operation"] == "Apply")


def held(live: Object) -> Object:
    """The fields that are ours."""
    ours: Object = {}
    for entry in managers(live):
        if _is_ours(entry):
            _unite(ours, entry.get("fieldsV1") or {})
    return ours


def yielded(body: Object, live: Object | None) -> Object:
    """``body`` without the replicas, where an autoscaler sets them."""
    if not any(_scales(entry) for entry in (managers(live) if live else ())):
        return body
    return {**body, "spec": {key: value for key, value in body["spec"].items() if key != "replicas"}}


def taken(live: Object, manager: str) -> list[Object]:
    """Managed fields by which what others added is ours, so that our next apply, which
    does not say it, removes it. What is harmless stays theirs.
    """
    entries = copy.deepcopy(managers(live))
    ours = next(entry for entry in entries if is_applied(entry, manager))
    for path in {one.path for one in additions(live) if not one.harmless}:
        for entry in entries:
            if not _is_ours(entry) and (branch := _cut(entry.get("fieldsV1") or {}, path)) is not None:
                _unite(ours["fieldsV1"], _branch(path, branch))
    return [entry for entry in entries if entry.get("fieldsV1")]


def written(path: Iterable[str]) -> str:
    """As people write it: ``spec.template.spec.containers[proxy].env[HTTP_PROXY]``."""
    text = ""
    for step in path:
        kind, _, name = step.partition(":")
        if kind == "k":
            known = json.loads(name)
            name = str(known["name"]) if "name" in known else ",".join(f"{key}={known[key]}" for key in known)
        text += f".{name}" if kind == "f" and "." not in name else f"[{name}]"
    return text.removeprefix(".")


def _is_ours(entry: Object) -> bool:
    return str(entry["manager"]).partition("/")[0] == MANAGER


def _others(live: Object) -> Iterator[Object]:
    for entry in managers(live):
        if not _is_ours(entry) and entry.get("subresource") in (None, "scale"):
            yield entry


def _scales(entry: Object) -> bool:
    fields = entry.get("fieldsV1") or {}
    return (entry["manager"], entry.get("subresource")) == AUTOSCALER and "f:replicas" in fields.get("f:spec", {})


def _content(entry: Object) -> Object:
    """Without what only the server and controllers keep there."""
    fields = {key: value for key, value in (entry.get("fieldsV1") or {}).items() if key != "f:status"}
    meta = fields.pop("f:metadata", {})
    kept = {key: meta[key] for key in MAPS if key in meta}
    return fields | ({"f:metadata": kept} if kept else {})


def _beside(theirs: Mapping[str, Any], ours: Mapping[str, Any], path: Path = ()) -> Iterator[Path]:
    """The paths in ``theirs`` that ``ours`` lacks, each as short as it was added."""
    for key, below in theirs.items():
        if key == ".":
            continue
        if key in ours or (key in HELD_BY_NAME and below):
            yield from _beside(below, ours.get(key, {}), (*path, key))
        else:
            yield (*path, key)


def _harmless(entry: Object, path: Path, notes: Collection[str]) -> str:
    *above, last = path
    name = last.removeprefix("f:")
    if path == REPLICAS and _scales(entry):
        return "an autoscaler sets them"
    if above and above[-1] in MAPS:
        known = (why for start, why in NOTES.items() if name.startswith(start))
        return next(known, "") or _injector(name, INJECTED)
    if last.startswith("k:"):
        named = str(json.loads(last[2:]).get("name", ""))
        own = (domain for domain, names in INJECTED.items() if named.startswith(names))
        return next((why for domain in own for note in notes if (why := _injector(note, (domain,)))), "")
    return ""


def _injector(note: str, domains: Iterable[str]) -> str:
    owner = note.partition("/")[0]
    return next((f"injected by {one}" for one in domains if owner == one or owner.endswith(f".{one}")), "")


def _notes(thing: Any) -> Iterator[str]:
    """The names of all annotations and labels, its pods' too."""
    if isinstance(thing, Mapping):
        for key, value in thing.items():
            if key in ("annotations", "labels"):
                yield from value or ()
            elif key != "managedFields":
                yield from _notes(value)


def _cut(fields: Object, path: Path) -> Any:
    """What was at ``path``, which is gone then; None: nothing."""
    first, *rest = path
    if not rest or first not in fields:
        return fields.pop(first, None)
    found = _cut(fields[first], tuple(rest))
    if not fields[first].keys() - {"."}:
        del fields[first]
    return found


def _branch(path: Path, below: Any) -> Object:
    for step in reversed(path):
        below = {step: below}
    return dict(below)


def _unite(into: Object, more: Mapping[str, Any]) -> None:
    for key, below in more.items():
        _unite(into.setdefault(key, {}), below)
