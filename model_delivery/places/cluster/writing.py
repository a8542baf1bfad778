"""How an object comes into a cluster: what is wanted by server-side apply, what is ours
alone by compare and swap.

Somebody's object becomes ours in one write, in which the fields that others hold are
given up, so that none of them is in the way of a later change.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator
from dataclasses import replace

from model_delivery.base import Finding, Permanent, Refused, Retryable
from model_delivery.places.cluster import additions, binding
from model_delivery.places.cluster.client import APPLY, MERGE, Client, Doubt, Query, Status
from model_delivery.places.cluster.look import Look
from model_delivery.places.cluster.objects import (
    MANAGER,
    WRITE,
    Object,
    from_object,
    label,
    managers,
    object_ref,
    owner,
    shown,
    to_object,
)
from model_delivery.values import ABSENT, ANY, Change, Mismatch, Ref, Resource, Version, covers, difference

TRIES = 5
DRY_RUN = {"dryRun": "All"}


def apply(
    look: Look, resource: Resource, live: Object | None, expect: Version, *, take_over: bool, dry_run: bool
) -> Change:
    """Over what is ``live``. ``take_over``: values that another field manager holds are
    taken from it.
    """
    ref, client, body, manager = resource.ref, look.client, binding.bound(resource, look, live), MANAGER
    if live and resource.spec.get("bind", {}).get("bare") and label(live, "delivery") is None:
        body["metadata"]["labels"] = dict(resource.spec["metadata"]["labels"])
        manager = MANAGER if is_taken(live, MANAGER) else f"{MANAGER}/{resource.delivery}"
    binding.check(look, resource, body, live)
    known, version = live is not None and is_taken(live, manager), expect
    taken = live if live and not known and may_take(resource, live) else None
    served = resource.role in ("release", "route")  # a claim gets its volume from the cluster
    harmless, added = additions.told(live) if known and live and served else ((), ())
    body, lost = additions.yielded(body, live), added if take_over else ()
    if taken and not dry_run:
        version = _take(client, resource, taken, body, manager)
    elif lost and not dry_run:
        version = _disown(client, ref, manager)
    if expect not in (ANY, ABSENT):
        body["metadata"]["resourceVersion"] = version
    query = {"fieldManager": manager, "force": "true" if take_over or taken else "false"}
    stays = () if lost else tuple(f"{line}: it stays, `deliver up --take-over` removes it" for line in added)
    try:
        done = _sent(client, ref, query | (DRY_RUN if dry_run else {}), body)
    except Status as status:
        held = tuple(_held(status))
        if not held:
            raise client.refusal(ref, status) from None
        if dry_run:
            held = tuple(f"{line}: needs --take-over" for line in held)
            return Change(ref, "updated", held, stays=stays, harmless=harmless)
        raise Permanent(
            Finding(
                "cluster.held-by-another",
                f"{ref} was changed by another field manager",
                "; ".join(held),
                "let that manager give the fields up, or take them with `deliver up --take-over`",
            )
        ) from None
    if ref.kind.demand and not dry_run:
        look.forget()
    more = _given_up(taken) if taken and dry_run else (f"{line}: removed" for line in lost)
    return replace(_change(ref, live, done, more), stays=stays, harmless=harmless)


def _disown(client: Client, ref: Ref, manager: str) -> Version:
    """What others added becomes ours, in one write of the version that was read: its new
    version.
    """
    for _ in range(TRIES):
        live = client.get(ref) or {"metadata": {}}
        if not is_taken(live, manager):
            break
        held = {"managedFields": additions.taken(live, manager)}
        if version := _marked(client, ref, live, held):
            return version
    raise _restless(ref)


def _restless(ref: Ref) -> Retryable:
    why = f"{TRIES} writes of it met another version"
    return Retryable(Finding("cluster.restless", f"{ref} is being changed by somebody else", why, "run again"))


def _sent(client: Client, ref: Ref, query: Query, body: Object) -> Object:
    """The object as it is now. A retry of our own write, whose answer was lost, meets its
    own version.
    """
    try:
        return client.send("PATCH", ref, query, body, media=APPLY)
    except Status as status:
        if status.code != 409 or any(_held(status)):
            raise
    body["metadata"].pop("resourceVersion", None)
    done = client.get(ref) or {"metadata": {}}
    if not covers(shown(done), shown(body)):
        raise Mismatch(ref)
    return done


def _change(ref: Ref, live: Object | None, done: Object, given_up: Iterable[str]) -> Change:
    version = done["metadata"].get("resourceVersion")
    if live is None:
        return Change(ref, "created", version=version)
    diff = (*difference(shown(live), shown(done)), *given_up)
    return Change(ref, "updated" if diff else "unchanged", diff, version)


def _held(status: Status) -> Iterator[str]:
    """A line for each value that another field manager holds."""
    for cause in status.causes:
        if cause.get("reason") == "FieldManagerConflict":
            who = str(cause.get("message", "")).removeprefix("conflict with ").strip()
            yield f"{cause.get('field', '').lstrip('.')} is held by {who}"


def may_take(resource: Resource, live: Object) -> bool:
    """Is ``live`` the very object that ``resource`` was adopted from, and of no other
    delivery?
    """
    uid = resource.spec.get("bind", {}).get("adopted")
    return bool(uid) and live["metadata"]["uid"] == uid and owner(live) in (None, resource.delivery)


def not_ours(ref: Ref, live: Object, namespace: str, delivery: str) -> Refused:
    holder = owner(live)
    if holder is None and ref.name.startswith(delivery) and label(live, "role"):
        what = f"{ref} has lost a label, by which it is known to be ours"
        why = "the label model-delivery/delivery is gone, its others are there: a person, or a tool, removed it"
        fix = f"kubectl -n {namespace} label {ref.kind.plural} {ref.name} model-delivery/delivery={delivery}"
        return Refused(Finding("cluster.label-gone", what, why, f"put it back, where it is yours: {fix}"))
    fix = "give the delivery another name, or remove that object"
    fix += "" if holder else "; what serves there already comes under the spec with `deliver adopt`"
    return Refused(
        Finding(
            "cluster.not-ours",
            f"{ref.kind} {ref.name} is there already in namespace {namespace}",
            f"it belongs to {f'the delivery {holder}' if holder else 'somebody else'}",
            fix,
        )
    )


def _take(client: Client, resource: Resource, live: Object, body: Object, manager: str) -> Version:
    """A merge patch of this very version after which we are its only manager, but for
    what others write into its status or scale, and which says whose it is. Its new
    version. Refused where another delivery was faster.

    As it would be with our fields applied, our entry says what we hold then. Of the
    object's other fields nothing changes.
    """
    ref, query = resource.ref, {"fieldManager": manager, "force": "true"}
    for _ in range(TRIES):
        try:
            applied = client.send("PATCH", ref, query | DRY_RUN, body, media=APPLY)
        except Status as status:
            raise client.refusal(ref, status) from None
        (ours,) = (entry for entry in managers(applied) if additions.is_applied(entry, manager))
        kept = [entry for entry in managers(live) if entry.get("subresource")]
        meta = {"managedFields": [ours, *kept], "labels": body["metadata"]["labels"]}
        if version := _marked(client, ref, live, meta):
            return version
        live = client.get(ref) or live
        if not may_take(resource, live):
            raise not_ours(ref, live, client.namespace, resource.delivery)
        if is_taken(live, manager):
            return str(live["metadata"]["resourceVersion"])
    raise _restless(ref)


def _marked(client: Client, ref: Ref, live: Object, meta: Object) -> Version | None:
    """The new version of what is ``live`` with ``meta``; None: it has changed since."""
    body = {"metadata": {"resourceVersion": live["metadata"]["resourceVersion"], **meta}}
    try:
        now = client.send("PATCH", ref, {"fieldManager": MANAGER}, body, media=MERGE)
    except Status as status:
        if status.code != 409:
            raise client.refusal(ref, status) from None
        return None
    return str(now["metadata"]["resourceVersion"])


def is_taken(live: Object, manager: str) -> bool:
    return any(additions.is_applied(entry, manager) for entry in managers(live))


def _given_up(live: Object) -> Iterator[str]:
    """A line for each manager whose fields are taken."""
    for entry in managers(live):
        if not entry.get("subresource"):
            yield f"the fields that {entry['manager']} holds become ours"


def swap(client: Client, resource: Resource, live: Object | None, *, dry_run: bool) -> Change:
    """Create or replace, and only what was read: it is written whole."""
    ref, old = resource.ref, from_object(live, resource.ref.kind) if live else None
    if old and old.resource == resource:
        return Change(ref, "unchanged", version=old.version)
    version = None if dry_run else _written(client, resource, old.version if old else None)
    return Change(ref, "updated" if old else "created", version=version)


def _written(client: Client, resource: Resource, old: str | None) -> str:
    """Its new version. A doubtful answer is read again: ours is known by its write's
    id.
    """
    body, mark = to_object(resource, client.namespace), uuid.uuid4().hex
    ref = object_ref(resource.delivery, resource.ref)
    meta = body["metadata"]
    meta["annotations"] = meta.get("annotations", {}) | {WRITE: mark}
    meta |= {"resourceVersion": old} if old else {}
    method, target = ("PUT", ref) if old else ("POST", Ref(ref.kind, ""))
    for _ in range(TRIES):
        try:
            done = client.send(method, target, {"fieldManager": MANAGER}, body, once=True)["metadata"]
        except Doubt:
            done = (client.get(ref) or {}).get("metadata", {})
            if done.get("annotations", {}).get(WRITE) != mark:
                if done.get("resourceVersion") == old:
                    continue
                raise Mismatch(resource.ref) from None
        except Status as status:
            if status.code in (404, 409):
                raise Mismatch(resource.ref) from None
            raise client.refusal(resource.ref, status) from None
        return str(done["resourceVersion"])
    raise Retryable(
        Finding(
            "cluster.no-answer",
            f"{resource.ref} could not be written",
            "the API server broke off five times",
            "run again",
        )
    )
