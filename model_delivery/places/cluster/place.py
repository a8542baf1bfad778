"""One namespace of a cluster: manifests by server-side apply; record, releases and lease by compare and swap."""

from __future__ import annotations

import base64
import os
import socket
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from model_delivery.base.findings import Finding, Permanent, Refused, Retryable
from model_delivery.base.secrets import KubeSecret, Secret, SecretRef, read_secret
from model_delivery.places.cluster import claims, room, taking
from model_delivery.places.cluster.client import APPLY, MERGE, Broken, Client, Doubt, Forbidden, Status
from model_delivery.places.cluster.jobs import bound
from model_delivery.places.cluster.look import Look, Pace
from model_delivery.places.cluster.objects import (
    MANAGER,
    WRITE,
    Object,
    delivery_of,
    from_object,
    place_of,
    shown,
    to_object,
)
from model_delivery.targets import cluster_kinds
from model_delivery.targets.kubernetes.kinds import CLAIM, CONFIG_MAP, POD, SECRET
from model_delivery.values.kind import LEASE, Kind
from model_delivery.values.resources import (
    ABSENT,
    ANY,
    Change,
    Mismatch,
    Observed,
    Ref,
    Resource,
    Version,
    World,
    covers,
    difference,
)

GONE_SECONDS = 300.0
REVIEW = "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews"
BREAKS = 5  # of a log in a row, before what is there must do
ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")


