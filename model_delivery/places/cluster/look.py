"""Reading a cluster: lists to a deadline; a watch only tells when to look again."""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any

from model_delivery.base import short
from model_delivery.diagnosis.pods import is_ready, living
from model_delivery.places.cluster import pods
from model_delivery.places.cluster.client import Broken, Client, Forbidden, Query, Status
from model_delivery.places.cluster.objects import Object, content, from_object, is_made_by_controller, label, owner
from model_delivery.places.cluster.watching import Watches
from model_delivery.targets import cluster_kinds
from model_delivery.targets.kubernetes.kinds import (
    CLAIM,
    CONFIG_MAP,
    ENDPOINT_SLICE,
    EVENT,
    HTTP_ROUTE,
    JOB,
    POD,
    SERVICE,
)
from model_delivery.targets.kubernetes.release import pod_labels, servers
from model_delivery.values import RELEASE, Kind, Observed, Ref, Server, World

PAGE = 500
OLD = 58.0
USUAL = ("Scheduled", "Created", "Started", "SuccessfulCreate", "SuccessfulDelete", "ScalingReplicaSet")
TELLING = ("FailedBinding", "Killing", "Pulling", "Pulled")
TAIL_LINES = 400
SILENCE = 60.0
RANGE, OPENSHIFT = "openshift.io/sa.scc.uid-range", "/apis/security.openshift.io/v1"
BOOKS = "Record,Release"  # not reports: they are large


