"""A stand-in for a gateway controller: it programs a Caddy from Gateway API HTTPRoutes,
without root and exact to 1 %. The real one is ``tests/parts/contour``.

Real: the API's definitions, Gateways, HTTPRoutes, their status, and the proxy that splits
the traffic by weight. As Contour and Envoy do it: 503 for a backend that is added and
weighted in one write, until the gateway knows it; a request without a limit of its own
ends after 15 s; of two routes with a hostname the older one counts; an empty route
answers 404, one without weight, or a backend that is not there, 500. Not there: matches,
filters, TLS, listeners of different ports, cross-namespace grants. A weight changes
without a reload; a new route reloads Caddy, one that has gone does not.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx

from model_delivery.places.host.kinds import caddy
from tests.parts.cluster.control_plane import Cluster
from tests.parts.golang import module

CRDS = Path(__file__).parent / "crds"
CONTROLLER, CLASS = "test/caddy", "caddy"
API = "/apis/gateway.networking.k8s.io/v1"
PATCH = {"Content-Type": "application/merge-patch+json"}
SLOTS = 100
PERIOD = 0.1
NO_BACKEND, NO_WEIGHT, NO_CLUSTER = 404, 500, 503  # what Envoy answers
REQUEST_SECONDS = 15.0
Object = Mapping[str, Any]


def definitions() -> list[Path]:
    """The Gateway API's standard CRDs, from its Go module (needs the network the first
    time).
    """
    folder = module(CRDS, "sigs.k8s.io/gateway-api") / "config/crd/standard"
    return [folder / f"gateway.networking.k8s.io_{kind}.yaml" for kind in ("gatewayclasses", "gateways", "httproutes")]


def share(weights: Sequence[int]) -> list[int]:
    """For each of the slots, in turn, the index of its backend: as even as it can be;
    empty when nothing has weight.
    """
    total, given, slots = sum(weights), [0] * len(weights), list[int]()
    for slot in range(1, SLOTS + 1 if total else 1):
        behind = [weight * slot / total - given[index] for index, weight in enumerate(weights)]
        chosen = behind.index(max(behind))
        given[chosen] += 1
        slots.append(chosen)
    return slots


@dataclass(frozen=True)
class Programmed:
    """Of a route: its Gateways, hostnames, and the seconds of a request (0: any)."""

    at: frozenset[tuple[str, str]]
    hosts: tuple[str, ...]
    seconds: float


class StandIn:
    """Follows every HTTPRoute whose parent is a Gateway of class ``caddy``; ``real`` says
    where a cluster address really is.
    """

    def __init__(self, cluster: Cluster, address: str, port: int, real: Callable[[str], str]) -> None:
        self._cluster, self.address, self.port, self._real = cluster, address, port, real
        self.folder = cluster.folder / "gateway"
        (self.folder / "slots").mkdir(parents=True, exist_ok=True)
        self._admin = self.folder / "admin.sock"
        self.request_seconds = REQUEST_SECONDS
        self._programmed: dict[str, Programmed] | None = None
        self._clusters: dict[str, set[str]] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    @property
    def url(self) -> str:
        return f"http://{self.address}:{self.port}"

    def gateway(self, namespace: str, name: str = "gateway") -> dict[str, Any]:
        """The Gateway to apply."""
        listener = {"name": "http", "protocol": "HTTP", "port": 80, "allowedRoutes": {"namespaces": {"from": "All"}}}
        spec = {"gatewayClassName": CLASS, "listeners": [listener]}
        meta = {"name": name, "namespace": namespace}
        return {"apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway", "metadata": meta, "spec": spec}

    def start(self) -> None:
        install(self._cluster)
        (self.folder / "caddy.json").write_text(json.dumps(self._configuration({})))
        self._cluster.programs.start("gateway", [caddy(), "run", "--config", self.folder / "caddy.json"])
        self._cluster.programs.wait_for("gateway", self._admin.exists)
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        self._cluster.programs.stop("gateway")

    def _run(self) -> None:
        while not self._stop.wait(PERIOD):
            with suppress(httpx.HTTPError):  # the API server is down for a test; what is programmed stays
                self._serve()

    def _serve(self) -> None:
        gateways = {
            (one["metadata"]["namespace"], one["metadata"]["name"]): one
            for one in self._cluster.listed(f"{API}/gateways")
            if one["spec"]["gatewayClassName"] == CLASS
        }
        services = {
            (one["metadata"]["namespace"], one["metadata"]["name"]): one
            for one in self._cluster.listed("/api/v1/services")
        }
        routes: dict[str, Programmed] = {}
        for route in sorted(self._cluster.listed(f"{API}/httproutes"), key=age):
            parents = [parent for parent in route["spec"].get("parentRefs", ()) if parent_of(route, parent) in gateways]
            if parents:
                key = f"{route['metadata']['namespace']}.{route['metadata']['name']}"
                made = self._programmed_as(route, parents)
                refused = refusal(route, made, [gateways[parent_of(route, one)] for one in parents], routes)
                if not refused:
                    routes[key] = made
                resolved = self._program(key, route, services)
                if resolved is not None:
                    self._tell_route(route, parents, refused, resolved)
        if self._must_load(routes):
            self._load(routes)
        for key in (self._programmed or {}).keys() - routes.keys():
            self._clusters.pop(key, None)
            self._lead(key, [self._answer(NO_BACKEND)] * SLOTS)
        for gateway in gateways.values():
            self._tell_gateway(gateway)

    def _programmed_as(self, route: Object, parents: Sequence[Object]) -> Programmed:
        limits = [rule.get("timeouts", {}).get("request") for rule in route["spec"].get("rules", ())[:1]]
        seconds = float(limits[0].removesuffix("s")) if limits and limits[0] else self.request_seconds
        at = frozenset(parent_of(route, parent) for parent in parents)
        return Programmed(at, tuple(route["spec"].get("hostnames", ())), seconds)

    def _program(self, key: str, route: Object, services: Mapping[tuple[str, str], Object]) -> tuple[str, str] | None:
        """Write the slots of a route's first rule; the reason and message of its
        ResolvedRefs. None: it is not known to all of the gateway yet.
        """
        namespace = route["metadata"]["namespace"]
        refs = [ref for rule in route["spec"].get("rules", ())[:1] for ref in rule.get("backendRefs", ())]
        there = [services.get((ref.get("namespace", namespace), ref["name"])) for ref in refs]
        known = self._clusters.get(key, set())
        self._clusters[key] = {ref["name"] for ref in refs}
        fresh = [ref for ref in refs if ref.get("weight", 1) and ref["name"] not in known]
        addresses = [
            self._answer(NO_WEIGHT) if not service else self._answer(NO_CLUSTER) if ref in fresh
            else f"{self._real(service['spec']['clusterIP'])}:{ref['port']}"
            for ref, service in zip(refs, there, strict=True)
        ]  # fmt: skip
        nobody = [self._answer(NO_WEIGHT if refs else NO_BACKEND)] * SLOTS
        chosen = [addresses[index] for index in share([ref.get("weight", 1) for ref in refs])]
        self._lead(key, chosen or nobody)
        if not refs:
            return "Degraded", "at least one backend must be named"
        if not all(there):
            return "BackendNotFound", "a backend's Service does not exist"
        return None if fresh else ("ResolvedRefs", "")

    def _lead(self, key: str, addresses: Sequence[str]) -> None:
        """Write the slots of a route."""
        folder = self.folder / "slots" / key
        folder.mkdir(exist_ok=True)
        for slot, text in enumerate(addresses):
            file = folder / f"{slot:02}"
            if not file.exists() or file.read_text() != text:
                written = folder / "new"
                written.write_text(text)
                written.replace(file)

    def _answer(self, status: int) -> str:
        """Where nothing but this status is answered."""
        return f"unix/{self.folder}/{status}.sock"

    def _configuration(self, routes: Mapping[str, Programmed]) -> dict[str, Any]:
        """A request of a route with a limit takes a way through a server that has it."""
        through = f"unix/{self.folder}/within-"
        made, within = list[Any](), dict[float, list[Any]]()
        for key, one in reversed([*routes.items()]):  # of two tests' Gateways that share an address, the newer
            slots = [f"{{file.{self.folder / 'slots' / key / f'{slot:02}'}}}" for slot in range(SLOTS)]
            direct = {"match": [{"host": one.hosts}] if one.hosts else [], "handle": [proxied(slots)], "terminal": True}
            if one.seconds:
                within.setdefault(one.seconds, []).append(direct)
            made.append(direct | ({"handle": [proxied([f"{through}{one.seconds:g}"])]} if one.seconds else {}))
        made.append({"handle": [answered(NO_BACKEND)]})
        servers = {"gateway": {"listen": [f"{self.address}:{self.port}"], "routes": made}}
        servers |= {
            f"answers {status}": {"listen": [self._answer(status)], "routes": [{"handle": [answered(status)]}]}
            for status in (NO_BACKEND, NO_WEIGHT, NO_CLUSTER)
        }
        for seconds, limited in within.items():
            limit: dict[str, Any] = {
                "listen": [f"{through}{seconds:g}"],
                "write_timeout": f"{seconds}s",
                "routes": limited,
            }
            servers[f"within {seconds}"] = limit
        http = {"servers": {name: {"automatic_https": {"disable": True}, **one} for name, one in servers.items()}}
        logging = {"logs": {"default": {"level": "WARN"}}}
        admin = {"listen": f"unix/{self._admin}", "config": {"persist": False}}
        return {"admin": admin, "logging": logging, "apps": {"http": http}}

    def _must_load(self, routes: Mapping[str, Programmed]) -> bool:
        """Not for a route that has gone, unless it hides an older one: a reload may end
        the connections of another test.
        """
        known = self._programmed
        if known is None or any(known.get(key) != made for key, made in routes.items()):
            return True
        gone = [key not in routes for key in known]
        return False in gone and True in gone[gone.index(False) :]

    def _load(self, routes: dict[str, Programmed]) -> None:
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(self._admin))) as client:
            client.post("http://caddy/load", json=self._configuration(routes)).raise_for_status()
        self._programmed = routes

    def _tell_route(
        self, route: Object, parents: Sequence[Object], refused: tuple[str, str] | None, resolved: tuple[str, str]
    ) -> None:
        seen = route["metadata"]["generation"]
        found = "True" if resolved[0] == "ResolvedRefs" else "False"
        accepted = ("False", *refused) if refused else ("True", "Accepted", "")
        conditions = [condition("Accepted", *accepted, seen), condition("ResolvedRefs", found, *resolved, seen)]
        status = {
            "parents": [
                {"parentRef": parent, "controllerName": CONTROLLER, "conditions": conditions} for parent in parents
            ]
        }
        self._tell(
            f"{API}/namespaces/{route['metadata']['namespace']}/httproutes/{route['metadata']['name']}", route, status
        )

    def _tell_gateway(self, gateway: Object) -> None:
        seen = gateway["metadata"]["generation"]
        status = {
            "addresses": [{"type": "IPAddress", "value": self.address}],
            "conditions": [condition(kind, "True", kind, "", seen) for kind in ("Accepted", "Programmed")],
            "listeners": [
                {
                    "name": listener["name"],
                    "attachedRoutes": 0,
                    "supportedKinds": [{"group": "gateway.networking.k8s.io", "kind": "HTTPRoute"}],
                    "conditions": [condition(kind, "True", kind, "", seen) for kind in ("Accepted", "Programmed")],
                }
                for listener in gateway["spec"]["listeners"]
            ],
        }
        self._tell(
            f"{API}/namespaces/{gateway['metadata']['namespace']}/gateways/{gateway['metadata']['name']}",
            gateway,
            status,
        )

    def _tell(self, path: str, one: Object, status: dict[str, Any]) -> None:
        if bare(one.get("status", {})) | bare(status) != bare(one.get("status", {})):
            self._cluster.client.patch(f"{path}/status", json={"status": status}, headers=PATCH)


def age(one: Object) -> tuple[str, str, str]:
    """The oldest first; of the same second, by the alphabet."""
    meta = one["metadata"]
    return meta["creationTimestamp"], meta["namespace"], meta["name"]


def refusal(
    route: Object, made: Programmed, gateways: Sequence[Object], older: Mapping[str, Programmed]
) -> tuple[str, str] | None:
    """Why no gateway takes the route; ``older``: those that were taken."""
    home = route["metadata"]["namespace"]
    if not any(allows(gateway, home) for gateway in gateways):
        return "NotAllowedByListeners", f"no listener allows namespace {home}"
    same = (key for key, one in older.items() if {*made.hosts} & {*one.hosts} or made.hosts == one.hosts)
    taken = next((key for key in same if made.at & older[key].at), None)
    return ("RuleMatchConflict", f"{taken} is older and has it") if taken else None


def allows(gateway: Object, namespace: str) -> bool:
    spaces = [one.get("allowedRoutes", {}).get("namespaces", {}).get("from") for one in gateway["spec"]["listeners"]]
    return "All" in spaces or gateway["metadata"]["namespace"] == namespace


def proxied(upstreams: Sequence[str]) -> dict[str, Any]:
    return {
        "handler": "reverse_proxy", "flush_interval": -1, "upstreams": [{"dial": one} for one in upstreams],
        "load_balancing": {"selection_policy": {"policy": "round_robin"}},
    }  # fmt: skip


def answered(status: int) -> dict[str, Any]:
    return {"handler": "static_response", "status_code": status}


def parent_of(route: Object, parent: Object) -> tuple[str, str]:
    return parent.get("namespace", route["metadata"]["namespace"]), parent["name"]


def condition(kind: str, status: str, reason: str, message: str, seen: int) -> dict[str, Any]:
    stamp = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {
        "type": kind,
        "status": status,
        "reason": reason,
        "message": message,
        "observedGeneration": seen,
        "lastTransitionTime": stamp,
    }


def bare(status: Any) -> Any:
    """A status without its times, to tell whether it has changed."""
    if isinstance(status, dict):
        return {key: bare(value) for key, value in status.items() if key != "lastTransitionTime"}
    return [bare(one) for one in status] if isinstance(status, list) else status


def install(cluster: Cluster) -> None:
    """The Gateway API's definitions, and the class ``caddy``."""
    for file in definitions():
        cluster.kubectl("apply", "--server-side", "--force-conflicts", "-f", str(file))
    names = [f"crd/{kind}.gateway.networking.k8s.io" for kind in ("gatewayclasses", "gateways", "httproutes")]
    cluster.kubectl("wait", "--for=condition=Established", *names, "--timeout=60s")
    meta = {"name": CLASS}
    cluster.apply(
        {
            "apiVersion": "gateway.networking.k8s.io/v1",
            "kind": "GatewayClass",
            "metadata": meta,
            "spec": {"controllerName": CONTROLLER},
        }
    )


@contextmanager
def running_gateway(cluster: Cluster, address: str, port: int, real: Callable[[str], str] = str) -> Iterator[StandIn]:
    """It listens on ``address`` and ``port``, for the length of the block. ``real``:
    ``played_pod.loopback`` where a node is played.
    """
    made = StandIn(cluster, address, port, real)
    try:
        made.start()
        yield made
    finally:
        made.close()
