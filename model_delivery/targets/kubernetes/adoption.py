"""What somebody made by hand, read from its object: what every target's reading has in
common.
"""

from __future__ import annotations

import json
import posixpath
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby, pairwise
from typing import Any

from model_delivery.base import Finding, KubeSecret, Object, Refused
from model_delivery.targets.kubernetes.release import API_KEY, claim_name
from model_delivery.targets.protocol import Asked, Get
from model_delivery.values import ENGINES, Observed, Ref, Replicas, difference, is_model_name
from model_delivery.values.plain_secrets import masked, plain_secrets, spoken_secrets

PARAMETER = re.compile(r"\{\{\s*\.(\w+)\s*\}\}")
NAMES = ("--served-model-name", "--model_name")
MODEL = ("--model", "--model_dir", "--model_id")
ENGINE_PORT = ("--port", "--http_port")
REFERENCE, SHELLS = re.compile(r"\$\((\w+)\)"), ("sh", "bash", "dash", "ash")
SHELL_REFERENCE, SHELL_OPTION = re.compile(r"\$\{?(\w+)\}?"), re.compile(r"-[a-z]*c")
COMMENT = re.compile(r"(?:^|(?<=\s))#.*", re.MULTILINE)
DEFAULTS = (
    "dnsPolicy",
    "restartPolicy",
    "schedulerName",
    "imagePullPolicy",
    "terminationMessagePath",
    "terminationMessagePolicy",
)
NOT_KEPT = ("kubectl.kubernetes.io/last-applied-configuration", "deployment.kubernetes.io/revision")
OURS = ("model-delivery/", "app.kubernetes.io/")


@dataclass(frozen=True)
class Found:
    """What serves by hand: the kind's own ``spec``, the engine's container and words, its
    claim and folder there. ``origin`` (how its pods are known, at least) and ``beside``
    are kept: in the payload's origin, and in the payload.
    """

    spec: Object
    container: Object
    words: tuple[str, ...]
    claim: str
    folder: str
    replicas: int
    origin: Object
    beside: Object = field(default_factory=dict)

    def port(self, default: int) -> int:
        """What the engine is told; the container's ports are only what somebody noted."""
        said = value_of(self.words, ENGINE_PORT)
        return int(said) if said.isdigit() else noted_port(self.container, default)


def noted_port(container: Object, default: int) -> int:
    ports = container.get("ports") or ()
    return int(ports[0]["containerPort"]) if ports else default


def kept_metadata(live: Observed) -> Object:
    """Labels and annotations of its owner's: where it is made anew, they come back
    (KServe's mode is one).
    """
    meta = live.resource.spec["metadata"]
    labels = {key: value for key, value in (meta.get("labels") or {}).items() if not key.startswith(OURS)}
    notes = {key: value for key, value in (meta.get("annotations") or {}).items() if key not in NOT_KEPT}
    return {"labels": labels} | ({"annotations": notes} if notes else {})


def differences(found: Found, made: Found) -> Iterator[str]:
    """The engine's words and environment by their own names, of the rest every field."""
    now, then = ([shlex.join(flag) for flag in _flags(read.words)] for read in (found, made))
    gone, new = [flag for flag in now if flag not in then], [flag for flag in then if flag not in now]
    if gone or new:
        yield f"arguments: {' '.join(gone) or 'none'} → {' '.join(new) or 'none'}"
    if (found.claim, found.folder) != (made.claim, made.folder):
        yield f"weights: {found.claim}/{found.folder} → {made.claim}/{made.folder}"
    has, gets = _variables(found.container), _variables(made.container)
    for name in sorted({*has, *gets}):
        if has.get(name) != gets.get(name):
            yield f"env.{name}: {has.get(name, 'none')} → {gets.get(name, 'none')}"
    yield from difference(_settings(found.container), _settings(made.container), "engine")
    yield from difference(_without_containers(found.spec), _without_containers(made.spec))


def _variables(container: Object) -> dict[str, str]:
    """Each with its value, or where that comes from."""
    said = {one["name"]: _source(one) for one in container.get("env") or ()}
    for one in container.get("envFrom") or ():
        kind, ref = next((key, value) for key, value in one.items() if isinstance(value, Mapping))
        said[f"{one.get('prefix', '')}*"] = f"every key of {_kind(kind)} {ref.get('name')}"
    return said


def _source(variable: Object) -> str:
    given = variable.get("valueFrom")
    if not given:
        return json.dumps(variable.get("value", ""))
    ((kind, ref),) = given.items()
    name = f" of {_kind(kind)} {ref['name']}" if "name" in ref else ""
    return f"{ref.get('key') or ref.get('fieldPath') or ref.get('resource')}{name}"


def _kind(source: str) -> str:
    """``configMapKeyRef``, ``configMapRef``: a ConfigMap."""
    return source[:1].upper() + source[1:].removesuffix("Ref").removesuffix("Key")


def _settings(container: Object) -> Object:
    return _without(container, ("name", "command", "args", "env", "envFrom"))


