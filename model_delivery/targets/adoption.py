"""What somebody made by hand, as the payload of a release: the live object as it is, with its own name, selector and folder. Pure."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from model_delivery.base.findings import Finding, Refused
from model_delivery.base.secrets import KubeSecret
from model_delivery.spec import DeliverySpec
from model_delivery.targets.deployment import DEPLOYMENT
from model_delivery.targets.kserve import INFERENCE_SERVICE, MODES, SERVING_RUNTIME
from model_delivery.targets.kubernetes.kinds import HTTP_ROUTE, SERVICE
from model_delivery.targets.kubernetes.near import settings
from model_delivery.targets.kubernetes.pod import PORT, claim_name
from model_delivery.targets.spec import T9kTarget
from model_delivery.targets.t9k import ML_SERVICE, ML_SERVICE_RUNTIME
from model_delivery.values.release import Lock, Payload
from model_delivery.values.resources import ENGINES, Observed, Ref, Resource, difference

KINDS = {"t9k": ML_SERVICE, "kserve": INFERENCE_SERVICE, "deployment": DEPLOYMENT}
RUNTIMES = {"t9k": ML_SERVICE_RUNTIME, "kserve": SERVING_RUNTIME}
DEFAULT_PORTS = {"t9k": 8080, "kserve": 8080, "deployment": PORT}  # of a container that names none
T9K_MOUNT = "/var/lib/t9k/model"
PVC = "pvc://"
PARAMETER = re.compile(r"\{\{\s*\.(\w+)\s*\}\}")
NAMES, MODEL, ENGINE_PORT = (
    ("--served-model-name", "--model_name"),
    ("--model", "--model_dir"),
    ("--port", "--http_port"),
)
API_KEY, SECRET = "VLLM_API_KEY", re.compile(r"(TOKEN|KEY|SECRET|PASSWORD|CREDENTIALS?)$")
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
Get = Callable[[Ref], Observed | None]
Object = Mapping[str, Any]


@dataclass(frozen=True)
class Found:
    """What serves by hand: the kind's own ``spec``, the engine's words and image, its claim and folder there; ``pods``: how its pods are known."""

    spec: Object
    container: Object
    words: tuple[str, ...]
    claim: str
    folder: str
    replicas: int
    pods: Object
    more: Object


@dataclass(frozen=True)
class Adopted:
    """What can come under a spec: the release's payload, its replicas, and how it differs from what the spec would make of it."""

    what: str
    payload: Payload
    replicas: int
    differs: tuple[str, ...]


def adopt(spec: DeliverySpec, lock: Lock, named: str, get: Get, made: Sequence[Resource]) -> Adopted:
    """The object ``named`` as it runs now, as a release. Refused with every reason why it cannot come under ``spec``.

    ``get`` reads an object of the target's namespace; ``made``: what ``spec`` would make, to compare it with.
    """
    kind = spec.target.kind
    if kind == "t9k" and named != spec.name:
        why = "the MLService is the address of the service, and holds every release of it"
        raise Refused(
            Finding(
                "todo",
                f"a delivery called {spec.name} cannot adopt MLService {named}",
                why,
                f"set the spec's name to {named}",
            )
        )
    live = _live(Ref(KINDS[kind], named), spec.name, get)
    found = _READ[kind](live, get)
    wrong = [*_unlike(spec, found), *_shared_name(spec, get)]
    if wrong:
        raise Refused(*wrong)
    routes = {ref.kind.name: seen.status["uid"] for ref in _route_refs(spec) if (seen := get(ref)) is not None}
    adopted = {
        "kind": KINDS[kind].name,
        "name": named,
        "uid": live.status["uid"],
        "metadata": _metadata(live),
        "pods": dict(found.pods),
        "port": _port(found, kind),
        "folder": found.folder,
        "routes": routes,
        "service": None,
        **found.more,
    }
    limits = found.container.get("resources", {}).get("limits") or {}
    told = {
        **settings(spec.name, lock, spec.serving, spec.storage),
        "chat_template": None,
        "args": list(found.words),
        "claim": found.claim,
        "image": found.container.get("image"),
        "devices": {key: int(value) for key, value in limits.items() if "/" in key},
    }
    payload = {"live": dict(found.spec), "adopted": adopted, **told}
    return Adopted(str(live.resource.ref), payload, found.replicas, tuple(_differences(found, _as_read(kind, made))))


def _metadata(live: Observed) -> dict[str, Any]:
    """Labels and annotations of its owner's: where it is made anew, they come back (KServe's mode is one)."""
    meta = live.resource.spec["metadata"]
    labels = {key: value for key, value in (meta.get("labels") or {}).items() if not key.startswith(OURS)}
    notes = {key: value for key, value in (meta.get("annotations") or {}).items() if key not in NOT_KEPT}
    return {"labels": labels} | ({"annotations": notes} if notes else {})