class Cluster:
    """A place. ``take_over``: values that another field manager holds are taken from it."""

    lease_seconds = 60.0

    def __init__(
        self, context: str | None, namespace: str, *, take_over: bool = False, client: Client | None = None
    ) -> None:
        self.client = client or Client(context)
        self.context, self.namespace, self.take_over = context, namespace, take_over
        self._look = Look(self.client, namespace, cluster_kinds())
        self._pace = Pace(self.client, self._look)

    def put(self, resource: Resource, *, expect: Version = ANY, dry_run: bool = False) -> Change:
        self._pace.restart(acted=not dry_run and resource.ref.kind != LEASE)
        kind, name = place_of(resource.delivery, resource.ref)
        live = self._live(kind, name)
        found = live and (live["metadata"]["resourceVersion"] if kind != CLAIM else expect)
        if expect not in (ANY, found or ABSENT):
            raise Mismatch(resource.ref)
        if kind == CLAIM:
            why_not = claims.adopt(self.client, resource, live)
            if why_not is not None:
                return why_not
        elif live is not None and delivery_of(live) != resource.delivery and not taking.may_take(resource, live):
            why = f"it belongs to {delivery_of(live) or 'somebody else'}"
            fix = "give the delivery another name, or remove that object"
            fix += (
                "; what serves there already comes under the spec with `deliver adopt`"
                if delivery_of(live) is None
                else ""
            )
            raise Refused(Finding("todo", f"{kind} {name} is there already in namespace {self.namespace}", why, fix))
        if resource.ref.kind.stored:
            return self._swap(resource, live, expect, dry_run=dry_run)
        if live is not None and "deletionTimestamp" in live["metadata"]:
            live = None
            if not dry_run:
                self._wait_gone(kind, name)
        if kind.constant and live is not None:
            return Change(resource.ref, "unchanged", version=live["metadata"]["resourceVersion"])
        return self._apply(resource, live, expect, dry_run=dry_run)

    def delete(self, delivery: str, ref: Ref, *, grace: float | None = None) -> Change:
        """Begin its end; pods end as their own grace says. An object that is not ours is left alone."""
        self._pace.restart(acted=True)
        kind, name = place_of(delivery, ref)
        live = self._live(kind, name)
        if live is None or (delivery_of(live) != delivery and not self._look.is_adopted(live)):
            return Change(ref, "absent")
        policy = "Foreground" if kind.foreground else "Background"
        options = {"propagationPolicy": policy, "preconditions": {"uid": live["metadata"]["uid"]}}
        try:
            self.client.call("DELETE", kind.path(self.namespace, name), body=options)
        except Status as status:
            if status.code not in (404, 409):
                raise self._unexpected(ref, status) from None
        return Change(ref, "deleted")

    def world(self, delivery: str) -> World:
        return self._look.world(delivery)

    def get(self, delivery: str, ref: Ref) -> Observed | None:
        live = self._live(*place_of(delivery, ref))
        if live is None:
            return None
        seen = from_object(live, ref.kind)
        if ref.kind != LEASE:
            return seen
        spec = seen.resource.spec
        here = spec["host"] == socket.gethostname()
        return Observed(seen.resource, seen.version, {"alive": not here or psutil.pid_exists(spec["pid"])})

    def deliveries(self) -> tuple[str, ...]:
        query = {"labelSelector": "model-delivery/kind=Record"}
        return tuple(sorted(str(delivery_of(found)) for found in self._look.listed(CONFIG_MAP, query)))

    def log(self, delivery: str, ref: Ref, *, follow: bool = True) -> Iterator[bytes]:
        """Of a Job its step's output, of a Deployment its newest pod's engine; a stream that breaks goes on where it was."""
        yielded = breaks = 0
        while True:
            pod, state = self._look.container(ref)
            if pod is None and (not follow or self._over(ref)):
                return
            if pod is not None and ("running" in state or "terminated" in state):
                lines = self._look.log(pod, follow=follow and "running" in state)
                try:
                    for number, line in enumerate(lines, 1):
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
        self._pace.wait(delivery, timeout)

    def secret(self, ref: SecretRef) -> Secret:
        if not isinstance(ref, KubeSecret):
            return read_secret(ref)
        name, key = ref.kube.name, ref.kube.key
        live = self._live(SECRET, name)
        if live is None or key not in (live.get("data") or {}):
            why = (
                "there is no such Secret"
                if live is None
                else f"it has no key {key}; it has: {', '.join(live.get('data') or {}) or 'none'}"
            )
            fix = f"kubectl -n {self.namespace} create secret generic {name} --from-file={key}=FILE"
            raise Refused(Finding("todo", f"the Secret {name} in namespace {self.namespace} cannot be used", why, fix))
        return Secret(base64.b64decode(live["data"][key]).decode().strip())

    def look_up(self, path: str) -> dict[str, Any] | None:
        try:
            return self.client.call("GET", path)
        except Status:
            return None

    def rights(self) -> Sequence[Mapping[str, Any]] | None:
        body = {"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectRulesReview"}
        said = self.client.call("POST", REVIEW, body=body | {"spec": {"namespace": self.namespace}})["status"]
        return None if said.get("incomplete") else said["resourceRules"]

    def listening(self, port: int) -> bool:
        return False

    def engine_log(self, delivery: str, release: str, *, follow: bool) -> Iterator[bytes]:
        yield from self.log(delivery, Ref(POD, f"{delivery}-{release}"), follow=follow)

    def own_image(self) -> str | None:
        """The image of the pod that this runs in; None outside of a cluster."""
        if not (ACCOUNT / "namespace").exists():
            return None
        mine = POD.path(
            (ACCOUNT / "namespace").read_text(encoding="utf-8").strip(),
            os.environ.get("HOSTNAME", socket.gethostname()),
        )
        try:
            return str(self.client.call("GET", mine)["spec"]["containers"][0]["image"])
        except (Status, Forbidden):
            return None

    def _live(self, kind: Kind, name: str) -> Object | None:
        try:
            return self.client.call("GET", kind.path(self.namespace, name))
        except Status as status:
            if status.code == 404:
                return None
            raise self._unexpected(Ref(kind, name), status) from None

    def _swap(self, resource: Resource, live: Object | None, expect: Version, *, dry_run: bool) -> Change:
        """Create or replace, and only what was read; a doubtful answer is read again: ours is known by its write's id."""
        old = from_object(live, resource.ref.kind) if live else None
        if old is not None and old.resource == resource:
            return Change(resource.ref, "unchanged", version=old.version)
        if dry_run:
            return Change(resource.ref, "updated" if old else "created")
        body, mark = to_object(resource, self.namespace), uuid.uuid4().hex
        body["metadata"]["annotations"] = body["metadata"].get("annotations", {}) | {WRITE: mark}
        kind, name = place_of(resource.delivery, resource.ref)
        if old is not None:
            body["metadata"]["resourceVersion"] = old.version
        for _ in range(5):
            try:
                target = kind.path(self.namespace, name if old else "")
                done = self.client.call("PUT" if old else "POST", target, {"fieldManager": MANAGER}, body, once=True)
            except Doubt:
                now = self._live(kind, name)
                if now is None or now["metadata"].get("annotations", {}).get(WRITE) != mark:
                    if (now["metadata"]["resourceVersion"] if now else None) == (old.version if old else None):
                        continue
                    raise Mismatch(resource.ref) from None
                done = now
            except Status as status:
                if status.code in (404, 409):
                    raise Mismatch(resource.ref) from None
                raise self._unexpected(resource.ref, status) from None
            return Change(resource.ref, "updated" if old else "created", version=done["metadata"]["resourceVersion"])
        raise Retryable(
            Finding("todo", f"{resource.ref} could not be written", "the API server broke off five times", "run again")
        )

    def _apply(self, resource: Resource, live: Object | None, expect: Version, *, dry_run: bool) -> Change:
        body = bound(resource, to_object(resource, self.namespace), self._look)
        if body["kind"] == "Job" and body["spec"]["template"]["spec"]["containers"][0]["image"] is None:
            body["spec"]["template"]["spec"]["containers"][0]["image"] = self.own_image()
        room.check(self._look, resource, body, live)
        kind, name = place_of(resource.delivery, resource.ref)
        take = live is not None and taking.may_take(resource, live) and not taking.is_taken(live)
        if resource.spec.get("bind", {}).get("bare") and live is not None and delivery_of(live) is None:
            body["metadata"]["labels"] = dict(resource.spec["metadata"]["labels"])
        if take and live is not None and not dry_run:
            taken = self._take(resource.ref, live, body)
            expect = expect if expect in (ANY, ABSENT) else taken
        if expect not in (ANY, ABSENT):
            body["metadata"]["resourceVersion"] = expect
        query = {"fieldManager": MANAGER, "force": str(self.take_over or take).lower()} | (
            {"dryRun": "All"} if dry_run else {}
        )
        try:
            done = self.client.call("PATCH", kind.path(self.namespace, name), query, body, media=APPLY)
        except Status as status:
            others = [cause for cause in status.causes if cause.get("reason") == "FieldManagerConflict"]
            if others and dry_run:
                return Change(resource.ref, "updated", tuple(f"{_held(cause)}: needs --take-over" for cause in others))
            if others:
                raise Permanent(_conflict(resource.ref, others)) from None
            if status.code != 409:
                raise self._unexpected(resource.ref, status) from None
            now = self._live(kind, name)  # a retry of our own write, whose answer was lost, meets its own new version
            body["metadata"].pop("resourceVersion", None)
            if now is None or not covers(shown(now), shown(body)):
                raise Mismatch(resource.ref) from None
            done = now
        if kind.foreground and not kind.constant and not dry_run:
            self._look.forget()
        before, after = shown(live) if live else {}, shown(done)
        diff = (
            *(difference(before, after) if live else ()),
            *(taking.given_up(live) if take and live and dry_run else ()),
        )
        version = done["metadata"].get("resourceVersion")
        if live is None:
            return Change(resource.ref, "created", version=version)
        return Change(resource.ref, "updated" if diff else "unchanged", diff, version)

    def _take(self, ref: Ref, live: Object, body: Object) -> Version:
        """Its new version."""
        where = ref.kind.path(self.namespace, live["metadata"]["name"])
        query = {"fieldManager": MANAGER, "force": "true", "dryRun": "All"}
        try:
            applied = self.client.call("PATCH", where, query, body, media=APPLY)
            now = self.client.call("PATCH", where, body=taking.transfer(live, applied), media=MERGE)
        except Status as status:
            now = self._live(ref.kind, live["metadata"]["name"]) or {}
            if status.code != 409 or not now or not taking.is_taken(now):
                raise self._unexpected(ref, status) from None
        return str(now["metadata"]["resourceVersion"])

    def _wait_gone(self, kind: Kind, name: str) -> None:
        """An object that is on its way out cannot be kept: it must be gone before it can be made anew."""
        end = time.monotonic() + GONE_SECONDS
        while self._live(kind, name) is not None:
            if time.monotonic() > end:
                what, fix = f"{kind} {name} does not end", "see its finalizers and its pods: kubectl describe"
                raise Permanent(Finding("todo", what, f"it is being deleted for more than {GONE_SECONDS:.0f} s", fix))
            time.sleep(1.0)

    def _over(self, ref: Ref) -> bool:
        live = self._live(ref.kind, ref.name)
        return live is None or bool(from_object(live, ref.kind).status.get("finished"))

    def _unexpected(self, ref: Ref, status: Status) -> Permanent:
        if status.code == 422:
            return Permanent(
                Finding(
                    "todo",
                    f"the API server refuses {ref}",
                    status.message,
                    "correct the spec's field that the message names",
                )
            )
        if status.code == 404:
            why = f"{status.message} (namespace {self.namespace})"
            return Permanent(
                Finding(
                    "todo",
                    f"{ref} cannot be made",
                    why,
                    "does the namespace exist, and is the API of this kind installed?",
                )
            )
        return Permanent(
            Finding(
                "todo",
                f"the API server refuses {ref}",
                f"{status.code} {status.reason}: {status.message}",
                "see the message",
            )
        )


def _held(cause: Mapping[str, Any]) -> str:
    who = str(cause.get("message", "")).removeprefix("conflict with ").strip()
    return f"{cause.get('field', '').lstrip('.')} is held by {who}"


def _conflict(ref: Ref, others: list[Mapping[str, Any]]) -> Finding:
    what = f"{ref} was changed by another field manager"
    fix = "let that manager give the fields up, or take them with `deliver up --take-over`"
    return Finding("todo", what, "; ".join(map(_held, others)), fix)
