"""What is frozen of every release in a cluster: of one that was made here, and of one
that was adopted.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict

from model_delivery.base import Finding, Object, Refused
from model_delivery.targets.kubernetes.kinds import CONFIG_MAP
from model_delivery.targets.kubernetes.pod import CONFIG, PORT, claim_name, devices, startup_seconds
from model_delivery.targets.protocol import Asked
from model_delivery.values import Kind, Lock, Payload, Ref, Release, Resource, World


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


def labelled(world: World, label: str, value: str) -> list[Mapping[str, Any]]:
    return [pod for pod in world.beside["Pod"] if pod["metadata"]["labels"].get(label) == value]
