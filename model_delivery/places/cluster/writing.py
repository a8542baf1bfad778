"""How an object comes into a cluster: what is wanted by server-side apply, what is ours
alone by compare and swap.

Somebody's object becomes ours in one write, in which the fields that others hold are
given up, so that none of them is in the way of a later change.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator

from model_delivery.base import Finding, Permanent, Retryable
from model_delivery.places.cluster import binding
from model_delivery.places.cluster.client import APPLY, MERGE, Client, Doubt, Query, Status
from model_delivery.places.cluster.look import Look
from model_delivery.places.cluster.objects import (
    MANAGER,
    WRITE,
    Object,
    from_object,
    label,
    object_ref,
    shown,
    to_object,
)
from model_delivery.values import ABSENT, ANY, Change, Mismatch, Ref, Resource, Version, covers, difference

TRIES = 5
FORCED = {"fieldManager": MANAGER, "force": "true"}
DRY_RUN = {"dryRun": "All"}


def apply(
    look: Look, resource: Resource, live: Object | None, expect: Version, *, take_over: bool, dry_run: bool
) -> Change:
    """Over what is ``live``. ``take_over``: values that another field manager holds are
    taken from it.
    """
    ref, client, body = resource.ref, look.client, binding.bound(resource, look, live)
    if live and resource.spec.get("bind", {}).get("bare") and label(live, "delivery") is None:
        body["metadata"]["labels"] = dict(resource.spec["metadata"]["labels"])
    binding.check(look, resource, body, live)
    taken = live if live and may_take(resource, live) and not _is_taken(live) else None
    version = _take(client, ref, taken, body) if taken and not dry_run else expect
    if expect not in (ANY, ABSENT):
        body["metadata"]["resourceVersion"] = version
    query = FORCED if take_over or taken else FORCED | {"force": "false"}
    try:
        done = _sent(client, ref, query | (DRY_RUN if dry_run else {}), body)
    except Status as status:
        held = tuple(_held(status))
        if not held:
            raise client.refusal(ref, status) from None
        if dry_run:
            return Change(ref, "updated", tuple(f"{line}: needs --take-over" for line in held))
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
    return _change(ref, live, done, _given_up(taken) if taken and dry_run else ())


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
    return bool(uid) and live["metadata"]["uid"] == uid and label(live, "delivery") in (None, resource.delivery)


def _take(client: Client, ref: Ref, live: Object, body: Object) -> Version:
    """A merge patch of this very version after which we are its only manager, but for
    what others write into its status or scale. Its new version.

    As it would be with our fields applied, our entry says what we hold then. Of the
    object's other fields nothing changes.
    """
    try:
        applied = client.send("PATCH", ref, FORCED | DRY_RUN, body, media=APPLY)
        (ours,) = filter(_is_ours, _managers(applied))
        kept = [entry for entry in _managers(live) if entry.get("subresource")]
        meta = {"resourceVersion": live["metadata"]["resourceVersion"], "managedFields": [ours, *kept]}
        now = client.send("PATCH", ref, body={"metadata": meta}, media=MERGE)
    except Status as status:
        now = client.get(ref) or {}
        if status.code != 409 or not now or not _is_taken(now):
            raise client.refusal(ref, status) from None
    return str(now["metadata"]["resourceVersion"])


def _is_taken(live: Object) -> bool:
    return any(map(_is_ours, _managers(live)))


def _given_up(live: Object) -> Iterator[str]:
    """A line for each manager whose fields are taken."""
    for entry in _managers(live):
        if not entry.get("subresource"):
            yield f"the fields that {entry['manager']} holds become ours"


def _managers(live: Object) -> list[Object]:
    return live["metadata"].get("managedFields") or []


def _is_ours(entry: Object) -> bool:
    return bool(entry["manager"] == MANAGER and entry["operation"] == "Apply")


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