def _as_read(kind: str, made: Sequence[Resource]) -> Found:
    """What a spec makes, read as if it were there."""
    there = {one.ref: Observed(one, "", {}) for one in made}
    main = next(seen for ref, seen in there.items() if ref.kind == KINDS[kind])
    return _READ[kind](main, there.get)


def _differences(found: Found, made: Found) -> Iterator[str]:
    """The engine's words and environment by their own names, of the rest every field."""
    now, then = _flags(found.words), _flags(made.words)
    gone, new = [flag for flag in now if flag not in then], [flag for flag in then if flag not in now]
    if gone or new:
        yield f"arguments: {' '.join(gone) or 'none'} → {' '.join(new) or 'none'}"
    if (found.claim, found.folder) != (made.claim, made.folder):
        yield f"weights: {found.claim}/{found.folder} → {made.claim}/{made.folder}"
    yield from difference(_variables(found.container), _variables(made.container), "env")
    yield from difference(_settings(found.container), _settings(made.container), "engine")
    yield from difference(_without_containers(found.spec), _without_containers(made.spec))


def _flags(words: Sequence[str]) -> list[str]:
    """Each flag with its values, ``--flag value`` however it was written."""
    flags: list[list[str]] = []
    for word in words:
        if word.startswith("-") or not flags:
            flags.append(word.split("=", 1) if word.startswith("-") else [word])
        else:
            flags[-1].append(word)
    return [shlex.join(flag) for flag in flags]


def _variables(container: Object) -> Object:
    return {one["name"]: one for one in container.get("env") or ()}


def _settings(container: Object) -> Object:
    return {key: value for key, value in container.items() if key not in ("name", "command", "args", "env", *DEFAULTS)}


def _without_containers(spec: Any) -> Any:
    """And without what is told already, what the API server adds by itself, and labels."""
    if isinstance(spec, Mapping):
        left = ("containers", "metadata", "selector", "replicas", "minReplicas", *DEFAULTS)
        return {key: _without_containers(value) for key, value in spec.items() if key not in left}
    return spec


def _live(ref: Ref, delivery: str, get: Get) -> Observed:
    live = get(ref)
    if live is None:
        fix = f"name it with --from; see: kubectl get {ref.kind.name.lower()}s"
        raise Refused(Finding("todo", f"there is no {ref} to adopt", "nothing of that name is in the namespace", fix))
    meta = live.resource.spec["metadata"]
    above = [f"{one['kind']} {one['name']}" for one in meta.get("ownerReferences") or () if one.get("controller")]
    if above:
        raise Refused(
            Finding(
                "todo",
                f"{ref} is made by {above[0]}",
                "what is changed in it is put back by that one",
                f"adopt {above[0]}",
            )
        )
    if live.resource.delivery not in ("", delivery):
        why = f"it belongs to the delivery {live.resource.delivery}"
        raise Refused(Finding("todo", f"{ref} cannot be adopted", why, f"use the spec of {live.resource.delivery}"))
    return live


def _unlike(spec: DeliverySpec, found: Found) -> Iterator[Finding]:
    """What a difference would make a lie of: where the weights are, and what clients send."""
    claim = claim_name(spec.name, spec.storage)
    if found.claim != claim:
        fix = f"set storage.claim to {found.claim}"
        yield Finding(
            "todo", "the spec names another claim", f"the engine reads from {found.claim}, the spec says {claim}", fix
        )
    env = found.container.get("env") or ()
    key = next((one.get("valueFrom", {}).get("secretKeyRef") for one in env if one["name"] == API_KEY), None)
    wanted = spec.serving.api_key.kube if isinstance(spec.serving.api_key, KubeSecret) else None
    has, says = f"{key['name']}/{key['key']}" if key else "none", f"{wanted.name}/{wanted.key}" if wanted else "none"
    if has != says:
        fix = (
            f"set serving.api_key to {{kube: {{name: {key['name']}, key: {key['key']}}}}}"
            if key
            else "leave serving.api_key out"
        )
        yield Finding("todo", "the spec names another API key", f"the engine has {has}, the spec says {says}", fix)
    plain = [one["name"] for one in env if one.get("value") and SECRET.search(one["name"])]
    plain += ["--api-key"] if any(word.startswith("--api-key") for word in found.words) else []
    for name in plain:
        why = "an adopted release is kept as it is, and what is kept holds no secret"
        yield Finding(
            "todo",
            f"{name} holds a secret in plain text",
            why,
            "put it into a Secret and name that (this restarts the engine), then adopt",
        )
    names = tuple(_values(found.words, NAMES)) or (_value(found.words, MODEL),)
    if set(names) != set(spec.serving.model_names):
        fix = f"set serving.model_names to [{', '.join(names)}]"
        yield Finding(
            "todo",
            "the spec names another model",
            f"it is served as {', '.join(names)}, the spec says {', '.join(spec.serving.model_names)}",
            fix,
        )