class Look:
    """Reads of one namespace. What we may not see, or what the cluster does not have, is
    not there.

    ``price``: the requests of the last look at the world.
    """

    def __init__(self, client: Client) -> None:
        self.client, self.kinds, self.price = client, cluster_kinds(), 1
        self.leaving = frozenset[str]()
        self._since = dict[Kind, str]()
        self._watches, self._changed = Watches(client), set[Kind]()
        self._absent = set[Kind]()
        self._nodes: tuple[Object, ...] | None = None
        self._turns: dict[Ref, Any] = {}
        self._starting = set[str]()
        self._adopted: Mapping[str, Object] = {}
        self._known: dict[Kind, list[Object]] = {}
        self._known_at = -math.inf

    def listed(self, kind: Kind, query: Query = None) -> list[Object]:
        """All pages; once more from the start when the first page has become too old
        meanwhile.
        """
        found: list[Object] = []
        for _ in range(3):
            found.clear()
            try:
                for page in self._pages(kind, {"limit": PAGE, **(query or {})}):
                    found += [{**item, "kind": kind.name} for item in page["items"]]
                    self._since[kind] = page["metadata"]["resourceVersion"]
                break
            except Status as status:
                if status.code != 410:
                    raise
        return found

    def _pages(self, kind: Kind, query: Object) -> Iterator[Object]:
        rest = True
        while rest:
            page = self.client.send("GET", Ref(kind, ""), query)
            yield page
            rest = query["continue"] = page["metadata"].get("continue")

    def get(self, ref: Ref) -> Object | None:
        return self.client.get(ref)

    def maybe(self, kind: Kind, query: Query = None) -> list[Object]:
        if kind not in self._absent:
            try:
                return self.listed(kind, query)
            except (Status, Forbidden) as refused:
                if not kind.optional if isinstance(refused, Forbidden) else refused.code != 404:
                    raise
                self._absent.add(kind)
        return []

    @cached_property
    def knows_timeouts(self) -> bool:
        """Has an HTTPRoute a time limit that can be lifted (Gateway API 1.2)? No server
        takes an object with a field that it does not know.
        """
        try:
            told = self.client.call("GET", f"/openapi/v3/apis/{HTTP_ROUTE.api}")
        except (Status, Forbidden):
            return True
        schemas = told.get("components", {}).get("schemas", {})
        routes = [schema for name, schema in schemas.items() if name.endswith(".HTTPRoute")]
        return not routes or '"timeouts": {' in json.dumps(routes)

    @cached_property
    def gives_users(self) -> bool:
        """OpenShift's namespaces have a range of users and groups each, and refuse
        others. Who may not see a namespace may see that it is one of OpenShift's.
        """
        try:
            try:
                seen = self.client.call("GET", f"/api/v1/namespaces/{self.client.namespace}")
            except Forbidden:
                return bool(self.client.call("GET", OPENSHIFT))
        except (Status, Forbidden):
            return False
        return RANGE in (seen["metadata"].get("annotations") or {})

    def world(self, delivery: str, *, fresh: bool = True) -> World:
        """``fresh``: nothing of it is known from a look before."""
        labelled, now, began = _of(delivery), time.time(), time.monotonic()
        self._list(delivery, fresh=fresh)
        self._adopted = adopted = _adoptions(self._known[CONFIG_MAP])
        ours = [from_object(live, kind) for kind in self.kinds for live in self._known[kind]]
        objects = {seen.resource.ref: seen for seen in (*self._unmarked(delivery, adopted), *ours)}
        listed = [_marked(pod, delivery, adopted) for pod in self.listed(POD, None if adopted else labelled)]
        self._known[POD] = listed = [pod for pod in listed if label(pod, "delivery") == delivery]
        self._turns = {_ref(kind, live): _turn(kind, live) for kind in self._moving for live in self._known[kind]}
        if any(pod["status"].get("phase") == "Pending" for pod in listed):
            claims = (from_object(claim, CLAIM) for claim in self.listed(CLAIM))
            objects |= {claim.resource.ref: claim for claim in claims}
        beside = {
            "Pod": tuple(map(self._with_log, listed)),
            "Event": tuple(self._events()) if self._events_tell(listed) else (),
            "EndpointSlice": tuple(self._known[ENDPOINT_SLICE]),
            "Node": self.nodes() if any(map(pods.unscheduled, listed)) else (),
        }
        self.price = sum(at >= began for at in tuple(self.client.asked))
        return World(delivery, objects, now, beside)

    @property
    def _moving(self) -> list[Kind]:
        """The kinds that a wait may turn on; the pods first."""
        others = (*self.kinds, ENDPOINT_SLICE)
        return [POD, *(kind for kind in others if not kind.steady and self._known.get(kind))]

    def _list(self, delivery: str, *, fresh: bool) -> None:
        """In a wait, what only we make or change is not asked for at every look, nor what
        is watched and was not told to have changed.
        """
        self._heard(delivery, 0)
        fresh = fresh or time.monotonic() - self._known_at > OLD
        for kind in self.kinds:
            if fresh or (kind in self._moving and self._may_have_changed(kind)):
                self._changed.discard(kind)
                items = self.maybe(kind, _of(delivery, "kind!=Report"))
                self._known[kind] = [item for item in items if not is_made_by_controller(item)]
        if not self._known[SERVICE]:
            self._known[ENDPOINT_SLICE] = []
        elif fresh or self._may_have_changed(ENDPOINT_SLICE):
            self._changed.discard(ENDPOINT_SLICE)
            self._known[ENDPOINT_SLICE] = self.maybe(ENDPOINT_SLICE, _of(delivery))
        self._known_at = time.monotonic() if fresh else self._known_at

    def _may_have_changed(self, kind: Kind) -> bool:
        return kind in self._changed or not self._watches.alive(kind)

    def _unmarked(self, delivery: str, adopted: Mapping[str, Object]) -> Iterator[Observed]:
        """Adopted objects that carry no label of ours."""
        bare = {kind.name: kind for kind in self.kinds if kind.bare}
        for release, origin in adopted.items():
            if kind := bare.get(origin["kind"]):
                for live in self.maybe(kind, {"fieldSelector": f"metadata.name={origin['name']}"}):
                    if live["metadata"]["uid"] == origin["uid"] and owner(live) in (None, delivery):
                        seen = from_object(live, kind)
                        resource = replace(seen.resource, role="release", delivery=delivery, release=release)
                        yield replace(seen, resource=resource)

    def _events_tell(self, listed: list[Object]) -> bool:
        """Are there kinds that tell by them, no pod yet, or one that neither runs well
        nor has ended, or a Job at work (whose pods may be refused)?
        """
        return (
            any(self._known[kind] for kind in self.kinds if kind.eventful)
            or not (listed and all(map(pods.settled, listed)))
            or not all(from_object(job, JOB).status["finished"] for job in self._known[JOB])
        )

    def _events(self) -> Iterator[Object]:
        """Warnings, and of the normal ones those that say why something waits or
        ended.
        """
        for event in self.maybe(EVENT, {"fieldSelector": ",".join(f"reason!={reason}" for reason in USUAL)}):
            if event.get("type") != "Normal" or event.get("reason") in TELLING:
                yield event

    def deliveries(self) -> tuple[str, ...]:
        """By their books, and by what runs: books may be gone."""
        books = self.maybe(CONFIG_MAP, {"labelSelector": f"model-delivery/kind in ({BOOKS})"})
        labelled = {"labelSelector": "model-delivery/delivery"}
        running = [live for kind in self.kinds if kind.demand for live in self.maybe(kind, labelled)]
        own = (*books, *(live for live in running if not is_made_by_controller(live)))
        return tuple(sorted({str(label(live, "delivery")) for live in own}))

    def adopted(self, delivery: str) -> dict[str, Object]:
        """By release, what was somebody's and is a release of ours since."""
        return _adoptions(self.maybe(CONFIG_MAP, _of(delivery, "kind=Release")))

    def is_adopted(self, live: Object, delivery: str) -> bool:
        """Is it an object that was somebody's and is a release of ours since, or a pod of
        one?
        """
        adopted = self.adopted(delivery)
        is_one = live["metadata"]["uid"] in (origin["uid"] for origin in adopted.values())
        return is_one or (live["kind"] == POD.name and owner(_marked(live, delivery, adopted)) == delivery)

    def adopter(self, uid: str, delivery: str) -> str | None:
        """Whose release the object ``uid`` is; where it is one of ``delivery``, that."""
        stored = self.maybe(CONFIG_MAP, {"labelSelector": "model-delivery/kind=Release"})
        made = (release for release in stored for origin in _adoptions([release]).values() if origin["uid"] == uid)
        names = {str(label(release, "delivery")) for release in made}
        return delivery if delivery in names else next(iter(names), None)

    def nodes(self) -> tuple[Object, ...]:
        """Every node; empty where we may not see them."""
        if self._nodes is None:
            self._nodes = tuple(self._everywhere("nodes") or ())
        return self._nodes

    def without(self, releases: Collection[str]) -> Look:
        view = copy.copy(self)
        view.leaving = frozenset(releases)
        return view

    def forget(self) -> None:
        """Nodes come and go: look again."""
        self._nodes = None

    def everybodys_pods(self) -> list[Object] | None:
        """Of every namespace; None where we may not see them."""
        return self._everywhere("pods", {"fieldSelector": "status.phase!=Succeeded,status.phase!=Failed"})

    def _everywhere(self, plural: str, query: Query = None) -> list[Object] | None:
        try:
            return list(self.client.call("GET", f"/api/v1/{plural}", query)["items"])
        except Forbidden:
            return None

    def step_pods(self, job: str) -> list[Object]:
        return self.listed(POD, {"labelSelector": f"batch.kubernetes.io/job-name={job}"})

    def engine_pods(self, delivery: str, release: str) -> list[Object]:
        name = f"{delivery}-{release}"
        found = self.listed(POD, {"labelSelector": f"model-delivery/object={name}"})
        if found or not (adopted := self.adopted(delivery)):
            return found
        listed = [_marked(pod, delivery, adopted) for pod in self.listed(POD)]
        return [pod for pod in listed if label(pod, "object") == name]

    def servers(self, delivery: str, release: str, *, ready: bool = False) -> list[Server]:
        """Each engine of a release at its pod's own address, never a balancer's.
        ``ready``: only those that are.
        """
        found = self.listed(POD, _of(delivery, f"release={release}", "role=release"))
        return list(servers(filter(is_ready, living(found)) if ready else found, None))

    def log(self, pod: Object, query: Object) -> Iterator[bytes]:
        """Of the container that it is for, where ``query`` names no other."""
        path = POD.path(self.client.namespace, pod["metadata"]["name"])
        return self.client.lines(f"{path}/log", {"container": pods.main(pod), **query}, SILENCE)

    def _with_log(self, pod: Object) -> Object:
        """With the end of the engine's log, where the engine is not ready, or was not at
        the last look.
        """
        query, uid = pods.log_query(pod), pod["metadata"]["uid"]
        if query is None and not (uid in self._starting and pods.settled(pod)):
            return pod
        (self._starting.discard if query is None else self._starting.add)(uid)
        try:
            lines = list(self.log(pod, {"timestamps": "true", **(query or {}), "tailLines": TAIL_LINES}))
        except (Broken, Status, Forbidden):
            lines = []
        return {**pod, "log": short(b"\n".join(lines).decode(errors="replace"), -65536)}

    def changes(self, delivery: str, seconds: float) -> bool:
        """Wait for ``seconds``, or until something of ours is in another state than at
        the last look: True.
        """
        end = time.monotonic() + seconds
        for kind in self._moving:
            query = {} if kind == POD and self._adopted else _of(delivery)
            self._watches.follow(kind, query, self._since.get(kind, ""))
        while not (told := self._heard(delivery, end - time.monotonic())) and time.monotonic() < end:
            pass
        return told

    def _heard(self, delivery: str, seconds: float) -> bool:
        """Was something told within ``seconds`` that a look must see?"""
        latest, unwatched = dict[Ref, Any](), False
        for kind, event in self._watches.told(seconds):
            self._changed.add(kind)
            unwatched |= event is None and self._watches.may_begin(kind)
            if event and event["type"] in ("ADDED", "MODIFIED", "DELETED"):
                live = {**event["object"], "kind": kind.name}
                live = _marked(live, delivery, self._adopted) if kind == POD else live
                if label(live, "delivery") == delivery or kind == ENDPOINT_SLICE:
                    latest[_ref(kind, live)] = None if event["type"] == "DELETED" else _turn(kind, live)
        return unwatched or any(self._turns.get(ref) != turn for ref, turn in latest.items())


