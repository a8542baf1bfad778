"""What a release in a cluster is made from: its payload, of one that was made here and of
one that was adopted; and the pod that serves it, and that of a step, as data.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict

from model_delivery.base import Finding, KubeSecret, Object, Refused, SecretRef
from model_delivery.diagnosis.scheduling import number
from model_delivery.models.manifest import folder_name
from model_delivery.targets.kubernetes.caches import left_out
from model_delivery.targets.kubernetes.kinds import CONFIG_MAP, POD
from model_delivery.targets.kubernetes.readahead import read_ahead
from model_delivery.targets.protocol import Asked
from model_delivery.values import (
    ENGINES,
    Kind,
    Lock,
    Payload,
    Ref,
    Release,
    Resource,
    Server,
    Serving,
    Storage,
    World,
)

MOUNT = "/mnt/model-delivery"
CONFIG = "/etc/model-delivery"
SECRETS = "/etc/model-delivery-secrets"
PORT = 8000
DRAIN = 60
MARGIN_SECONDS = 60  # a deadline of somebody else's comes this much after ours
API_KEY, READY_TIMEOUT = "VLLM_API_KEY", "VLLM_ENGINE_READY_TIMEOUT_S"
IDENTITY = ("runAsUser", "runAsGroup", "fsGroup")  # of a pod's securityContext
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


class Origin(BaseModel):
    """The object of a release that was adopted, or what stands for one that was made
    here.

    ``pods``: how its pods are known; ``port``: of the engine in its container;
    ``folder``: of its weights on the claim; ``routes``: uids of what had the delivery's
    name, by kind; ``service``: its own.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str = ""
    name: str
    uid: str = ""
    metadata: Object = {}
    pods: Object
    port: int = PORT
    folder: str = ""
    routes: dict[str, str] = {}
    service: str | None = None

    @property
    def labels(self) -> dict[str, str]:
        """Of its pods: what a Service selects."""
        return dict(self.pods["labels"])

    @property
    def target_port(self) -> int | str:
        """As a Service names it."""
        return self.port if self.uid else "http"


class ClusterPayload(Payload):
    """``pod``, ``claim``, ``image``, ``devices``: for the steps that work near the
    models.
    """

    startup_seconds: int
    pod: Object
    claim: str
    image: str | None
    devices: dict[str, int]

    @property
    def caches(self) -> tuple[str, ...]:
        """Folders on its claim of what its engine compiled."""
        return ()

    def without_cache(self) -> Self | None:
        made = self.content()
        return None if (plain := left_out(made)) == made else type(self).model_validate(plain)

    def origin(self, name: str) -> Origin:
        """``name``: of a release that was made here."""
        return Origin(name=name, pods={"labels": {"model-delivery/object": name}})

    def resources(self, delivery: str, release: Release) -> Iterator[Resource]:
        """Everything of the release but its share of the route."""
        raise NotImplementedError

    def chat_config(self, delivery: str, release: Release, pod: Object, engine: Object) -> Iterator[Resource]:
        """The ConfigMap of its chat template, if any, mounted into its engine."""
        if self.chat_template is not None:
            ref = Ref(CONFIG_MAP, f"{delivery}-{release.id}")
            yield Resource(ref, "release", delivery, chat_template(self.chat_template), release.id)
            mount_config(pod, engine, ref.name)


class AdoptedPayload(ClusterPayload):
    """``live``: the spec of the object as it ran when it was adopted."""

    adopts: ClassVar[Kind]
    live: Object
    adopted: Origin

    @classmethod
    def fits(cls, stored: Mapping[str, Any]) -> bool:
        return super().fits(stored) and stored["adopted"]["kind"] == cls.adopts.name

    @property
    def by_hand(self) -> str | None:
        return self.adopted.folder

    @property
    def uid(self) -> str | None:
        return self.adopted.uid

    def origin(self, name: str) -> Origin:
        return self.adopted

    def theirs(self, delivery: str, release: Release, spec: Object) -> Resource:
        """The adopted object, with ``spec``."""
        made = {"metadata": copy.deepcopy(self.adopted.metadata), "spec": spec}
        ref = Ref(self.adopts, self.adopted.name)
        return owned(Resource(ref, "release", delivery, made, release.id), self.uid)


