"""The route of targets whose releases each have a Service: a stable Service that selects
one of them, or a gateway's HTTPRoute with weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from model_delivery.base import Finding, Permanent, Refused, Text
from model_delivery.base.manifests import manifest
from model_delivery.targets.asked import Asked
from model_delivery.targets.kubernetes.cluster import ClusterKey, ClusterTarget, InCluster
from model_delivery.targets.kubernetes.kinds import GATEWAY, HTTP_ROUTE, SERVICE
from model_delivery.targets.kubernetes.payload import ClusterPayload, in_cluster, owned_route, pods_of
from model_delivery.targets.kubernetes.pod import PORT
from model_delivery.targets.protocol import Site
from model_delivery.values import (
    Address,
    Capabilities,
    Current,
    Desired,
    Failed,
    InProgress,
    Kind,
    Readiness,
    Ref,
    Release,
    Resource,
    World,
)

FILE = "deployment.yaml"
NOBODY = "none"
NOBODYS = ClusterPayload(names=(), args=(), startup_seconds=0, pod={}, claim="", image=None, devices={})
PORT_NAME = "http-openai"  # not "http": a Service that is adopted may have a port of that name, on another number
TAKEN = ("Accepted", "ResolvedRefs")


class RoutedKey(ClusterKey):
    gateway: str | None = None
    hostname: str | None = None


class RoutedTarget(ClusterTarget):
    gateway: Text | None = None
    hostname: Text | None = None


@dataclass(frozen=True)
class Routed(InCluster):
    """A target whose releases each have a Service, called ``DELIVERY-RELEASE`` and then
    ``backend``.

    ``gateway``: ``NAME`` or ``NAMESPACE/NAME`` of a Gateway; without one the stable
    Service selects the pods of one release. ``port``: of a release's own Service.
    """

    backend: ClassVar[str] = ""
    port: ClassVar[int] = PORT
    gateway: str | None = None
    hostname: str | None = None

    @property
    def can(self) -> Capabilities:
        return Capabilities(dark_first=True, weights="percent" if self.gateway else "none")

    def address(self, name: str) -> Address:
        outside = self.gateway and self.hostname
        return Address(outside, 80) if outside else Address(f"{name}.{self.namespace}.svc", PORT)

    def route(self, name: str) -> Ref:
        return Ref(HTTP_ROUTE if self.gateway else SERVICE, name)

    def compose(self, want: Desired) -> tuple[Resource, ...]:
        made = [part for release in want.releases for part in in_cluster(release).resources(want.delivery, release)]
        if want.address is not None:
            spec = self._weights(want) if self.gateway else self._selection(want)
            ref = self.route(want.delivery)
            made.append(owned_route(Resource(ref, "route", want.delivery, spec), want.releases))
        return tuple(made)

    def _weights(self, want: Desired) -> dict[str, Any]:
        made = manifest(FILE, "HTTPRoute")
        namespace, _, gateway = (self.gateway or "").rpartition("/")
        made["spec"]["parentRefs"] = [{"name": gateway} | ({"namespace": namespace} if namespace else {})]
        made["spec"] |= {"hostnames": [self.hostname]} if self.hostname else {}
        made["spec"]["rules"][0]["backendRefs"] = [
            {"name": self._service(want, release), "port": self.port, "weight": share}
            for release, share in want.shares.items()
        ]
        return made

    def _service(self, want: Desired, release: str) -> str:
        return _payload(want, release).backend(f"{want.delivery}-{release}{self.backend}")

    def _selection(self, want: Desired) -> dict[str, Any]:
        made = manifest(FILE, "Service")
        if len(want.shares) > 1:
            what, fix = "a Service cannot weigh traffic", "name a gateway, or use strategy: blue-green"
            raise Refused(Finding("rollout.no-weights", what, f"wanted: {want.shares}", fix))
        (owner,) = want.shares or (NOBODY,)
        payload = _payload(want, owner)
        made["spec"]["selector"] = payload.selector(f"{want.delivery}-{owner}")
        made["spec"]["ports"][0] |= {"name": PORT_NAME, "targetPort": payload.target_port}
        return made

    def routed(self, want: Desired, world: World) -> Readiness:
        if want.address is None or not want.shares:
            return Current("")
        if self.gateway:
            return self._accepted(want, world, want.address)
        (owner,) = want.shares
        seen, name = world.objects.get(self.route(want.delivery)), f"{want.delivery}-{owner}"
        if seen is None or seen.resource.spec["spec"].get("selector") != _payload(want, owner).selector(name):
            return InProgress("the Service does not select the release yet")
        allowed = {pod["metadata"]["name"] for pod in pods_of(world, Release(owner, NOBODYS))}
        ready = {
            endpoint.get("targetRef", {}).get("name")
            for part in world.beside["EndpointSlice"]
            if part["metadata"]["labels"].get("kubernetes.io/service-name") == want.delivery
            for endpoint in part.get("endpoints") or ()
            if endpoint["conditions"].get("ready")
        }
        if not ready or not ready <= allowed:
            return InProgress("the Service's endpoints have not moved yet")
        return Current(want.address.url)

    def _accepted(self, want: Desired, world: World, address: Address) -> Readiness:
        seen = world.objects.get(self.route(want.delivery))
        if seen is None:
            return InProgress("the HTTPRoute is not there yet")
        parents = [_current(parent, seen.status["generation"]) for parent in seen.status.get("parents") or ()]
        for condition in (parent[kind] for parent in parents for kind in TAKEN if kind in parent):
            if condition["status"] == "False":
                what = f"the gateway does not take the HTTPRoute: {condition['reason']}"
                fix = "correct target.gateway and target.hostname"
                return Failed(Finding("gateway.route-refused", what, condition.get("message", ""), fix))
        taken = any(all(parent.get(kind, {}).get("status") == "True" for kind in TAKEN) for parent in parents)
        wanted = {self._service(want, release): share for release, share in want.shares.items()}
        backends = seen.resource.spec["spec"]["rules"][0].get("backendRefs") or ()
        if not taken or {backend["name"]: backend["weight"] for backend in backends} != wanted:
            return InProgress("no gateway has taken the HTTPRoute yet")
        return Current(address.url)

    def uses(self, asked: Asked) -> tuple[Kind, ...]:
        return (*self.kinds, HTTP_ROUTE) if self.gateway else self.kinds

    def misfits(self, asked: Asked, place: Site) -> Iterator[Finding]:
        if self.gateway is None:
            return
        namespace, _, name = self.gateway.rpartition("/")
        try:
            there = place.look_up(GATEWAY.path(namespace or self.namespace, name)) is not None
        except Permanent:
            return
        if not there:
            what, why = f"there is no Gateway {self.gateway}", "or the Gateway API is not installed"
            fix = "correct target.gateway, or leave it out: then traffic moves all at once (blue-green)"
            yield Finding("gateway.not-there", what, why, fix)


def _current(parent: Mapping[str, Any], generation: int) -> dict[str, Mapping[str, Any]]:
    """The conditions that were judged of this very generation, by type."""
    return {c["type"]: c for c in parent["conditions"] if c.get("observedGeneration", 0) >= generation}


def _payload(want: Desired, release: str) -> ClusterPayload:
    """Of the release of that id; nobody has that of a release which was made here."""
    known = (in_cluster(candidate) for candidate in want.releases if candidate.id == release)
    return next(known, NOBODYS)
