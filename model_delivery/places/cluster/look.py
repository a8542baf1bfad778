"""Reading a cluster: lists to a deadline; a watch only tells when to look again, and a budget how often."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from model_delivery.places.cluster.client import Broken, Client, Forbidden, Status
from model_delivery.places.cluster.objects import (
    Object,
    adoption_of,
    delivery_of,
    from_object,
    is_made_by_controller,
    place_of,
)
from model_delivery.targets.kubernetes.kinds import CLAIM, CONFIG_MAP, ENDPOINT_SLICE, EVENT, JOB, POD, SERVICE
from model_delivery.targets.kubernetes.pod import pod_labels
from model_delivery.values.kind import RELEASE, Kind
from model_delivery.values.resources import ENGINES, Observed, Ref, World

ON_TIME, ON_CHANGE = (
    36,
    50,
)  # requests a minute, the lease's too: some are kept back for a change, and for a look at everything
SCHEDULE = (0.5, 1.0, 2.0, 5.0, 9.0)  # what can no longer come is told within 10 s
PAGE = 500
OLD = 28.0
SETTLING = 0.3  # a pod's changes come in flocks: one look sees them all
STEP = "step"  # the container of a step's pod: its log is its output, read where it is wanted
COMING_UP = (None, "ContainerCreating", "PodInitializing")  # what a container waits for that may well start
TAIL_LINES = 400
SILENCE = 60.0


class Look:
    """Reads of one namespace. What we may not see, or what the cluster does not have, is not there."""

    def __init__(self, client: Client, namespace: str, kinds: tuple[Kind, ...]) -> None:
        self.client, self.namespace, self.kinds = client, namespace, kinds
        self.since = ""
        self._absent = set[Kind]()
        self._nodes: tuple[Object, ...] | None = None
        self._seen: dict[str, Any] = {}
        self._uids = set[str]()
        self._known: dict[Kind, list[Object]] = {}
        self._known_at = -math.inf
        self.waited = False
        self.price = 1  # requests of the last look

    def listed(self, kind: Kind, query: Mapping[str, str] | None = None) -> list[Object]:
        """All pages; once more from the start when the first page has become too old meanwhile."""
        found: list[Object] = []
        for _ in range(3):
            found = []
            more: dict[str, Any] = {"limit": PAGE, **(query or {})}
            try:
                while True:
                    page = self.client.call("GET", kind.path(self.namespace), more)
                    found += [{**item, "kind": kind.name} for item in page["items"]]
                    if kind == POD:
                        self.since = page["metadata"]["resourceVersion"]
                    if not page["metadata"].get("continue"):
                        return found
                    more["continue"] = page["metadata"]["continue"]
            except Status as status:
                if status.code != 410:
                    raise
        return found

    def maybe(self, kind: Kind, query: Mapping[str, str] | None = None) -> list[Object]:
        if kind in self._absent:
            return []
        try:
            return self.listed(kind, query)
        except (Status, Forbidden) as refused:
            if not kind.optional if isinstance(refused, Forbidden) else refused.code != 404:
                raise
            self._absent.add(kind)
            return []

    def world(self, delivery: str) -> World:
        mine, now, began = {"labelSelector": f"model-delivery/delivery={delivery}"}, time.time(), time.monotonic()
        self._list_ours(mine)
        observed = [from_object(found, kind) for kind in self.kinds for found in self._known[kind]]
        objects = {seen.resource.ref: seen for seen in observed}
        adopted = self._adopted_objects(delivery)
        objects |= {
            seen.resource.ref: seen for seen in self._unmarked(delivery, adopted) if seen.resource.ref not in objects
        }
        listed = [_as_ours(pod, delivery, adopted) for pod in self.listed(POD, None if adopted else mine)]
        listed = [pod for pod in listed if delivery_of(pod) == delivery]
        self._seen = {pod["metadata"]["name"]: _state_of(pod) for pod in listed}
        if any(pod["status"].get("phase") == "Pending" for pod in listed):
            objects |= {Ref(CLAIM, c["metadata"]["name"]): from_object(c, CLAIM) for c in self.listed(CLAIM)}
        pods = tuple(self._with_log(pod) for pod in listed)
        beside = {
            "Pod": pods,
            "Event": tuple(self.maybe(EVENT, {"fieldSelector": "type!=Normal"}))
            if any(self._known[kind] for kind in self.kinds if kind.eventful) or _events_tell(listed, self._known[JOB])
            else (),
            "EndpointSlice": tuple(self.maybe(ENDPOINT_SLICE, mine)) if self._known[SERVICE] else (),
            "Node": self.nodes() if any(_unscheduled(pod) for pod in pods) else (),
        }
        self.price = sum(at >= began for at in self.client.asked)
        return World(delivery, objects, now, beside)

    def _adopted_objects(self, delivery: str) -> dict[str, Object]:
        """By release, what its ConfigMap says of the object that was adopted as it."""
        found = {
            str(one["metadata"]["labels"].get("model-delivery/release")): adoption_of(one)
            for one in self._known[CONFIG_MAP]
        }
        mine = {release: dict(said) for release, said in found.items() if said is not None}
        self._uids |= {said["uid"] for said in mine.values()}
        return mine

    def _unmarked(self, delivery: str, adopted: Mapping[str, Object]) -> Iterator[Observed]:
        """Adopted objects that carry no label of ours."""
        for release, said in adopted.items():
            kind = next((kind for kind in self.kinds if kind.bare and kind.name == said["kind"]), None)
            for live in self.maybe(kind, {"fieldSelector": f"metadata.name={said['name']}"}) if kind else ():
                seen = from_object(live, kind) if kind else None
                if seen and live["metadata"]["uid"] == said["uid"] and delivery_of(live) is None:
                    resource = replace(seen.resource, role="release", delivery=delivery, release=release)
                    yield replace(seen, resource=resource)

    def is_adopted(self, live: Object) -> bool:
        """Was it somebody's, and is it a release of ours since?"""
        return live["metadata"]["uid"] in self._uids

    def _list_ours(self, mine: Mapping[str, str]) -> None:
        """In a wait, what only we make or change is not asked for at every look."""
        fresh = not self.waited or time.monotonic() - self._known_at > OLD
        small = {"labelSelector": f"{mine['labelSelector']},model-delivery/kind!=Report"}
        for kind in self.kinds:
            if fresh or (not kind.steady and self._known[kind]):
                self._known[kind] = [found for found in self.maybe(kind, small) if not is_made_by_controller(found)]
        self._known_at = time.monotonic() if fresh else self._known_at
        self.waited = False

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
            return list(
                self.client.call(
                    "GET", "/api/v1/pods", {"fieldSelector": "status.phase!=Succeeded,status.phase!=Failed"}
                )["items"]
            )
        except Forbidden:
            return None

    def container(self, ref: Ref) -> tuple[Object | None, Mapping[str, Any]]:
        """The newest pod of a Job or Deployment, and the state of its main container."""
        label = "batch.kubernetes.io/job-name" if ref.kind == JOB else "model-delivery/object"
        pods = self.listed(POD, {"labelSelector": f"{label}={ref.name}"}) or self._adopted_pods(ref)
        if not pods:
            return None, {}
        pod = max(pods, key=lambda one: str(one["metadata"]["creationTimestamp"]))
        if pod["status"].get("phase") in ("Failed", "Succeeded") and not pod["status"].get("containerStatuses"):
            return pod, {"terminated": {}}
        return pod, _state(pod, _main(pod))

    def _adopted_pods(self, ref: Ref) -> list[Object]:
        delivery, _, release = ref.name.rpartition("-")
        kind, name = place_of(delivery, Ref(RELEASE, release))
        stored = self.maybe(kind, {"fieldSelector": f"metadata.name={name}"}) if ref.kind != JOB else []
        said = next(map(adoption_of, stored), None)
        adopted = {release: dict(said)} if said else {}
        pods = [_as_ours(pod, delivery, adopted) for pod in self.listed(POD)] if adopted else []
        return [pod for pod in pods if pod["metadata"].get("labels", {}).get("model-delivery/object") == ref.name]

    def servers(self, delivery: str, release: str) -> Iterator[str]:
        """The base address of each engine of a release: a pod's own, never a balancer's."""
        query = {
            "labelSelector": f"model-delivery/delivery={delivery},model-delivery/release={release},model-delivery/role=release"
        }
        for pod in self.listed(POD, query):
            ports = next((c.get("ports") for c in pod["spec"]["containers"] if c["name"] in ENGINES), None)
            address = pod["status"].get("podIP", "")
            if ports and address:
                yield f"http://{f'[{address}]' if ':' in address else address}:{ports[0]['containerPort']}"

    def log(self, pod: Object, *, follow: bool) -> Iterator[bytes]:
        query = {"container": _main(pod)} | ({"follow": "true"} if follow else {})
        try:
            yield from self.client.lines(f"{POD.path(self.namespace, pod['metadata']['name'])}/log", query, SILENCE)
        except Status:  # the pod or its log is gone: what is missing is told by who reads
            return

    def changes(self, delivery: str, seconds: float) -> bool:
        """Wait for ``seconds``, or until a pod of ours is in another state than at the last look: True."""
        start = time.monotonic()
        query = {
            "watch": "1",
            "labelSelector": f"model-delivery/delivery={delivery}",
            "timeoutSeconds": str(max(1, math.ceil(seconds))),
        }
        if self.since:
            try:
                for line in self.client.lines(
                    POD.path(self.namespace), query | {"resourceVersion": self.since}, seconds
                ):
                    said = json.loads(line)
                    if said["type"] == "ERROR":
                        break
                    name = said["object"]["metadata"]["name"]
                    if said["type"] == "DELETED" or self._seen.get(name) != _state_of(said["object"]):
                        return True
                    if time.monotonic() - start > seconds:
                        return False
            except (Broken, Status, ValueError):
                pass
        time.sleep(max(0.0, seconds - (time.monotonic() - start)))
        return False

    def _with_log(self, pod: Object) -> Object:
        """With the end of the engine's log, where the engine is not ready: of the container before, where it has just been restarted."""
        status = next((s for s in pod["status"].get("containerStatuses", ()) if s["name"] == _main(pod)), None)
        if (
            status is None
            or status["name"] == STEP
            or "deletionTimestamp" in pod["metadata"]
            or status["ready"]
            or not ({"running", "terminated"} & status["state"].keys() or status.get("lastState"))
        ):
            return pod
        query: dict[str, Any] = {"container": status["name"], "tailLines": TAIL_LINES}
        query |= {"previous": "true"} if "running" in status["state"] and status.get("restartCount") else {}
        try:
            lines = list(self.client.lines(f"{POD.path(self.namespace, pod['metadata']['name'])}/log", query, SILENCE))
        except (Broken, Status, Forbidden):
            lines = []
        return {**pod, "log": b"\n".join(lines)[-65536:].decode(errors="replace")}