def _shared_name(spec: DeliverySpec, get: Get) -> Iterator[Finding]:
    """The route takes the delivery's name: what has that name must be free to take."""
    for ref in _route_refs(spec):
        seen = get(ref)
        if seen is None or ref.kind == ML_SERVICE:
            continue
        owner = [
            one["kind"] for one in seen.resource.spec["metadata"].get("ownerReferences") or () if one.get("controller")
        ]
        if owner or seen.resource.delivery not in ("", spec.name):
            why = f"it belongs to {f'the {owner[0]}' if owner else seen.resource.delivery}"
            yield Finding(
                "todo", f"{ref} is there already", why, "give the delivery another name: its address is called by it"
            )


def _route_refs(spec: DeliverySpec) -> tuple[Ref, ...]:
    if isinstance(spec.target, T9kTarget):
        return (Ref(ML_SERVICE, spec.name),)
    return (Ref(HTTP_ROUTE if getattr(spec.target, "gateway", None) else SERVICE, spec.name),)


def _deployment(live: Observed, _get: Get) -> Found:
    spec = live.resource.spec["spec"]
    selector = spec["selector"]
    if selector.get("matchExpressions"):
        why = "a Service selects by labels alone"
        raise Refused(
            Finding(
                "todo",
                f"{live.resource.ref} cannot be adopted",
                f"its selector has matchExpressions, and {why}",
                "make it anew with `deliver up`",
            )
        )
    pod = spec["template"]["spec"]
    container, words = _engine(pod["containers"])
    claim, folder = _on_a_claim(live.resource.ref, pod, container, _value(words, MODEL))
    labels = {"labels": dict(selector["matchLabels"])}
    return Found(spec, container, words, claim, folder, int(spec.get("replicas", 1)), labels, {})


def _kserve(live: Observed, get: Get) -> Found:
    ref, predictor = live.resource.ref, live.resource.spec["spec"]["predictor"]
    annotations = live.resource.spec["metadata"].get("annotations") or {}
    mode = live.status.get("deploymentMode") or annotations.get("serving.kserve.io/deploymentMode") or MODES[0]
    if mode not in MODES:
        why = f"it is in mode {mode}, which never changes: its pods are Knative's"
        raise Refused(
            Finding("todo", f"{ref} cannot be adopted", why, "deliver it anew under another name with `deliver up`")
        )
    model = predictor.get("model")
    if model is None:
        container, words = _engine(predictor.get("containers") or [{}])
        claim, folder = _on_a_claim(ref, predictor, container, _value(words, MODEL))
    else:
        runtime = get(Ref(RUNTIMES["kserve"], str(model.get("runtime"))))
        base, words = _engine(runtime.resource.spec["spec"]["containers"] if runtime else [{}])
        words = tuple(_filled([*words, *(model.get("args") or ())], {"Name": ref.name}))
        container = {**base, "resources": model.get("resources") or base.get("resources", {})}
        claim, _, folder = str(model.get("storageUri", "")).removeprefix(PVC).partition("/")
        if not str(model.get("storageUri", "")).startswith(PVC):
            raise Refused(_not_on_a_claim(ref, str(model.get("storageUri"))))
    pods = {"labels": {"app": f"isvc.{ref.name}-predictor"}}
    more = {"service": f"{ref.name}-predictor"}
    return Found(
        live.resource.spec["spec"], container, words, claim, folder, int(predictor.get("minReplicas", 1)), pods, more
    )


