"""One namespace of a cluster: manifests by server-side apply; record, releases and lease
by compare and swap.
"""

from __future__ import annotations

import base64
import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from shlex import quote
from typing import Any

from model_delivery.base import Finding, KubeSecret, Permanent, Refused, Secret, SecretRef, read_secret, secret
from model_delivery.base.process import lives
from model_delivery.places.cluster import binding, claims, pods, writing
from model_delivery.places.cluster.client import Broken, Client, Status
from model_delivery.places.cluster.look import Look
from model_delivery.places.cluster.objects import MANAGER, Object, from_object, label, object_ref, owner
from model_delivery.places.cluster.overview import Overview
from model_delivery.places.cluster.pace import Pace
from model_delivery.targets.kubernetes.kinds import CLAIM, JOB, POD, SECRET
from model_delivery.values import (
    ABSENT,
    ANY,
    LEASE,
    Card,
    Change,
    Mismatch,
    Observed,
    Ref,
    Resource,
    Snapshot,
    Version,
    World,
)

LOGINS = ".dockerconfigjson"
GONE_SECONDS = 300
BREAKS = 5  # of a log in a row, before what is there must do
REVIEW = "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews"


class Cluster:
    """A place. ``take_over``: values that another field manager holds are taken from
    it.
    """

    lease_seconds = 60.0
    keeps_files = False
    elsewhere = "is it another --namespace or --context?"

    def __init__(self, context: str | None, namespace: str, *, take_over: bool = False) -> None:
        self.client, self.take_over = Client(context, namespace), take_over
        self._look = Look(self.client)
        self._pace = Pace(self.client, self._look)
        self._fresh = True  # of the next look: only one of a wait may go by what an earlier one saw

    @property
    def location(self) -> tuple[str | None, str | None]:
        return self.client.context, self.client.namespace

    def put(self, resource: Resource, *, expect: Version = ANY, dry_run: bool = False) -> Change:
        if not dry_run and resource.role != "lease":
            self._pace.restart()
        ref = object_ref(resource.delivery, resource.ref)
        live = self._look.get(ref) if dry_run else self.client.get(ref)
        version = live["metadata"]["resourceVersion"] if live else ABSENT
        if expect not in (ANY, version):
            raise Mismatch(resource.ref)
        if ref.kind == CLAIM:
            if change := claims.settle(self.client, resource, live):
                return change
        elif live:
            self._may_write(resource, ref, live)
        if resource.ref.kind.stored:
            return writing.swap(self.client, resource, live, dry_run=dry_run)
        if live and "deletionTimestamp" in live["metadata"]:
            if not dry_run:
                self._wait_gone(ref)
            live = None
        if live and ref.kind.constant:
            return Change(ref, "unchanged", version=version)
        return writing.apply(self._look, resource, live, expect, take_over=self.take_over, dry_run=dry_run)

    def without(self, delivery: str, releases: Collection[str]) -> Cluster:
        return self._seen_by(self._look.without(releases))

    def overview(self) -> Cluster:
        return self._seen_by(Overview(self.client))

    def _seen_by(self, look: Look) -> Cluster:
        view = Cluster.__new__(Cluster)
        vars(view).update(vars(self), _look=look)
        return view

    def delete(self, delivery: str, ref: Ref, *, grace: float | None = None) -> Change:
        """Begin its end; pods end as their own grace says. An object that is not ours is
        left alone.
        """
        self._pace.restart()
        there = object_ref(delivery, ref)
        live = self.client.get(there)
        if live is None or not self._is_ours(live, delivery):
            return Change(ref, "absent")
        policy = "Foreground" if there.kind.foreground else "Background"
        options: dict[str, Any] = {"propagationPolicy": policy, "preconditions": {"uid": live["metadata"]["uid"]}}
        options |= {} if grace is None else {"gracePeriodSeconds": math.ceil(grace)}
        try:
            self.client.send("DELETE", there, body=options)
        except Status as status:
            if status.code not in (404, 409):
                raise self.client.refusal(ref, status) from None
        return Change(ref, "deleted")

    def world(self, delivery: str) -> World:
        fresh, self._fresh = self._fresh, True
        return self._look.world(delivery, fresh=fresh)

    def get(self, delivery: str, ref: Ref) -> Observed | None:
        live = self._look.get(object_ref(delivery, ref))
        seen = from_object(live, ref.kind) if live else None
        if seen is None or ref.kind != LEASE:
            return seen
        return replace(seen, status={"alive": lives(seen.resource.spec)})

    def deliveries(self) -> tuple[str, ...]:
        return self._look.deliveries()

    def at_work(self) -> tuple[str, ...]:
        """The deliveries that there are, and those whose first run fetches."""
        jobs = self._look.listed(JOB, {"labelSelector": "model-delivery/delivery"})
        return tuple(sorted({*self.deliveries(), *(str(label(job, "delivery")) for job in jobs)}))

    def log(self, delivery: str, ref: Ref, *, follow: bool = True) -> Iterator[bytes]:
        def over() -> bool:
            seen = self.get(delivery, ref)
            return seen is None or bool(seen.status["finished"])

        def look() -> list[Object]:
            pod = self.client.get(ref) if ref.kind == POD else None
            return [pod] if pod else self._look.step_pods(ref.name)

        return self._lines(delivery, look, over, follow=follow)

    def engine_log(self, delivery: str, release: str, *, follow: bool = False) -> Iterator[bytes]:
        def over() -> bool:
            resources = (seen.resource for seen in self.world(delivery).objects.values())
            return all((resource.role, resource.release) != ("release", release) for resource in resources)

        return self._lines(delivery, lambda: self._look.engine_pods(delivery, release), over, follow=follow)

    def _lines(
        self, delivery: str, look: Callable[[], list[Object]], over: Callable[[], bool], *, follow: bool
    ) -> Iterator[bytes]:
        """Of the newest pod that ``look`` finds; a stream that breaks goes on where it
        was. ``over``: no pod will come any more.
        """
        yielded = breaks = 0
        while True:
            pod, state = pods.newest(look())
            if pod is None and (not follow or over()):
                return
            if pod and ("running" in state or "terminated" in state):
                query = {"follow": "true"} if follow and "running" in state else {}
                try:
                    with suppress(Status):  # the pod or its log is gone: what is missing is told by who reads
                        for number, line in enumerate(self._look.log(pod, query), 1):
                            if number > yielded:
                                yielded, breaks = number, 0
                                yield line
                    breaks = 0
                except Broken:
                    breaks += 1
            if (not follow or "terminated" in state) and breaks % BREAKS == 0:
                return
            self.hint(delivery, 1.0 if breaks else 15.0)

    def hint(self, delivery: str, timeout: float) -> None:
        self._fresh = not self._pace.wait(delivery, timeout)

    def secret(self, ref: SecretRef) -> Secret:
        if not isinstance(ref, KubeSecret):
            return read_secret(ref)
        name, key = ref.kube.name, ref.kube.key
        live = self._look.get(Ref(SECRET, name)) or {}
        data = live.get("data") or {}
        if key not in data:
            has = f"it has no key {key}; it has: {', '.join(data) or 'none'}"
            raise Refused(
                Finding(
                    "secret.not-there",
                    f"the Secret {name} in namespace {self.client.namespace} cannot be used",
                    has if live else "there is no such Secret",
                    f"kubectl -n {self.client.namespace} create secret generic {quote(name)} "
                    f"--from-file={quote(key)}=FILE",
                )
            )
        where = f"key {key} of the Secret {name} in namespace {self.client.namespace}"
        content, lines = base64.b64decode(data[key] or ""), key == LOGINS
        found = secret(content, where, "put the secret there", lines=lines)
        if not lines and found.reveal().encode() != content:
            why = "a blank or the end of a line stands around it: an engine would get it so, who asks it would not"
            fix = f"write it without: printf %s KEY | kubectl create secret … --from-file={quote(key)}=/dev/stdin"
            raise Refused(Finding("secret.padded", f"{where} cannot be used", why, fix))
        return found

    def has_model(self, snapshot: Snapshot, root: str | None) -> None:
        """What a claim holds only its pods see."""

    def listener(self, port: int) -> str:
        return ""

    def cards(self, delivery: str) -> dict[str, tuple[Card, ...]]:
        return {}

    def look_up(self, path: str) -> dict[str, Any] | None:
        try:
            return self.client.call("GET", path)
        except Status:
            return None

    def rights(self) -> Sequence[Mapping[str, Any]] | None:
        spec = {"namespace": self.client.namespace}
        body = {"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectRulesReview", "spec": spec}
        status = self.client.call("POST", REVIEW, body=body)["status"]
        return None if status.get("incomplete") else status["resourceRules"]

    def own_image(self) -> str | None:
        return binding.own_image(self.client)

    def _is_ours(self, live: Object, delivery: str) -> bool:
        """Does it carry our label, or was it somebody's, and is a release of ours
        since?
        """
        if (holder := owner(live)) is not None:
            return holder == delivery
        return self._look.is_adopted(live, delivery)

    def _may_write(self, resource: Resource, ref: Ref, live: Object) -> None:
        holder = owner(live)
        if holder is None and writing.is_taken(live, MANAGER):  # an older version's, which left no mark
            holder = self._look.adopter(live["metadata"]["uid"], resource.delivery)
        if holder != resource.delivery and (holder or not writing.may_take(resource, live)):
            raise writing.not_ours(ref, live, self.client.namespace, resource.delivery)

    def _wait_gone(self, ref: Ref) -> None:
        """An object that is on its way out cannot be kept: it must be gone before it can
        be made anew.
        """
        for _ in range(GONE_SECONDS):
            if self.client.get(ref) is None:
                return
            time.sleep(1)
        raise Permanent(
            Finding(
                "cluster.does-not-end",
                f"{ref.kind} {ref.name} does not end",
                f"it is being deleted for more than {GONE_SECONDS} s",
                "see its finalizers and its pods: kubectl describe",
            )
        )
