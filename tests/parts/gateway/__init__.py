"""A stand-in for a gateway controller (none builds from package registries): it programs
a Caddy from Gateway API HTTPRoutes.

Real: the API's definitions, Gateways, HTTPRoutes, their status, and the proxy that splits
the traffic by weight, exact to 1 %. Not there: matches, filters, TLS, listeners of
different ports, cross-namespace grants. A weight changes without a reload; a new route
reloads Caddy.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
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
NOWHERE = "127.0.0.1:1"
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


class StandIn:
    """Follows every HTTPRoute whose parent is a Gateway of class ``caddy``; ``real`` says
    where a cluster address really is.
    """

    def __init__(self, cluster: Cluster, address: str, port: int, real: Callable[[str], str]) -> None:
        self._cluster, self.address, self.port, self._real = cluster, address, port, real
        self.folder = cluster.folder / "gateway"
        (self.folder / "slots").mkdir(parents=True, exist_ok=True)
        self._admin = self.folder / "admin.sock"
        self._programmed: dict[str, list[str]] | None = None
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
        routes = {}
        for route in self._cluster.listed(f"{API}/httproutes"):
            parents = [parent for parent in route["spec"].get("parentRefs", ()) if parent_of(route, parent) in gateways]
            if parents:
                key = f"{route['metadata']['namespace']}.{route['metadata']['name']}"
                routes[key] = list(route["spec"].get("hostnames", ()))
                found = self._program(key, route, services)
                self._tell_route(route, parents, found)
        if routes != self._programmed:
            self._load(routes)
        for gateway in gateways.values():
            self._tell_gateway(gateway)

    def _program(self, key: str, route: Object, services: Mapping[tuple[str, str], Object]) -> bool:
        """Write the slots of a route's first rule; False: one of its backends is not
        there.
        """
        namespace = route["metadata"]["namespace"]
        refs = [ref for rule in route["spec"].get("rules", ())[:1] for ref in rule.get("backendRefs", ())]
        there = [services.get((ref.get("namespace", namespace), ref["name"])) for ref in refs]
        addresses = [
            f"{self._real(service['spec']['clusterIP'])}:{ref['port']}" if service else NOWHERE
            for ref, service in zip(refs, there, strict=True)
        ]
        chosen = share([ref.get("weight", 1) for ref in refs])
        folder = self.folder / "slots" / key
        folder.mkdir(exist_ok=True)
        for slot in range(SLOTS):
            file, text = folder / f"{slot:02}", addresses[chosen[slot]] if chosen else NOWHERE
            if not file.exists() or file.read_text() != text:
                written = folder / "new"
                written.write_text(text)
                written.replace(file)
        return all(there)

    def _configuration(self, routes: Mapping[str, list[str]]) -> dict[str, Any]:
        made = []
        for key, hosts in routes.items():
            upstreams = [{"dial": f"{{file.{self.folder / 'slots' / key / f'{slot:02}'}}}"} for slot in range(SLOTS)]
            proxy = {
                "handler": "reverse_proxy", "flush_interval": -1, "upstreams": upstreams,
                "load_balancing": {"selection_policy": {"policy": "round_robin"}},
            }  # fmt: skip
            made.append({"match": [{"host": hosts}] if hosts else [], "handle": [proxy], "terminal": True})
        made.append({"match": [], "handle": [{"handler": "static_response", "status_code": 404}], "terminal": True})
        server = {"listen": [f"{self.address}:{self.port}"], "automatic_https": {"disable": True}, "routes": made}
        logging = {"logs": {"default": {"level": "WARN"}}}
        admin = {"listen": f"unix/{self._admin}", "config": {"persist": False}}
        return {"admin": admin, "logging": logging, "apps": {"http": {"servers": {"gateway": server}}}}

    def _load(self, routes: dict[str, list[str]]) -> None:
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(self._admin))) as client:
            client.post("http://caddy/load", json=self._configuration(routes)).raise_for_status()
        self._programmed = routes

    def _tell_route(self, route: Object, parents: Sequence[Object], found: bool) -> None:
        seen = route["metadata"]["generation"]
        resolved = (
            ("True", "ResolvedRefs", "")
            if found
            else ("False", "BackendNotFound", "a backend's Service does not exist")
        )
        conditions = [condition("Accepted", "True", "Accepted", "", seen), condition("ResolvedRefs", *resolved, seen)]
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
        }
        self._tell(
            f"{API}/namespaces/{gateway['metadata']['namespace']}/gateways/{gateway['metadata']['name']}",
            gateway,
            status,
        )

    def _tell(self, path: str, one: Object, status: dict[str, Any]) -> None:
        if bare(one.get("status", {})) | bare(status) != bare(one.get("status", {})):
            self._cluster.client.patch(f"{path}/status", json={"status": status}, headers=PATCH)


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