class Pace:
    """How often to look while waiting: soon at first, then every 9 s, and when a pod's state has changed; never above the budget."""

    def __init__(self, client: Client, look: Look) -> None:
        self.client, self.look = client, look
        self._looks, self._began = 0, 0.0

    def restart(self, *, acted: bool) -> None:
        """After an effect the waiting begins anew."""
        if acted:
            self._looks = 0

    def wait(self, delivery: str, timeout: float) -> None:
        now = time.monotonic()
        end, self._began = now + timeout, self._began if self._looks else now
        cost = self.look.price if self._looks else 1
        planned = SCHEDULE[min(self._looks, len(SCHEDULE) - 1)]
        self.look.waited = self._looks > 0
        self._looks += 1
        changed = self.look.changes(delivery, min(timeout, planned))
        if changed:
            time.sleep(min(SETTLING, max(0.0, end - time.monotonic())))
        while (rest := min(self._over_budget(cost, ON_CHANGE if changed else ON_TIME), end - time.monotonic())) > 0:
            if changed:
                time.sleep(rest)
            else:
                changed = self.look.changes(delivery, rest)

    def _over_budget(self, cost: int, limit: int) -> float:
        """For how many seconds a look is more than ``limit`` requests a minute allow. One that is dear itself counts as half of them: it must come some day."""
        spent = self._spent(self._began)
        over = len(spent) + min(cost, limit // 2) - limit
        return spent[over - 1] + 60.0 - time.monotonic() if over > 0 else 0.0

    def _spent(self, since: float) -> list[float]:
        """When requests were sent, of the last minute's."""
        start = max(since, time.monotonic() - 60)
        return [at for at in self.client.asked if at >= start]


def _main(pod: Object) -> str:
    """The container that the pod is for: in one that somebody else made, the first where none has a name that we know."""
    names = [str(one["name"]) for one in pod["spec"]["containers"]]
    return next((name for name in names if name in (STEP, *ENGINES)), names[0])


def _as_ours(pod: Object, delivery: str, adopted: Mapping[str, Object]) -> Object:
    """A pod of an adopted release, with the labels that the pods of ours carry."""
    meta = pod["metadata"]
    labels = meta.get("labels") or {}
    for release, said in adopted.items():
        wanted = said["pods"].get("labels")
        if wanted.items() <= labels.items() if wanted else meta["name"].startswith(said["pods"]["prefix"]):
            return {**pod, "metadata": {**meta, "labels": {**labels, **pod_labels(delivery, release)}}}
    return pod


def _state(pod: Object, container: str) -> Mapping[str, Any]:
    for status in pod["status"].get("containerStatuses", ()):
        if status["name"] == container:
            state: dict[str, Any] = status["state"]
            return state
    return {}


def _events_tell(pods: list[Object], jobs: list[Object]) -> bool:
    """Is there no pod yet, or one that neither runs well nor has ended, or a Job at work (whose pods may be refused)?"""
    settled = [
        pod["status"].get("phase") == "Succeeded"
        or all(s["ready"] for s in pod["status"].get("containerStatuses") or ({"ready": False},))
        for pod in pods
    ]
    return not settled or not all(settled) or any(not from_object(job, JOB).status["finished"] for job in jobs)


def _state_of(pod: Object) -> Any:
    """What of a pod a wait can turn on. That it is only coming up is told with the next look: each one costs requests."""
    status = pod["status"]
    containers = [
        (s["name"], s["ready"], turn) for s in status.get("containerStatuses", ()) if (turn := _turn(s)) or s["ready"]
    ]
    phase = status.get("phase") if status.get("phase") in ("Failed", "Succeeded") else None
    refused = [
        c.get("reason") for c in status.get("conditions", ()) if c["type"] == "PodScheduled" and c["status"] == "False"
    ]
    return phase, status.get("reason"), containers, refused, "deletionTimestamp" in pod["metadata"]


def _turn(container: Mapping[str, Any]) -> Any:
    """That it has ended, that a step's output can be read, or why it does not start."""
    state = container["state"]
    if "terminated" in state:
        return "terminated", container.get("restartCount", 0)
    if "running" in state:
        return "running" if container["name"] == STEP else None
    reason = state.get("waiting", {}).get("reason")
    return None if reason in COMING_UP else reason


def _unscheduled(pod: Object) -> bool:
    return any(c["type"] == "PodScheduled" and c["status"] == "False" for c in pod["status"].get("conditions", ()))
