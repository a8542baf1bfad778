"""The route of targets whose releases each have a Service: a stable Service that selects one of them, or a gateway's HTTPRoute with weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from model_delivery.base.findings import Finding, Refused
from model_delivery.targets.kubernetes.kinds import HTTP_ROUTE, SERVICE
from model_delivery.targets.kubernetes.manifests import manifest
from model_delivery.targets.kubernetes.pod import PORT
from model_delivery.values.readiness import Current, Failed, InProgress, Readiness
from model_delivery.values.release import Address, Capabilities, Desired, Release
from model_delivery.values.resources import Ref, Resource, World

FILE = "deployment.yaml"
NOBODY = "none"
PORT_NAME = "http-openai"  # not "http": a Service that is adopted may have a port of that name, on another number


def pods_of(world: World, name: str) -> list[Mapping[str, Any]]:
    """The pods that carry the release's name as ``model-delivery/object``; a look gives it to those of an adopted release."""
    return [pod for pod in world.beside["Pod"] if pod["metadata"]["labels"].get("model-delivery/object") == name]


def owned(resource: Resource, uid: str | None, *, bare: bool = False) -> Resource:
    """``resource``, which may be the object ``uid`` of somebody's; ``bare``: labels of ours on it would restart its pods."""
    if uid is None:
        return resource
    bind = {**resource.spec.get("bind", {}), "adopted": uid, "bare": bare}
    return replace(resource, spec={**resource.spec, "bind": bind})


def owned_route(resource: Resource, want: Desired) -> Resource:
    """``resource``, which may be the route that was somebody's before one of the releases was adopted."""
    routes = [release.adopted["routes"] for release in want.releases if release.adopted is not None]
    return owned(resource, next((uid for known in routes if (uid := known.get(resource.ref.kind.name))), None))


@dataclass(frozen=True)
class Route:
    """``gateway``: ``NAME`` or ``NAMESPACE/NAME`` of a Gateway; without one the stable Service selects the pods of one release.

    ``backend``: behind ``DELIVERY-RELEASE``, the name of a release's own Service is continued by this; ``port``: of that Service.
    """

    namespace: str
    gateway: str | None = None
    hostname: str | None = None
    backend: str = ""
    port: int = PORT

    @property
    def can(self) -> Capabilities:
        return Capabilities(dark_first=True, weights="percent" if self.gateway else "none")

    def address(self, name: str) -> Address:
        return (
            Address(self.hostname, 80)
            if self.gateway and self.hostname
            else Address(f"{name}.{self.namespace}.svc", PORT)
        )

    def compose(self, want: Desired) -> Resource:
        return owned_route(self._http_route(want) if self.gateway else _stable_service(want), want)

    def _http_route(self, want: Desired) -> Resource:
        made = manifest(FILE, "HTTPRoute")
        namespace, _, gateway = (self.gateway or "").rpartition("/")
        made["spec"]["parentRefs"] = [{"name": gateway} | ({"namespace": namespace} if namespace else {})]
        made["spec"] |= {"hostnames": [self.hostname]} if self.hostname else {}
        made["spec"]["rules"][0]["backendRefs"] = [
            {"name": self._service(want, release), "port": self.port, "weight": share}
            for release, share in want.shares.items()
        ]
        return Resource(Ref(HTTP_ROUTE, want.delivery), "route", want.delivery, made)

    def _service(self, want: Desired, release: str) -> str:
        adopted = _known(want, release).adopted
        return (adopted and adopted["service"]) or f"{want.delivery}-{release}{self.backend}"

    def routed(self, want: Desired, world: World) -> Readiness:
        if want.address is None or not want.shares:
            return Current("")
        if self.gateway:
            return self._accepted(want, world)
        (owner,) = want.shares
        seen = world.objects.get(Ref(SERVICE, want.delivery))
        if seen is None or seen.resource.spec["spec"].get("selector") != selector(want.delivery, _known(want, owner)):
            return InProgress("the Service does not select the release yet")
        allowed = {pod["metadata"]["name"] for pod in pods_of(world, f"{want.delivery}-{owner}")}
        slices = [
            s
            for s in world.beside["EndpointSlice"]
            if s["metadata"]["labels"].get("kubernetes.io/service-name") == want.delivery
        ]
        ready = [
            e.get("targetRef", {}).get("name")
            for s in slices
            for e in s.get("endpoints") or ()
            if e["conditions"].get("ready")
        ]
        if not ready or not set(ready) <= allowed:
            return InProgress("the Service's endpoints have not moved yet")
        return Current(want.address.url)

    def _accepted(self, want: Desired, world: World) -> Readiness:
        seen = world.objects.get(Ref(HTTP_ROUTE, want.delivery))
        if seen is None:
            return InProgress("the HTTPRoute is not there yet")
        parents = seen.status.get("parents") or ()
        for condition in (c for parent in parents for c in parent["conditions"]):
            current = condition.get("observedGeneration", 0) >= seen.status["generation"]
            if condition["type"] in ("Accepted", "ResolvedRefs") and condition["status"] == "False" and current:
                what = f"the gateway does not take the HTTPRoute: {condition['reason']}"
                return Failed(
                    Finding("todo", what, condition.get("message", ""), "correct target.gateway and target.hostname")
                )
        taken = [
            all(
                any(
                    c["type"] == kind and c["status"] == "True" and c["observedGeneration"] >= seen.status["generation"]
                    for c in p["conditions"]
                )
                for kind in ("Accepted", "ResolvedRefs")
            )
            for p in parents
        ]
        wanted = {self._service(want, release): share for release, share in want.shares.items()}
        backends = seen.resource.spec["spec"]["rules"][0].get("backendRefs") or ()
        if not any(taken) or {b["name"]: b["weight"] for b in backends} != wanted:
            return InProgress("no gateway has taken the HTTPRoute yet")
        return Current(want.address.url if want.address else "")


def selector(delivery: str, release: Release) -> dict[str, str]:
    """The labels of a release's pods that a Service selects."""
    return (
        dict(release.adopted["pods"]["labels"])
        if release.adopted
        else {"model-delivery/object": f"{delivery}-{release.id}"}
    )


def _known(want: Desired, release: str) -> Release:
    return next((one for one in want.releases if one.id == release), Release(release, {}))


def _stable_service(want: Desired) -> Resource:
    made = manifest(FILE, "Service")
    if len(want.shares) > 1:
        raise Refused(
            Finding(
                "todo",
                "a Service cannot weigh traffic",
                f"wanted: {want.shares}",
                "name a gateway, or use strategy: blue-green",
            )
        )
    (owner,) = want.shares or (NOBODY,)
    release = _known(want, owner)
    made["spec"]["selector"] = selector(want.delivery, release)
    made["spec"]["ports"][0] |= {"name": PORT_NAME} | (
        {"targetPort": release.adopted["port"]} if release.adopted else {}
    )
    return Resource(Ref(SERVICE, want.delivery), "route", want.delivery, made)