def _ref(kind: Kind, live: Object) -> Ref:
    return Ref(kind, live["metadata"]["name"])


def _turn(kind: Kind, live: Object) -> Any:
    """What of an object a wait can turn on; nothing of what a controller made."""
    if kind == POD:
        return pods.turn(live)
    if kind == ENDPOINT_SLICE:
        return [(part.get("conditions"), part.get("targetRef")) for part in live.get("endpoints") or ()]
    return None if is_made_by_controller(live) else from_object(live, kind).status


def _of(delivery: str, *more: str) -> dict[str, str]:
    """The query for what carries our labels; ``more``: such as ``role=release``."""
    return {"labelSelector": ",".join(f"model-delivery/{term}" for term in (f"delivery={delivery}", *more))}


def _adoptions(stored: Iterable[Object]) -> dict[str, Object]:
    """By release, among the ConfigMaps ``stored``: what somebody made by hand and is a
    release of ours since. Its object and its pods carry no label of ours. The one place
    that reads a payload's words.
    """
    adopted = {}
    for release in stored:
        payload = content(release).get("payload") if label(release, "kind") == RELEASE.name else None
        if origin := (payload if isinstance(payload, dict) else {}).get("adopted"):
            adopted[str(label(release, "release"))] = origin
    return adopted


def _marked(pod: Object, delivery: str, adopted: Mapping[str, Object]) -> Object:
    """A pod of an adopted release, with the labels that the pods of ours carry; any other
    as it is. It is known by its labels, or where there are none by the prefix of its
    name.
    """
    meta = pod["metadata"]
    labels = meta.get("labels") or {}
    for release, origin in adopted.items():
        known = origin["pods"].get("labels")
        if known.items() <= labels.items() if known else meta["name"].startswith(origin["pods"].get("prefix", "")):
            return {**pod, "metadata": {**meta, "labels": labels | pod_labels(delivery, release)}}
    return pod