def _without_containers(spec: Any) -> Any:
    """And without what is told already, and labels."""
    if isinstance(spec, Mapping):
        left = _without(spec, ("containers", "metadata", "selector", "replicas", "minReplicas"))
        return {key: _without_containers(value) for key, value in left.items()}
    return spec


def _without(given: Mapping[str, Any], names: tuple[str, ...]) -> Object:
    """And without what the API server adds."""
    return {key: value for key, value in given.items() if key not in (*names, *DEFAULTS)}


def controller(seen: Observed) -> str:
    """The kind and name of what made the object; empty: nothing did."""
    owners = seen.resource.spec["metadata"].get("ownerReferences") or ()
    return next((f"{owner['kind']} {owner['name']}" for owner in owners if owner.get("controller")), "")


def live_object(ref: Ref, delivery: str, get: Get) -> Observed:
    """What is to be adopted. Refused where it is not there, or is another's."""
    live = get(ref)
    if live is None:
        why = "nothing of that name is in the namespace"
        fix = f"name it with --from; see: kubectl get {ref.kind.name.lower()}s"
        raise Refused(Finding("adopt.not-there", f"there is no {ref} to adopt", why, fix))
    if above := controller(live):
        why = "what is changed in it is put back by that one"
        raise Refused(Finding("adopt.made-by-controller", f"{ref} is made by {above}", why, f"adopt {above}"))
    if (owner := live.resource.delivery) not in ("", delivery):
        why, fix = f"it belongs to the delivery {owner}", f"use the spec of {owner}"
        raise Refused(Finding("adopt.delivered-already", f"{ref} cannot be adopted", why, fix))
    return live


def unlike(asked: Asked, found: Found) -> Iterator[Finding]:
    """What a difference would make a lie of: where the weights are, and what clients
    send.
    """
    claim, serving = claim_name(asked.name, asked.storage), asked.serving
    if found.claim != claim:
        yield Finding(
            "adopt.another-claim",
            "the spec names another claim",
            f"the engine reads from {found.claim}, the spec says {claim}",
            f"set storage.claim to {found.claim}",
        )
    env = found.container.get("env") or ()
    key = next(((entry.get("valueFrom") or {}).get("secretKeyRef") for entry in env if entry["name"] == API_KEY), None)
    wanted = serving.api_key.kube.model_dump() if isinstance(serving.api_key, KubeSecret) else None
    has, says = ("{name}/{key}".format_map(named) if named else "none" for named in (key, wanted))
    if has != says:
        why = f"the engine has {has}, the spec says {says}"
        setting = "set serving.api_key to {{kube: {{name: {name}, key: {key}}}}}"
        fix = setting.format_map(key) if key else "leave serving.api_key out"
        yield Finding("adopt.another-api-key", "the spec names another API key", why, fix)
    names = _values(found.words, NAMES) or [model_of(found.words)]
    served = ", ".join(names)
    if not all(map(is_model_name, names)):
        yield Finding(
            "adopt.no-name",
            "the spec cannot name the model as it is served",
            f"clients call it {masked(served)}: an engine that is given no name takes its model's path",
            "give the engine a name with --served-model-name (this restarts it), then adopt",
        )
    elif {*names} != {*serving.model_names}:
        yield Finding(
            "adopt.another-model",
            "the spec names another model",
            f"it is served as {masked(served)}, the spec says {', '.join(serving.model_names)}",
            f"set serving.model_names to [{masked(served)}]",
        )
    yield from _replicas(found.replicas, serving.replicas)


def _replicas(now: int, wanted: Replicas) -> Iterator[Finding]:
    """The next `up` would make them what the spec says."""
    if not now:
        why = "it runs no pod, so that it can be neither asked nor compared"
        fix = "start it (replicas, serving.kserve.io/stop, T9k's console), then adopt"
        yield Finding("adopt.stopped", "it is stopped", why, fix)
    elif now != wanted.min:
        why = f"it has {now}, and serving.replicas.min is {wanted.min}: the next `up` would change that"
        fix = f"set serving.replicas to {{min: {now}, max: {max(now, wanted.max)}}}"
        yield Finding("adopt.another-count", "the spec wants another number of replicas", why, fix)


def kept_secrets(found: Found, metadata: Object) -> Iterator[Finding]:
    """Whatever is kept, and told, holds none."""
    engine = f"containers[{found.container.get('name', 'engine')}]"
    held = [*plain_secrets(found.spec), *plain_secrets(found.container, engine), *plain_secrets(metadata, "metadata")]
    for name, where in dict([*spoken_secrets(found.words, engine), *held]).items():
        yield Finding(
            "adopt.plain-secret",
            f"{name} holds a secret in plain text",
            f"in {where}: an adopted release is kept as it is, and what is kept holds no secret",
            "put it into a Secret and name that (this restarts the engine), then adopt",
        )


def taken_name(route: Ref, delivery: str, seen: Observed) -> Iterator[Finding]:
    """The route takes the delivery's name: what has that name must be free to take."""
    owner = controller(seen)
    if owner or seen.resource.delivery not in ("", delivery):
        yield Finding(
            "adopt.name-taken",
            f"{route} is there already",
            f"it belongs to {f'the {owner.split()[0]}' if owner else seen.resource.delivery}",
            "give the delivery another name: its address is called by it",
        )


