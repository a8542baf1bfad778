"""The route of targets whose releases each have a Service: a stable Service that selects
one of them, or a gateway's HTTPRoute with weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from model_delivery.base import Finding, Object, Refused, Text, manifest
from model_delivery.targets.kubernetes.cluster import ClusterKey, InCluster, is_absent
from model_delivery.targets.kubernetes.kinds import GATEWAY, HTTP_ROUTE, SERVICE
from model_delivery.targets.kubernetes.release import PORT, ClusterPayload, Origin, in_cluster, owned_route, pods_of
from model_delivery.targets.protocol import Asked, Site
from model_delivery.values import (
    Address,
    Capabilities,
    Current,
    Desired,
    Failed,
    InProgress,
    Kind,
    Observed,
    Readiness,
    Ref,
    Resource,
    World,
)

FILE = "deployment.yaml"
NOBODY = "none"
NOBODYS = ClusterPayload(names=(), args=(), startup_seconds=0, pod={}, claim="", image=None, devices={})
PORT_NAME = "http-openai"  # not "http": a Service that is adopted may have a port of that name, on another number
TAKEN = ("Accepted", "ResolvedRefs")


class RoutedKey(ClusterKey):
    """``gateway``: ``NAME`` or ``NAMESPACE/NAME`` of a Gateway; without one the stable
    Service selects the pods of one release.
    """

    gateway: Text | None = None
    hostname: Text | None = None

    @classmethod
    def told_by(cls, route: Mapping[str, Any]) -> Mapping[str, Any]:
        spec = route.get("spec") or {}
        gateways = ["/".join(p[key] for key in ("namespace", "name") if key in p) for p in spec.get("parentRefs") or ()]
        return {"gateway": next(iter(gateways), None), "hostname": next(iter(spec.get("hostnames") or ()), None)}


class Routed(InCluster):
    """A target whose releases each have a Service, called ``DELIVERY-RELEASE`` and then
    ``backend``; ``port``: of that Service.
    """

    backend: ClassVar[str] = ""
    port: ClassVar[int] = PORT
    key: RoutedKey

    @property
    def can(self) -> Capabilities:
        return Capabilities(dark_first=True, weights="percent" if self.key.gateway else "none")

    def address(self, name: str) -> Address:
        outside = self.key.gateway and self.key.hostname
        return Address(outside, 80) if outside else Address(f"{name}.{self.key.namespace}.svc", PORT)

    def route(self, name: str) -> Ref:
        return Ref(HTTP_ROUTE if self.key.gateway else SERVICE, name)

    def compose(self, want: Desired) -> tuple[Resource, ...]:
        made = [part for release in want.releases for part in in_cluster(release).resources(want.delivery, release)]
        if want.address is not None:
            spec = self._weights(want) if self.key.gateway else self._selection(want)
            route = Resource(self.route(want.delivery), "route", want.delivery, spec)
            made.append(owned_route(route, want.releases))
        return tuple(made)

    def _weights(self, want: Desired) -> Object:
        made = manifest(FILE, "HTTPRoute")
        namespace, _, gateway = (self.key.gateway or "").rpartition("/")
        made["spec"]["parentRefs"] = [{"name": gateway} | ({"namespace": namespace} if namespace else {})]
        made["spec"] |= {"hostnames": [self.key.hostname]} if self.key.hostname else {}
        made["spec"]["rules"][0]["backendRefs"] = [
            {"name": name, "port": self.port, "weight": share} for name, share in self._backends(want).items()
        ]
        return made

    def _backends(self, want: Desired) -> dict[str, int]:
        """The share of each release's own Service."""
        return {
            _origin(want, release).service or f"{want.delivery}-{release}{self.backend}": share
            for release, share in want.shares.items()
        }

    def _selection(self, want: Desired) -> Object:
        made = manifest(FILE, "Service")
        if len(want.shares) > 1:
            what, fix = "a Service cannot weigh traffic", "name a gateway, or use strategy: blue-green"
            raise Refused(Finding("rollout.no-weights", what, f"wanted: {want.shares}", fix))
        (owner,) = want.shares or (NOBODY,)
        origin = _origin(want, owner)
        made["spec"]["selector"] = origin.labels
        made["spec"]["ports"][0] |= {"name": PORT_NAME, "targetPort": origin.target_port}
        return made

    def moved(self, want: Desired, world: World, seen: Observed) -> Readiness:
        state = self._accepted(want, seen) if self.key.gateway else self._selected(want, world, seen)
        return state or Current(want.address.url if want.address else "")

    def _selected(self, want: Desired, world: World, seen: Observed) -> InProgress | None:
        (owner,) = want.shares
        if seen.resource.spec["spec"].get("selector") != _origin(want, owner).labels:
            return InProgress("the Service does not select the release yet")
        allowed = {pod["metadata"]["name"] for pod in pods_of(world, owner)}
        ready = {
            endpoint.get("targetRef", {}).get("name")
            for part in world.beside["EndpointSlice"]
            if part["metadata"]["labels"].get("kubernetes.io/service-name") == want.delivery
            for endpoint in part.get("endpoints") or ()
            if endpoint["conditions"].get("ready")
        }
        moved = ready and ready <= allowed
        return None if moved else InProgress("the Service's endpoints have not moved yet")

    def _accepted(self, want: Desired, seen: Observed) -> InProgress | Failed | None:
        """By the conditions that were judged of this very generation."""
        taken, generation = False, seen.status["generation"]
        for parent in seen.status.get("parents") or ():
            current = {c["type"]: c for c in parent["conditions"] if c.get("observedGeneration", 0) >= generation}
            judged = [current[kind] for kind in TAKEN if kind in current]
            for condition in judged:
                if condition["status"] == "False":
                    what = f"the gateway does not take the HTTPRoute: {condition['reason']}"
                    fix = "correct target.gateway and target.hostname"
                    return Failed(Finding("gateway.route-refused", what, condition.get("message", ""), fix))
            taken |= [condition["status"] for condition in judged] == ["True", "True"]
        backends = seen.resource.spec["spec"]["rules"][0].get("backendRefs") or ()
        if not taken or {backend["name"]: backend["weight"] for backend in backends} != self._backends(want):
            return InProgress("no gateway has taken the HTTPRoute yet")
        return None

    def uses(self, asked: Asked) -> tuple[Kind, ...]:
        return (*self.kinds, HTTP_ROUTE) if self.key.gateway else self.kinds

    def misfits(self, asked: Asked, place: Site) -> Iterator[Finding]:
        namespace, _, name = (self.key.gateway or "").rpartition("/")
        if name and is_absent(place, GATEWAY.path(namespace or self.key.namespace, name)):
            yield Finding(
                "gateway.not-there",
                f"there is no Gateway {self.key.gateway}",
                "or the Gateway API is not installed",
                "correct target.gateway, or leave it out: then traffic moves all at once (blue-green)",
            )


def _origin(want: Desired, release: str) -> Origin:
    """Of the release of that id; nobody has that of a release which was made here."""
    known = (in_cluster(candidate) for candidate in want.releases if candidate.id == release)
    return next(known, NOBODYS).origin(f"{want.delivery}-{release}")