def scale(predictor: Object, replicas: int) -> None:
    """Somebody's, which says nothing where it has one."""
    if predictor.get("minReplicas", 1) != replicas:
        predictor["minReplicas"] = replicas


def in_cluster(release: Release) -> ClusterPayload:
    """Its payload, which is a cluster's."""
    if not isinstance(release.payload, ClusterPayload):
        raise TypeError(f"release {release.id} is of another target")
    return release.payload


def common(asked: Asked, lock: Lock) -> dict[str, Any]:
    """The fields that the payloads of every target in a cluster have. Refused without an
    image.
    """
    if lock.image is None:
        raise Refused(Finding("target.no-image", "no image", "a pod needs one", "name it in target.image"))
    serving = asked.serving
    return {
        "chat_template": serving.chat_template,
        "names": serving.model_names,
        "args": serving.args,
        "api_key": serving.api_key,
        "startup_seconds": startup_seconds(serving, lock),
        "pod": serving.pod.model_dump(mode="json"),
        "claim": claim_name(asked.name, asked.storage),
        "image": lock.image,
        "devices": devices([{"resources": {"limits": serving.resources.limits}}]),
    }


def chat_template(text: str) -> Object:
    """As a ConfigMap."""
    return {"metadata": {}, "data": {"chat_template.jinja": text}}


def mount_config(pod: Object, engine: Object, name: str) -> None:
    pod["volumes"].append({"name": "config", "configMap": {"name": name}})
    engine["volumeMounts"].append({"name": "config", "mountPath": CONFIG, "readOnly": True})


def owned(resource: Resource, uid: str | None) -> Resource:
    """``resource``, which may be the object ``uid`` of somebody's."""
    if uid is None:
        return resource
    bind = {**resource.spec.get("bind", {}), "adopted": uid, "bare": resource.ref.kind.bare}
    return replace(resource, spec={**resource.spec, "bind": bind})


def owned_route(resource: Resource, releases: tuple[Release, ...]) -> Resource:
    """``resource``, which may be the route that was somebody's before one of the releases
    was adopted.
    """
    former = (in_cluster(release).origin("").routes.get(resource.ref.kind.name) for release in releases)
    return owned(resource, next(filter(None, former), None))


def pods_of(world: World, release: str) -> list[Mapping[str, Any]]:
    """The pods that carry the release's name as ``model-delivery/object``; a look gives
    it to those of an adopted release.
    """
    return labelled(world, "model-delivery/object", f"{world.delivery}-{release}")


def servers(pods: Iterable[Mapping[str, Any]], port: int | None) -> Iterator[Server]:
    """The engines of ``pods`` that have an address. ``port``: of one whose container
    names none.
    """
    for pod in pods:
        named = next((c.get("ports") for c in pod["spec"]["containers"] if c["name"] in ENGINES), None)
        host, at = pod["status"].get("podIP"), named[0]["containerPort"] if named else port
        if host and at:
            yield Server(Ref(POD, pod["metadata"]["name"]), host, at, pod["metadata"]["uid"])


def labelled(world: World, label: str, value: str) -> list[Mapping[str, Any]]:
    return [pod for pod in world.beside["Pod"] if pod["metadata"]["labels"].get(label) == value]


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
                asked[name] = asked.get(name, 0) + int(number(count))
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
    folder = model or f"{MOUNT}/{folder_name(lock.snapshot)}"
    engine["args"] = [literal(word) for word in arguments(folder, serving)]
    engine["env"] += [{"name": READY_TIMEOUT, "value": str(seconds)}, *environment(serving)]
    engine["startupProbe"]["failureThreshold"] = math.ceil(seconds / engine["startupProbe"]["periodSeconds"])
    limits = limits_of(serving)
    engine["resources"] = {"limits": limits, "requests": limits} if limits else {}
    read_ahead(engine, folder, serving)
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