def refusal(ref: Ref, why: str, fix: str) -> Refused:
    """Of an object that is of a form which cannot go on as it is."""
    return Refused(Finding("adopt.form", f"{ref} cannot be adopted", why, fix))


def engine_of(containers: Sequence[Object]) -> tuple[Object, tuple[str, ...]]:
    """The container that serves, and the words that start it; those of a shell's line are
    taken apart.
    """
    spoken = [(container, _words(container)) for container in containers]
    serving = ((found, words) for found, words in spoken if found.get("name") in ENGINES or model_of(words))
    return next(serving, spoken[0])


def _words(container: Object) -> tuple[str, ...]:
    """With the values of variables that stand in them; of a shell's text the command that
    loads a model.
    """
    known = {one["name"]: str(one["value"]) for one in container.get("env") or () if one.get("value") is not None}
    given = (*(container.get("command") or ()), *(container.get("args") or ()))
    words = [_with(known, REFERENCE, str(word)) for word in given]
    if words and words[0].rpartition("/")[2] in SHELLS:
        text = next((text for option, text in pairwise(words) if SHELL_OPTION.fullmatch(option)), "")
        spoken = _commands(_with(known, SHELL_REFERENCE, text.replace("\\\n", " ")))
        words = next((command for command in spoken if model_of(command)), spoken[0]) if text else words
    return tuple(words)


def _with(known: Mapping[str, str], reference: re.Pattern[str], text: str) -> str:
    return reference.sub(lambda match: known.get(match[1], match[0]), text)


def _commands(text: str) -> list[list[str]]:
    """The words of each command in a shell's text; where its quotes do not end, as they
    stand.
    """
    reader = shlex.shlex(COMMENT.sub("", text), posix=True, punctuation_chars=";&|\n")
    reader.whitespace_split, reader.commenters, reader.whitespace = True, "", " \t\r"
    try:
        words = list(reader)
    except ValueError:
        words = text.split()
    commands = [list(group) for is_end, group in groupby(words, lambda word: set(word) <= set(";&|\n")) if not is_end]
    return commands or [[]]


def _flags(words: Sequence[str]) -> list[list[str]]:
    """Each flag with its values, however it was written: ``--flag value`` or
    ``--flag=value``; a word that is no flag's begins one of its own.
    """
    flags: list[list[str]] = []
    taking = False
    for word in words:
        if not taking or word.startswith("-"):
            flags.append(word.split("=", 1) if word.startswith("-") else [word])
            taking = "=" not in word
        else:
            flags[-1].append(word)
    return flags


def _values(words: Sequence[str], names: tuple[str, ...]) -> list[str]:
    return [value for name, *values in _flags(words) if name in names for value in values]


def value_of(words: Sequence[str], names: tuple[str, ...]) -> str:
    """Empty where it is not said."""
    return next(iter(_values(words, names)), "")


def model_of(words: Sequence[str]) -> str:
    """What the words load: by a flag, or behind ``vllm serve``."""
    return value_of(words, MODEL) or (words[words.index("serve") + 1] if "serve" in words[:-1] else "")


def filled(words: Sequence[str], parameters: Mapping[str, str]) -> tuple[str, ...]:
    """Words with their Go templates filled in."""
    return tuple(PARAMETER.sub(lambda match: str(parameters.get(match[1], "")), word) for word in words)


def on_a_claim(ref: Ref, pod: Object, container: Object, model: str) -> tuple[str, str]:
    """The claim that holds the folder ``model``, and the folder as seen from the claim's
    root.
    """
    claims = {volume["name"]: volume.get("persistentVolumeClaim") for volume in pod.get("volumes") or ()}
    mounts = [
        (len(mount["mountPath"]), claims.get(mount["name"]), f"{mount.get('subPath', '')}/{inside}")
        for mount in container.get("volumeMounts") or ()
        if (inside := relative(model, mount["mountPath"])) is not None
    ]
    _, claim, folder = max(mounts, key=lambda mount: mount[0], default=(0, None, ""))
    if not claim:
        raise not_on_a_claim(ref, model)
    return str(claim["claimName"]), folder_of(ref, folder)


def folder_of(ref: Ref, path: str) -> str:
    """On a claim. Refused where it leads out of that."""
    folder = posixpath.normpath(path.lstrip("/"))
    if folder.split("/")[0] == "..":
        raise not_on_a_claim(ref, path)
    return folder


def relative(path: str, folder: str) -> str | None:
    """``path`` as seen from ``folder``; None: it is elsewhere."""
    whole, top = posixpath.normpath(path), posixpath.normpath(folder)
    return whole[len(top) :].strip("/") or "." if f"{whole}/".startswith(f"{top.rstrip('/')}/") else None


def not_on_a_claim(ref: Ref, model: str) -> Refused:
    source = masked(model) or "a model that its arguments do not name"
    why = f"it loads {source}: what is not a folder of a claim can be neither verified nor kept"
    fix = "deliver it anew with `deliver up`, beside it, under another name"
    return Refused(Finding("adopt.not-on-a-claim", f"the weights of {ref} are not on a claim", why, fix))
