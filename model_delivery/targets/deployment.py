"""Plain Kubernetes: a Deployment and a Service a release; a stable Service, or a
gateway's HTTPRoute, in front.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from typing import Any, Literal

from pydantic import Field

from model_delivery.base import Object, manifest
from model_delivery.diagnosis.pods import living
from model_delivery.targets.kubernetes import caches
from model_delivery.targets.kubernetes.adoption import Found, engine_of, model_of, on_a_claim, refusal
from model_delivery.targets.kubernetes.cluster import ClusterTarget
from model_delivery.targets.kubernetes.kinds import SERVICE
from model_delivery.targets.kubernetes.release import (
    MARGIN_SECONDS,
    PORT,
    AdoptedPayload,
    ClusterPayload,
    common,
    devices,
    in_cluster,
    pod_labels,
    pods_of,
    serve,
)
from model_delivery.targets.kubernetes.route import FILE, Routed, RoutedKey
from model_delivery.targets.protocol import Asked, Get, Target
from model_delivery.values import (
    Current,
    Demand,
    InProgress,
    Kind,
    Lock,
    Observed,
    Readiness,
    Ref,
    Release,
    Resource,
    World,
)


def _demand(body: Mapping[str, Any]) -> Demand:
    spec = body["spec"]
    return {body["metadata"]["name"]: (spec["replicas"], devices(spec["template"]["spec"]["containers"]))}


DEPLOYMENT = Kind("Deployment", "apps", "v1", "deployments", foreground=True, demand=_demand)


class DeploymentKey(RoutedKey):
    kind: Literal["deployment"] = "deployment"

    def target(self) -> Target:
        return Deployment(self)


class DeploymentTarget(ClusterTarget, DeploymentKey):
    """A plain Deployment and Service; without ``gateway`` traffic cannot be weighed."""

    keyed = DeploymentKey
    kind: Literal["deployment"]


class DeploymentPayload(ClusterPayload):
    deployment: Object
    service: Object

    @property
    def caches(self) -> tuple[str, ...]:
        return tuple(caches.used(self.deployment["spec"]["template"]["spec"]))

    def resources(self, delivery: str, release: Release) -> Iterator[Resource]:
        name = f"{delivery}-{release.id}"
        made = copy.deepcopy(self.deployment)
        template = made["spec"]["template"]
        made["spec"] |= {"replicas": release.replicas, "selector": {"matchLabels": self.origin(name).labels}}
        template["metadata"]["labels"] = pod_labels(delivery, release.id)
        pod = template["spec"]
        yield from self.chat_config(delivery, release, pod, pod["containers"][0])
        yield Resource(Ref(DEPLOYMENT, name), "release", delivery, made, release.id)
        yield _service(self, delivery, release)


def _service_before() -> Object:
    """What an older version, which did not keep it, put before an adopted Deployment's
    pods.

    A later manifest must not change it: it is part of releases that serve.
    """
    port = {"name": "http", "port": 8000, "targetPort": "http", "protocol": "TCP"}
    return {"metadata": {"labels": {}}, "spec": {"selector": {"model-delivery/object": "model"}, "ports": [port]}}


class DeploymentAdopted(AdoptedPayload):
    """Somebody's Deployment as it is, and a Service of ours before its pods."""

    adopts = DEPLOYMENT
    service: Object = Field(default_factory=_service_before)

    def resources(self, delivery: str, release: Release) -> Iterator[Resource]:
        yield self.theirs(delivery, release, copy.deepcopy(self.live) | {"replicas": release.replicas})
        yield _service(self, delivery, release)


def _service(payload: DeploymentPayload | DeploymentAdopted, delivery: str, release: Release) -> Resource:
    """The release's own, from what was kept of it."""
    made, name = copy.deepcopy(payload.service), f"{delivery}-{release.id}"
    origin = payload.origin(name)
    made["spec"]["selector"], made["spec"]["ports"][0]["targetPort"] = origin.labels, origin.target_port
    return Resource(Ref(SERVICE, name), "release", delivery, made, release.id)


class Deployment(Routed):
    """Without a gateway a Service selects one release: traffic cannot be weighed."""

    spec, kinds, engine_port, shapes_pods = DeploymentTarget, (DEPLOYMENT,), PORT, True
    payloads = DeploymentPayload, DeploymentAdopted

    def payload(self, asked: Asked, lock: Lock) -> ClusterPayload:
        made, shared = manifest(FILE, "Deployment"), common(asked, lock)
        serve(made["spec"]["template"], asked, lock)
        pod = made["spec"]["template"]["spec"]
        caches.keep(pod, pod["containers"][0], asked, lock)
        made["metadata"]["labels"]["app.kubernetes.io/version"] = version("model-delivery")
        made["spec"]["progressDeadlineSeconds"] = shared["startup_seconds"] + MARGIN_SECONDS
        return DeploymentPayload(deployment=made, service=manifest(FILE, "Service"), **shared)

    def ready(self, release: Release, world: World, seen: Observed) -> Readiness:
        name, status = f"{world.delivery}-{release.id}", seen.status
        seen_by_controller = status.get("observedGeneration", 0) >= status["generation"]
        wanted = max(1, min(release.replicas, seen.resource.spec["spec"].get("replicas", 1)))  # an autoscaler's
        enough = all(status.get(count, 0) >= wanted for count in ("updatedReplicas", "availableReplicas"))
        if seen_by_controller and enough and not status.get("unavailableReplicas", 0):
            return Current(f"http://{name}.{self.key.namespace}.svc:{PORT}")
        return self.pending(release, world, name, status)

    def asked_at(self, release: Release, world: World, seen: Observed) -> Readiness:
        """A pod of its own, on the port that our Service will lead to."""
        state, port = self.ready(release, world, seen), in_cluster(release).origin("").port
        addresses = [str(pod["status"].get("podIP", "")) for pod in living(pods_of(world, release.id))]
        if not isinstance(state, Current) or not any(addresses):
            return InProgress("no pod of it has an address yet") if isinstance(state, Current) else state
        host = next(filter(None, addresses))
        return Current(f"http://{f'[{host}]' if ':' in host else host}:{port}")

    def read(self, live: Observed, get: Get) -> Found:
        ref, spec = live.resource.ref, live.resource.spec["spec"]
        if spec["selector"].get("matchExpressions"):
            why = "its selector has matchExpressions, and a Service selects by labels alone"
            raise refusal(ref, why, "make it anew with `deliver up`")
        pod = spec["template"]["spec"]
        container, words = engine_of(pod["containers"])
        place = on_a_claim(ref, pod, container, model_of(words))
        origin, kept = {"pods": {"labels": spec["selector"]["matchLabels"]}}, {"service": manifest(FILE, "Service")}
        return Found(spec, container, words, *place, int(spec.get("replicas", 1)), origin, kept)