def _t9k(live: Observed, get: Get) -> Found:
    ref, spec = live.resource.ref, live.resource.spec["spec"]
    names = [one["name"] for one in spec["releases"]]
    if len(names) > 1:
        fix = "give one of them all of the traffic, and remove the others from spec.releases"
        raise Refused(
            Finding("todo", f"{ref} has {len(names)} releases", f"a delivery begins with one: {', '.join(names)}", fix)
        )
    predictor = spec["releases"][0]["predictor"]
    runtime = get(Ref(RUNTIMES["t9k"], predictor["model"]["runtime"]))
    if runtime is None:
        why = f"its MLServiceRuntime {predictor['model']['runtime']} is gone"
        raise Refused(Finding("todo", f"{ref} cannot be adopted", why, "bring the runtime back, then run again"))
    template = runtime.resource.spec["spec"]["template"]["spec"]
    base, words = _engine([one for one in template["containers"] if one["name"] == "user-container"])
    container = {
        **base,
        **next((one for one in predictor.get("containersResources") or () if one["name"] == "user-container"), {}),
    }
    words = tuple(_filled(words, predictor["model"].get("parameters") or {}))
    pvc = (predictor.get("storage") or {}).get("pvc")
    if pvc is None:
        raise Refused(_not_on_a_claim(ref, _value(words, MODEL)))
    inside = _inside(_value(words, MODEL), pvc.get("mountPath", T9K_MOUNT))
    if inside is None:
        raise Refused(_not_on_a_claim(ref, _value(words, MODEL)))
    folder = str(PurePosixPath(pvc.get("subPath", ""), inside))
    pods = {"prefix": f"{ref.name}-predict-{names[0]}-"}
    return Found(
        predictor,
        container,
        words,
        pvc["name"],
        folder,
        int(predictor.get("minReplicas", 1)),
        pods,
        {"entry": names[0]},
    )


_READ: dict[str, Callable[[Observed, Get], Found]] = {"t9k": _t9k, "kserve": _kserve, "deployment": _deployment}


def _engine(containers: Sequence[Object]) -> tuple[Object, tuple[str, ...]]:
    """The container that serves, and the words that start it; those of a shell's line are taken apart."""
    told = [(one, _words(one)) for one in containers]
    for one, words in told:
        if one.get("name") in ENGINES or _value(words, MODEL):
            return one, words
    return told[0]


def _words(container: Object) -> tuple[str, ...]:
    words = [*(container.get("command") or ()), *(container.get("args") or ())]
    if len(words) > 2 and words[0].rpartition("/")[2] in ("sh", "bash") and words[1] in ("-c", "-lc", "-ec"):
        words = shlex.split(words[2].replace("\\\n", " "))
    return tuple(words)


def _values(words: Sequence[str], flags: tuple[str, ...]) -> Iterator[str]:
    """What follows a flag, to the next one."""
    taking = False
    for word in words:
        name, equals, value = word.partition("=")
        if word.startswith("-"):
            taking = name in flags
            if taking and equals:
                yield value
                taking = False
        elif taking:
            yield word


def _value(words: Sequence[str], flags: tuple[str, ...]) -> str:
    """Empty where it is not said; of a model also what stands behind ``vllm serve``."""
    said = next(_values(words, flags), "")
    if not said and flags is MODEL and "serve" in words[:-1]:
        said = words[words.index("serve") + 1]
    return said


def _filled(words: Sequence[str], parameters: Mapping[str, str]) -> list[str]:
    return [PARAMETER.sub(lambda found: str(parameters.get(found[1], "")), word) for word in words]


def _port(found: Found, kind: str) -> int:
    said = _value(found.words, ENGINE_PORT)
    ports = found.container.get("ports") or ()
    return int(ports[0]["containerPort"]) if ports else int(said) if said.isdigit() else DEFAULT_PORTS[kind]


def _on_a_claim(ref: Ref, pod: Object, container: Object, model: str) -> tuple[str, str]:
    """The claim that holds the folder ``model``, and the folder as seen from the claim's root."""
    claims = {
        one["name"]: one["persistentVolumeClaim"]["claimName"]
        for one in pod.get("volumes") or ()
        if "persistentVolumeClaim" in one
    }
    mounts = [one for one in container.get("volumeMounts") or () if _inside(model, one["mountPath"]) is not None]
    mount = max(mounts, key=lambda one: len(one["mountPath"]), default={"name": "", "mountPath": ""})
    if mount["name"] not in claims:
        raise Refused(_not_on_a_claim(ref, model))
    return claims[mount["name"]], str(PurePosixPath(mount.get("subPath", ""), _inside(model, mount["mountPath"]) or ""))


def _inside(path: str, folder: str) -> str | None:
    """``path`` as seen from ``folder``; None: it is elsewhere."""
    whole, top = PurePosixPath(path), PurePosixPath(folder)
    return str(whole.relative_to(top)) if path.startswith("/") and whole.is_relative_to(top) else None


def _not_on_a_claim(ref: Ref, model: str) -> Finding:
    why = f"it loads {model or 'a model that its arguments do not name'}: what is not a folder of a claim can be neither verified nor kept"
    return Finding(
        "todo",
        f"the weights of {ref} are not on a claim",
        why,
        "deliver it anew with `deliver up`, beside it, under another name",
    )
