"""The pod that serves, and the pod of a step, as data: shared by every target in a
cluster.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from model_delivery.base import KubeSecret, Object, SecretRef
from model_delivery.models.store import folder_name
from model_delivery.targets.protocol import Asked
from model_delivery.values import Lock, Serving, Storage

MOUNT = "/mnt/model-delivery"
CONFIG = "/etc/model-delivery"
SECRETS = "/etc/model-delivery-secrets"
PORT = 8000
DRAIN = 30
MARGIN_SECONDS = 60  # a deadline of somebody else's comes this much after ours
API_KEY, READY_TIMEOUT = "VLLM_API_KEY", "VLLM_ENGINE_READY_TIMEOUT_S"
PULL_SECONDS, NODE_SECONDS, IMPORT_SECONDS = 600, 600, 300
LOAD_BYTES_PER_SECOND = 100e6
PASSED = {
    "node_selector": "nodeSelector",
    "tolerations": "tolerations",
    "affinity": "affinity",
    "service_account": "serviceAccountName",
    "runtime_class": "runtimeClassName",
    "priority_class": "priorityClassName",
}


def literal(text: str) -> str:
    """So that a kubelet, which replaces ``$(NAME)``, passes ``text`` on as it is."""
    return text.replace("$", "$$")


def verbatim(text: str) -> str:
    """So that Go's templates, which T9k and KServe fill in, give the process ``text`` as
    it is; in backquotes, for it may be done in JSON.
    """
    return text.replace("{{", "{{`{{`}}")


def pod_labels(delivery: str, release: str) -> dict[str, str]:
    """Of a release's pods: by these its route selects them, and a look finds them."""
    return {
        "model-delivery/object": f"{delivery}-{release}",
        "model-delivery/delivery": delivery,
        "model-delivery/release": release,
        "model-delivery/role": "release",
        "app.kubernetes.io/name": delivery,
    }


def devices(containers: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """The extended resources (``vendor/device``) that a pod of these containers asks
    for.
    """
    asked: dict[str, int] = {}
    for container in containers:
        for name, count in (container.get("resources", {}).get("limits") or {}).items():
            if "/" in name:
                asked[name] = asked.get(name, 0) + int(count)
    return asked


def claim_name(name: str, storage: Storage) -> str:
    return storage.claim or f"{name}-models"


def startup_seconds(serving: Serving, lock: Lock) -> int:
    """The one number behind probes, deadlines and the wait: image pull + node scale-up +
    imports + loading a model of this size.
    """
    if serving.startup_timeout is not None:
        return math.ceil(serving.startup_timeout.seconds)
    return math.ceil(PULL_SECONDS + NODE_SECONDS + IMPORT_SECONDS + lock.snapshot.size / LOAD_BYTES_PER_SECOND)


def serve(template: Object, asked: Asked, lock: Lock, model: str = "") -> None:
    """Fill in the pod template of a release. ``model``: where somebody else mounts its
    folder; else the template's volume ``models`` is its claim.
    """
    serving, pod = asked.serving, template["spec"]
    (engine,) = pod["containers"]
    seconds = startup_seconds(serving, lock)
    engine["image"] = lock.image
    engine["args"] = [literal(word) for word in arguments(model or f"{MOUNT}/{folder_name(lock.snapshot)}", serving)]
    engine["env"] += [{"name": READY_TIMEOUT, "value": str(seconds)}, *environment(serving)]
    engine["startupProbe"]["failureThreshold"] = math.ceil(seconds / engine["startupProbe"]["periodSeconds"])
    limits = limits_of(serving)
    engine["resources"] = {"limits": limits, "requests": limits} if limits else {}
    if not model:
        claim = {"claimName": claim_name(asked.name, asked.storage), "readOnly": True}
        _named(pod["volumes"], "models")["persistentVolumeClaim"] = claim
    if serving.pod.annotations:
        template["metadata"]["annotations"] = dict(serving.pod.annotations)
    furnish(pod, engine, serving, "shm")


def furnish(pod: Object, engine: Object, serving: Serving, shm: str) -> None:
    """What ``serving.pod`` asks of the pod and its engine; ``shm``: the volume of
    /dev/shm.
    """
    if serving.pod.shm is not None:
        _named(pod["volumes"], shm)["emptyDir"]["sizeLimit"] = str(serving.pod.shm)
    schedule(pod, serving.pod.model_dump(mode="json"))
    pod["volumes"] += [dict(volume) for volume in serving.pod.volumes]
    engine["volumeMounts"] += [dict(mount) for mount in serving.pod.volume_mounts]


def limits_of(serving: Serving) -> dict[str, str]:
    return {key: str(value) for key, value in serving.resources.limits.items()}


def arguments(model: str, serving: Serving) -> list[str]:
    """The engine's, ours first; the user's stay as they are."""
    ours = ["--model", model, "--served-model-name", *serving.model_names]
    ours += ["--host", "0.0.0.0", "--port", str(PORT), "--shutdown-timeout", str(DRAIN)]
    ours += ["--chat-template", f"{CONFIG}/chat_template.jinja"] if serving.chat_template is not None else []
    return [*ours, *serving.args]


def environment(serving: Serving) -> list[Object]:
    given = serving.env | ({API_KEY: serving.api_key} if serving.api_key else {})
    return [
        {"name": name, "value": literal(value)}
        if isinstance(value, str)
        else {"name": name, "valueFrom": {"secretKeyRef": _key(value)}}
        for name, value in given.items()
    ]


def _key(ref: SecretRef) -> dict[str, str]:
    """Preflight refuses references that a pod cannot have."""
    if not isinstance(ref, KubeSecret):
        raise TypeError(f"{type(ref).__name__} cannot reach a pod")
    return {"name": ref.kube.name, "key": ref.kube.key}


def schedule(pod: Object, given: Mapping[str, Any]) -> None:
    """What ``serving.pod`` (as JSON) says about where and as whom a pod runs."""
    pod |= {name: given[field] for field, name in PASSED.items() if given[field]}
    pull_secrets(pod, given["image_pull_secrets"])
    if given["security_context"]:
        pod["securityContext"] = pod.get("securityContext", {}) | given["security_context"]


def pull_secrets(pod: Object, names: Iterable[str]) -> None:
    if secrets := [{"name": name} for name in dict.fromkeys(names)]:
        pod["imagePullSecrets"] = secrets


def mount_secrets(pod: Object, refs: Iterable[SecretRef]) -> None:
    """Each Secret's named keys as files ``NAME/KEY`` for the step's container; nothing of
    them stands in the Job.
    """
    named = sorted({(ref.kube.name, ref.kube.key) for ref in refs if isinstance(ref, KubeSecret)})
    if named:
        sources = [{"secret": {"name": name, "items": [{"key": key, "path": f"{name}/{key}"}]}} for name, key in named]
        pod["volumes"].append({"name": "secrets", "projected": {"sources": sources}})
        pod["containers"][0]["volumeMounts"].append({"name": "secrets", "mountPath": SECRETS, "readOnly": True})


def _named(things: list[Object], name: str) -> Object:
    return next(thing for thing in things if thing["name"] == name)
