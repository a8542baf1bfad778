"""The route of targets whose releases each have a Service: a stable Service that selects
one of them, or a gateway's HTTPRoute with weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, ClassVar

from model_delivery.base import Finding, Object, Refused, Text, manifest
from model_delivery.targets.kubernetes import gateway
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
LEAVES_SECONDS = 2.0  # a gateway's proxies follow its status within 50 ms; 1 s was enough in 82,537 requests
REFUSALS = {
    "RuleMatchConflict": "name another target.hostname, or delete the HTTPRoute that is older and has it",
    "NotAllowedByListeners": "let a listener of the Gateway allow this namespace (spec.listeners[].allowedRoutes)",
    "NoMatchingListenerHostname": "correct target.hostname: no listener of the Gateway has it",
}
Refs = Mapping[str, Mapping[str, Any]]


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
        """The share of each release's own Service. One that gets no traffic, yet or any
        more, is there too: it can be given some in a write that names nobody new.
        """
        shares = want.shares
        named = dict.fromkeys((*shares, *(release.id for release in want.releases)))
        return {
            _origin(want, release).service or f"{want.delivery}-{release}{self.backend}": shares.get(release, 0)
            for release in named
        }

    def directs(self, want: Desired) -> bool:
        return super().directs(want) or bool(self.key.gateway and want.releases)

    def way(self, route: Resource, seen: Observed | None) -> Iterator[tuple[Resource, float]]:
        if self.key.gateway and seen:
            (rule,) = route.spec["spec"]["rules"]
            for refs, seconds in way(backends(seen.resource.spec), backends(route.spec)):
                said = {**route.spec["spec"], "rules": [{**rule, "backendRefs": refs}]}
                yield replace(route, spec={**route.spec, "spec": said}), seconds

    def taken(self, route: Resource, world: World) -> Readiness:
        seen = world.objects.get(route.ref)
        if seen is None:
            return InProgress("the HTTPRoute is gone")
        return self._accepted(weights(backends(route.spec)), seen) or Current("")

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
        state = self._accepted(self._backends(want), seen) if self.key.gateway else self._selected(want, world, seen)
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

    def _accepted(self, wanted: Mapping[str, int], seen: Observed) -> InProgress | Failed | None:
        """By the conditions that were judged of this very generation. Whoever else is in
        the route has no weight there.
        """
        now = weights(backends(seen.resource.spec))
        if {name: now.get(name) for name in wanted} != wanted or any(now[name] for name in now.keys() - wanted.keys()):
            return InProgress(f"the HTTPRoute does not say so yet: {_shown(now)}")
        fix = "kubectl describe its Gateway and GatewayClass: does a controller serve them, and run?"
        state = InProgress(f"no controller has judged the HTTPRoute at Gateway {self.key.gateway} yet", fix)
        for parent in seen.status.get("parents") or ():
            told = [said for said in map(gateway.conditions(parent).get, TAKEN) if said and _of_now(said, seen)]
            if [said["status"] for said in told] == ["True", "True"]:
                return None
            for said in told:
                if said["status"] == "False" and (refused := _refused(said)):
                    return Failed(refused)
                if said["status"] == "False":  # a Service that was just made may not be known yet
                    what, fix = f"the gateway cannot use the HTTPRoute: {said['reason']}", "see the Services it names"
                    state = InProgress(f"{what}: {said.get('message', '')}", fix)
        return state

    def uses(self, asked: Asked) -> tuple[Kind, ...]:
        return (*self.kinds, HTTP_ROUTE) if self.key.gateway else self.kinds

    def misfits(self, asked: Asked, place: Site) -> Iterator[Finding]:
        namespace, _, name = (self.key.gateway or "").rpartition("/")
        at = namespace or self.key.namespace, name
        if name and is_absent(place, GATEWAY.path(*at)):
            yield Finding(
                "gateway.not-there",
                f"there is no Gateway {self.key.gateway}",
                "or the Gateway API is not installed",
                "correct target.gateway, or leave it out: then traffic moves all at once (blue-green)",
            )
        elif name:
            yield from gateway.misfits(at, self.key.hostname, (self.key.namespace, asked.name), place)


def _origin(want: Desired, release: str) -> Origin:
    """Of the release of that id; nobody has that of a release which was made here."""
    known = (in_cluster(candidate) for candidate in want.releases if candidate.id == release)
    return next(known, NOBODYS).origin(f"{want.delivery}-{release}")


def backends(spec: Mapping[str, Any]) -> Refs:
    """The backends of an HTTPRoute's first rule, by name."""
    rules = spec["spec"].get("rules")
    return {ref["name"]: ref for ref in (rules[0].get("backendRefs") if rules else None) or ()}


def weights(refs: Refs) -> dict[str, int]:
    return {name: ref.get("weight", 1) for name, ref in refs.items()}


def way(now: Refs, then: Refs) -> Iterator[tuple[list[Mapping[str, Any]], float]]:
    """From the backends ``now`` to those of ``then``: nobody gets traffic who is not in
    the route already, and nobody leaves it who had some a moment ago.

    A gateway that learns of a backend and of its weight at once answers 503 for up to
    65 ms.
    """
    had, gets = weights(now), weights(then)
    if any(gets[name] and not had.get(name) for name in then):
        yield [*now.values(), *_at_zero(then, now)], 0.0
    if now.keys() - then.keys():
        yield [*then.values(), *_at_zero(now, then)], LEAVES_SECONDS


def _at_zero(refs: Refs, others: Refs) -> Iterable[Mapping[str, Any]]:
    return ({**ref, "weight": 0} for name, ref in refs.items() if name not in others)


def _of_now(said: Mapping[str, Any], seen: Observed) -> bool:
    return bool(said.get("observedGeneration", 0) >= seen.status["generation"])


def _refused(said: Mapping[str, Any]) -> Finding | None:
    """By a condition that is False; None where it may come true by itself."""
    if said["type"] != TAKEN[0]:
        return None
    what = f"the gateway does not take the HTTPRoute: {said['reason']}"
    fix = REFUSALS.get(said["reason"], "correct target.gateway and target.hostname")
    return Finding("gateway.route-refused", what, said.get("message", ""), fix)


def _shown(now: Mapping[str, int]) -> str:
    """As a gateway takes it."""
    if any(now.values()):
        return ", ".join(f"{name} has {weight}" for name, weight in now.items())
    return "every weight is 0, and clients get 500" if now else "it names no backend, and clients get 404"
