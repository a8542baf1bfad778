"""Reading a cluster: lists to a deadline; a watch only tells when to look again, and a budget how often."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from typing import Any

from delivery.places.client import Client, Forbidden, Status
from delivery.places.objects import KINDS, Object, from_object, path
from delivery.resources import Observed, Ref, World

PER_MINUTE = 54  # of sixty; the lease takes the rest
LONGEST = 15.0
PAGE = 500
OURS = ("ConfigMap", "Deployment", "Service", "Job", "HTTPRoute")
TAIL_LINES = 400
SILENCE = 60.0
CONTAINERS = {"Job": "step", "Deployment": "engine"}


class Look:
    """Reads of one namespace. What we may not see, or what the cluster does not have, is not there."""

    def __init__(self, client: Client, namespace: str) -> None:
        self.client, self.namespace = client, namespace
        self.since = ""
        self._absent = set[str]()
        self._nodes: tuple[Object, ...] | None = None

    def listed(self, kind: str, query: Mapping[str, str] | None = None) -> list[Object]:
        """All pages; once more from the start when the first page has become too old meanwhile."""
        found: list[Object] = []
        for _ in range(3):
            found = []
            more: dict[str, Any] = {"limit": PAGE, **(query or {})}
            try:
                while True:
                    page = self.client.call("GET", path(kind, self.namespace), more)
                    found += [{**item, "kind": kind} for item in page["items"]]
                    if kind == "Pod":
                        self.since = page["metadata"]["resourceVersion"]
                    if not page["metadata"].get("continue"):
                        return found
                    more["continue"] = page["metadata"]["continue"]
            except Status as status:
                if status.code != 410:
                    raise
        return found

    def maybe(self, kind: str, query: Mapping[str, str] | None = None) -> list[Object]:
        if kind in self._absent:
            return []
        try:
            return self.listed(kind, query)
        except Status as status:
            if status.code != 404:
                raise
            self._absent.add(kind)
            return []

    def world(self, delivery: str) -> World:
        mine, now = {"labelSelector": f"model-delivery/delivery={delivery}"}, time.time()
        objects: dict[Ref, Observed] = {}
        for kind in OURS:
            for found in self.maybe(kind, mine):
                seen = from_object(found)
                objects[seen.resource.ref] = seen
        claims = self.listed("PersistentVolumeClaim")
        objects |= {Ref(c["kind"], c["metadata"]["name"]): from_object(c) for c in claims}
        pods = tuple(self._with_log(pod) for pod in self.listed("Pod", mine))
        beside = {
            "Pod": pods,
            "Event": tuple(self.maybe("Event", {"fieldSelector": "type!=Normal"})),
            "EndpointSlice": tuple(self.maybe("EndpointSlice", mine)),
            "Node": self.nodes() if any(_unscheduled(pod) for pod in pods) else (),
        }
        return World(delivery, objects, now, beside)

    def nodes(self) -> tuple[Object, ...]:
        """Every node; empty where we may not see them."""
        if self._nodes is None:
            try:
                self._nodes = tuple(self.client.call("GET", "/api/v1/nodes")["items"])
            except Forbidden:
                self._nodes = ()
        return self._nodes

    def forget(self) -> None:
        """Nodes come and go: look again."""
        self._nodes = None

    def everybodys_pods(self) -> list[Object] | None:
        """Of every namespace; None where we may not see them."""
        try:
            return list(self.client.call("GET", "/api/v1/pods", {"fieldSelector": "status.phase!=Succeeded,status.phase!=Failed"})["items"])
        except Forbidden:
            return None

    def container(self, ref: Ref) -> tuple[Object | None, Mapping[str, Any]]:
        """The newest pod of a Job or Deployment, and the state of its main container."""
        label = "batch.kubernetes.io/job-name" if ref.kind == "Job" else "model-delivery/object"
        pods = self.listed("Pod", {"labelSelector": f"{label}={ref.name}"})
        if not pods:
            return None, {}
        pod = max(pods, key=lambda one: str(one["metadata"]["creationTimestamp"]))
        if pod["status"].get("phase") in ("Failed", "Succeeded") and not pod["status"].get("containerStatuses"):
            return pod, {"terminated": {}}
        return pod, _state(pod, CONTAINERS[ref.kind])

    def log(self, pod: Object, ref: Ref, *, follow: bool) -> Iterator[bytes]:
        query = {"container": CONTAINERS[ref.kind]} | ({"follow": "true"} if follow else {})
        try:
            yield from self.client.lines(f"{path('Pod', self.namespace, pod['metadata']['name'])}/log", query, SILENCE)
        except Status:  # the pod or its log is gone: what is missing is told by who reads
            return

    def changes(self, delivery: str, seconds: float) -> None:
        """Return when a pod of ours has changed since the last look, or after ``seconds``."""
        start = time.monotonic()
        query = {"watch": "1", "labelSelector": f"model-delivery/delivery={delivery}", "timeoutSeconds": str(max(1, round(seconds)))}
        if self.since:
            try:
                watch = self.client.lines(path("Pod", self.namespace), query | {"resourceVersion": self.since}, seconds)
                for line in watch:
                    if json.loads(line).get("type") != "ERROR":
                        return
                    break
            except (Status, ValueError):
                pass
        time.sleep(max(0.0, seconds - (time.monotonic() - start)))

    def _with_log(self, pod: Object) -> Object:
        """With the end of the engine's log, where the engine is not ready: of the container before, where it has just been restarted."""
        status = next((s for s in pod["status"].get("containerStatuses", ()) if s["name"] == CONTAINERS["Deployment"]), None)
        if status is None or status["ready"] or not ({"running", "terminated"} & status["state"].keys() or status.get("lastState")):
            return pod
        query: dict[str, Any] = {"container": CONTAINERS["Deployment"], "tailLines": TAIL_LINES}
        query |= {"previous": "true"} if "running" in status["state"] and status.get("restartCount") else {}
        try:
            lines = list(self.client.lines(f"{path('Pod', self.namespace, pod['metadata']['name'])}/log", query, SILENCE))
        except (Status, Forbidden):
            lines = []
        return {**pod, "log": b"\n".join(lines)[-65536:].decode(errors="replace")}


class Pace:
    """How often to look while waiting: soon at first, then every 15 s and whenever the watch says so; never above the budget."""

    def __init__(self, client: Client, look: Look) -> None:
        self.client, self.look = client, look
        self._looks, self._began, self._last = 0, 0.0, 0

    def restart(self, *, acted: bool) -> None:
        """After an effect the waiting begins anew."""
        if acted:
            self._looks = 0

    def wait(self, delivery: str, timeout: float) -> None:
        if self._looks == 0:
            self._began = time.monotonic()
        self._looks += 1
        self.look.changes(delivery, min(timeout, LONGEST, 0.5 * 2 ** (self._looks - 1)))
        cost = len(KINDS)
        while self._spent() + cost > PER_MINUTE:
            time.sleep(0.5)

    def _spent(self) -> int:
        since = max(self._began, time.monotonic() - 60)
        return sum(at >= since for at in self.client.asked)


def _state(pod: Object, container: str) -> Mapping[str, Any]:
    for status in pod["status"].get("containerStatuses", ()):
        if status["name"] == container:
            state: dict[str, Any] = status["state"]
            return state
    return {}


def _unscheduled(pod: Object) -> bool:
    return any(c["type"] == "PodScheduled" and c["status"] == "False" for c in pod["status"].get("conditions", ()))
