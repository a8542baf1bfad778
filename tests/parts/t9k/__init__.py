"""A stand-in for T9k's serving controller, which is not public: it makes real Deployments
and Services of an MLService, and writes its status.

Stated in T9k's manuals: Go templates filled from a release's parameters, and nothing
predefined; a predictor's template laid over the runtime's, its containersResources
replacing those; the claim mounted at /var/lib/t9k/model by subPath; one address for the
service and one for each release; default and canary share the traffic, any other release
has none and its own address; ``address.url`` is there before anything is ready; Ready is
False with no reason at first, then with ``PredictorNotReady``; there is no
observedGeneration; the events ``Created`` and ``Ready``; an edited runtime leaves running
pods alone. Inferred: names of Deployments and Services, labels of a predictor's template
reach Deployment and pods, a service's objects are owned by it and go with it, a release's
reason and message while it is not ready; without a probe Knative's own (a TCP connect to
the port) decides. Unknown, so a test may choose: whether Ready waits for releases without
traffic (``holds``); whether a service is ever ready with a runtime that is not there
(here: no, ``RuntimeNotFound`` is our own word). Not there: Knative and its sidecar,
scaling to zero, transformer, S3, logger, queues, Notebooks. A canary's share of the
traffic is told in the status; only ``gateway`` (a Gateway of tests/parts/gateway) splits
it.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import kopf
import yaml
from kopf._cogs.clients.errors import APINotFoundError

from model_delivery.values import digest
from tests.parts.cluster.control_plane import Cluster
from tests.parts.cluster.waiting import until
from tests.parts.t9k.template import PORT, Object, pod_template

HERE = Path(__file__).parent
API = "/apis/tensorstack.dev/v1beta1"
OWNED = "mlservice.tensorstack.dev/service"
ENTRY = "mlservice.tensorstack.dev/entry"


def definitions() -> list[Object]:
    return list(yaml.safe_load_all((HERE / "crds.yaml").read_text(encoding="utf-8")))


def install(cluster: Cluster, *crds: Object) -> None:
    """``crds`` (default: all of them), until the API server serves them and publishes
    their schema.
    """
    wanted = crds or tuple(definitions())
    cluster.apply(*wanted)
    names = [f"crd/{one['metadata']['name']}" for one in wanted]
    cluster.kubectl("wait", "--for=condition=Established", *names, "--timeout=60s")
    kinds = {one["spec"]["names"]["kind"] for one in wanted}

    def published() -> bool:
        answer = cluster.client.get(f"/openapi/v3{API}")
        return answer.is_success and kinds <= {
            name.rpartition(".")[2] for name in answer.json()["components"]["schemas"]
        }

    until(published, 60, "the API server does not publish T9k's schemas")


@dataclass
class StandIn:
    """``domain`` ends every address: names of Services, unless ``gateway``
    (``NAMESPACE/NAME``) routes by host.

    ``holds``: which releases Ready waits for. ``alter``: a test's own change of a status
    before it is written.
    """

    cluster: Cluster
    domain: str = f"svc:{PORT}"
    gateway: str | None = None
    holds: Literal["routed", "all"] = "routed"
    alter: Callable[[Object], Object] = field(default=lambda status: status)

    def __post_init__(self) -> None:
        self._turn, self._stop, self._ready = threading.Lock(), threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        self._thread.start()
        if not self._ready.wait(60):
            raise RuntimeError("the stand-in for T9k's controller does not start")

    def close(self) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        registry, settings = kopf.OperatorRegistry(), kopf.OperatorSettings()
        settings.posting.enabled = False
        pki = self.cluster.authority.folder

        @kopf.on.login(registry=registry)
        def login(**_: Any) -> kopf.ConnectionInfo:
            return kopf.ConnectionInfo(
                server=self.cluster.url,
                ca_path=pki / "ca.crt",
                certificate_path=pki / "admin.crt",
                private_key_path=pki / "admin.key",
            )

        @kopf.on.event("tensorstack.dev", "v1beta1", "mlservices", registry=registry)
        def service(**event: Any) -> None:
            self.reconcile(event["namespace"], event["name"])

        @kopf.on.event("tensorstack.dev", "v1beta1", "mlserviceruntimes", registry=registry)
        def runtime(**event: Any) -> None:
            for one in self.cluster.listed(f"{API}/namespaces/{event['namespace']}/mlservices"):
                self.reconcile(event["namespace"], one["metadata"]["name"])

        @kopf.on.event("apps", "v1", "deployments", labels={OWNED: kopf.PRESENT}, registry=registry)
        def deployment(**event: Any) -> None:
            self.reconcile(event["namespace"], event["labels"][OWNED])

        with suppress(APINotFoundError):  # a test took its definitions away: there is nothing left to follow
            asyncio.run(
                kopf.operator(
                    registry=registry,
                    settings=settings,
                    clusterwide=True,
                    standalone=True,
                    stop_flag=self._stop,
                    ready_flag=self._ready,
                )
            )

    def reconcile(self, namespace: str, name: str) -> None:
        with self._turn:
            path = f"{API}/namespaces/{namespace}/mlservices/{name}"
            service = self._get(path)
            if service is None or "deletionTimestamp" in service["metadata"]:
                return
            if not service.get("status"):
                self._event(service, "Created", f"A MLService has been created: {name}")
                self._tell(path, service, self._status(service, {}, first=True))
            wrong = {one["name"]: self._release(service, one) for one in service["spec"]["releases"]}
            self._remove_others(service)
            self._route(service)
            self._tell(path, service, self._status(service, wrong))

    def _release(self, service: Object, entry: Object) -> str:
        """Make its Deployment and its Service; why it cannot be (empty: it can)."""
        meta, predictor = service["metadata"], entry["predictor"]
        base, namespace = f"{meta['name']}-predict-{entry['name']}", meta["namespace"]
        where = f"/apis/apps/v1/namespaces/{namespace}/deployments/{base}-00001-deployment"
        runtime = self._get(f"{API}/namespaces/{namespace}/mlserviceruntimes/{predictor['model']['runtime']}")
        now, mark = (
            self._get(where),
            digest({key: value for key, value in predictor.items() if key not in ("minReplicas", "maxReplicas")}),
        )
        replicas = predictor.get("minReplicas", 1)
        if now is not None and now["metadata"]["annotations"][ENTRY] == mark:
            if now["spec"]["replicas"] != replicas:
                self._patch(f"{where}/scale", {"spec": {"replicas": replicas}})
            return ""
        if runtime is None:
            return f'MLServiceRuntime "{predictor["model"]["runtime"]}" not found'
        try:
            template = pod_template(runtime, predictor)
        except ValueError as error:
            return str(error)
        own = {"app": f"{base}-00001", OWNED: meta["name"], "mlservice.tensorstack.dev/release": entry["name"]}
        template["metadata"]["labels"] = template["metadata"].get("labels", {}) | own
        spec = {"replicas": replicas, "selector": {"matchLabels": own}, "template": template}
        self._apply(
            "apps/v1",
            "Deployment",
            service,
            f"{base}-00001-deployment",
            {"spec": spec},
            template["metadata"]["labels"],
            {ENTRY: mark},
        )
        self._service(service, base, own, template)
        return ""

    def _service(self, service: Object, name: str, selector: Object, template: Object) -> None:
        engine = next(one for one in template["spec"]["containers"] if one["name"] == "user-container")
        port = (engine.get("ports") or [{"containerPort": PORT}])[0]["containerPort"]
        self._apply(
            "v1",
            "Service",
            service,
            name,
            {"spec": {"selector": selector, "ports": [{"port": PORT, "targetPort": port}]}},
            selector,
        )

    def _remove_others(self, service: Object) -> None:
        meta = service["metadata"]
        wanted = {one["name"] for one in service["spec"]["releases"]}
        for kind in ("apis/apps/v1", "api/v1"):
            plural = "deployments" if "apps" in kind else "services"
            path = f"/{kind}/namespaces/{meta['namespace']}/{plural}"
            listed = (
                self.cluster.client.get(path, params={"labelSelector": f"{OWNED}={meta['name']}"})
                .raise_for_status()
                .json()["items"]
            )
            for one in listed:
                release = one["metadata"]["labels"].get("mlservice.tensorstack.dev/release")
                if release is not None and release not in wanted and one["metadata"]["name"] != meta["name"]:
                    self.cluster.client.delete(f"{path}/{one['metadata']['name']}")

    def _route(self, service: Object) -> None:
        """The service's own name: by a gateway by weight, else to the default alone."""
        meta, spec = service["metadata"], service["spec"]
        here = self._get(f"/api/v1/namespaces/{meta['namespace']}/services/{meta['name']}-predict-{spec['default']}")
        if here is None:
            return
        ports = [{key: one[key] for key in ("port", "targetPort")} for one in here["spec"]["ports"]]
        self._apply(
            "v1",
            "Service",
            service,
            meta["name"],
            {"spec": {"selector": here["spec"]["selector"], "ports": ports}},
            {OWNED: meta["name"]},
        )
        if self.gateway is None:
            return
        namespace, _, gateway = self.gateway.rpartition("/")
        names = {
            f"{meta['name']}-predict-{release}": {release: 100} for release in (one["name"] for one in spec["releases"])
        }
        for host, weights in {**names, meta["name"]: shares(spec)}.items():
            backends = [
                {"name": f"{meta['name']}-predict-{one}", "port": PORT, "weight": weight}
                for one, weight in weights.items()
                if weight
            ]
            parents = [{"name": gateway, "namespace": namespace}]
            hosts = [self._host(meta, host)]
            route = {"spec": {"parentRefs": parents, "hostnames": hosts, "rules": [{"backendRefs": backends}]}}
            self._apply("gateway.networking.k8s.io/v1", "HTTPRoute", service, host, route, {OWNED: meta["name"]})

    def _host(self, meta: Object, name: str) -> str:
        return f"{name}.{meta['namespace']}.{self.domain}"

    def _status(self, service: Object, wrong: Mapping[str, str], *, first: bool = False) -> Object:
        meta, spec, before = service["metadata"], service["spec"], service.get("status") or {}
        rows, weights = [], shares(spec)
        for entry in spec["releases"]:
            base = f"{meta['name']}-predict-{entry['name']}"
            now = self._get(f"/apis/apps/v1/namespaces/{meta['namespace']}/deployments/{base}-00001-deployment")
            running, asked = (
                (now or {}).get("status", {}).get("availableReplicas", 0),
                entry["predictor"].get("minReplicas", 1),
            )
            ready = now is not None and running >= asked
            row = {
                "name": entry["name"],
                "ready": ready,
                "trafficPercent": weights[entry["name"]],
                "url": f"http://{self._host(meta, base)}",
            }
            row |= {"readyReplicas": running, "totalReplicas": asked}
            row |= (
                {}
                if ready
                else {"reason": "PredictorNotReady", "message": wrong.get(entry["name"]) or "pods are not ready"}
            )
            rows.append(row)
        counted = [row for row in rows if self.holds == "all" or row["trafficPercent"]]
        ready = all(row["ready"] for row in counted)
        reason = {} if ready or first else {"reason": "RuntimeNotFound" if any(wrong.values()) else "PredictorNotReady"}
        conditions = [{"type": "Paused", "status": "False"}, {"type": "Ready", "status": str(ready), **reason}]
        status: Object = {
            "conditions": conditions,
            "releases": rows,
            "address": {"url": f"http://{self._host(meta, meta['name'])}"},
        }
        status |= {"defaultRelease": spec["default"], "canaryRelease": spec.get("canary") or None}
        old = {one["type"]: one for one in before.get("conditions", ())}
        for one in conditions:
            same = old.get(one["type"], {}).get("status") == one["status"]
            one["lastTransitionTime"] = old[one["type"]]["lastTransitionTime"] if same else stamp()
        if ready and old.get("Ready", {}).get("status") != "True":
            self._event(service, "Ready", "the MLservice is ready")
        return self.alter(status)

    def _tell(self, path: str, service: Object, status: Object) -> None:
        if {key: value for key, value in status.items() if value is not None} != service.get("status"):
            service["status"] = self._patch(f"{path}/status", {"status": status}).get("status")

    def _event(self, service: Object, reason: str, message: str) -> None:
        meta = service["metadata"]
        about = {"apiVersion": "tensorstack.dev/v1beta1", "kind": "MLService", "uid": meta["uid"]}
        about |= {"name": meta["name"], "namespace": meta["namespace"]}
        body: Object = {
            "metadata": {"generateName": f"{meta['name']}.", "namespace": meta["namespace"]},
            "involvedObject": about,
        }
        body |= {
            "type": "Normal",
            "reason": reason,
            "message": message,
            "firstTimestamp": stamp(),
            "lastTimestamp": stamp(),
        }
        self.cluster.client.post(f"/api/v1/namespaces/{meta['namespace']}/events", json=body).raise_for_status()

    def _get(self, path: str) -> Object | None:
        answer = self.cluster.client.get(path)
        return None if answer.status_code == 404 else dict(answer.raise_for_status().json())

    def _patch(self, path: str, body: Object) -> Object:
        answer = self.cluster.client.patch(path, json=body, headers={"Content-Type": "application/merge-patch+json"})
        return {} if answer.status_code == 404 else dict(answer.raise_for_status().json())

    def _apply(
        self,
        api: str,
        kind: str,
        service: Object,
        name: str,
        body: Object,
        labels: Object,
        annotations: Object | None = None,
    ) -> None:
        meta = service["metadata"]
        owner = {
            "apiVersion": "tensorstack.dev/v1beta1",
            "kind": "MLService",
            "name": meta["name"],
            "uid": meta["uid"],
            "controller": True,
        }
        about: Object = {
            "name": name,
            "namespace": meta["namespace"],
            "labels": labels,
            "annotations": annotations or {},
        }
        about["ownerReferences"] = [owner | {"blockOwnerDeletion": True}]
        path = f"/{'apis' if '/' in api else 'api'}/{api}/namespaces/{meta['namespace']}/{kind.lower()}s/{name}"
        answer = self.cluster.client.patch(
            path,
            params={"fieldManager": "t9k-stand-in", "force": "true"},
            content=json.dumps({"apiVersion": api, "kind": kind, "metadata": about, **body}),
            headers={"Content-Type": "application/apply-patch+yaml"},
        )
        answer.raise_for_status()


def shares(spec: Object) -> dict[str, int]:
    """Percent of the traffic, of every release."""
    canary = spec.get("canary") or None
    percent = spec.get("canaryTrafficPercent", 0) if canary else 0
    given = {spec["default"]: 100 - percent} | ({canary: percent} if canary else {})
    return {one["name"]: given.get(one["name"], 0) for one in spec["releases"]}


def stamp() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@contextmanager
def running_t9k(cluster: Cluster, **more: Any) -> Iterator[StandIn]:
    """T9k's API, and the stand-in for its controller, for the length of the block; the
    API stays.
    """
    install(cluster)
    made = StandIn(cluster, **more)
    made.start()
    try:
        yield made
    finally:
        made.close()
