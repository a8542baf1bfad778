"""Server-side apply: what is wanted is bound, counted, taken where it was somebody's,
sent, compared.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from model_delivery.base import Finding, Permanent
from model_delivery.places.cluster import jobs, room, taking
from model_delivery.places.cluster.client import APPLY, Query, Space, Status
from model_delivery.places.cluster.look import Look
from model_delivery.places.cluster.objects import MANAGER, Object, label, shown, to_object
from model_delivery.values import ABSENT, ANY, Change, Mismatch, Ref, Resource, Version, covers, difference


def apply(
    look: Look, resource: Resource, live: Object | None, expect: Version, *, take_over: bool, dry_run: bool
) -> Change:
    """Over what is ``live``. ``take_over``: values that another field manager holds are
    taken from it.
    """
    ref, body = resource.ref, _body(look, resource, live)
    room.check(look, resource, body, live)
    takes = live is not None and taking.may_take(resource, live) and not taking.is_taken(live)
    if takes and live and not dry_run:
        taken = taking.take(look.space, ref, live, body)
        expect = expect if expect in (ANY, ABSENT) else taken
    if expect not in (ANY, ABSENT):
        body["metadata"]["resourceVersion"] = expect
    query = {"fieldManager": MANAGER, "force": str(take_over or takes).lower()}
    try:
        done = _sent(look.space, ref, query | ({"dryRun": "All"} if dry_run else {}), body)
    except Status as status:
        held = tuple(_held(status))
        if held and dry_run:
            return Change(ref, "updated", tuple(f"{line}: needs --take-over" for line in held))
        raise _refusal(look.space, ref, status, held) from None
    if ref.kind.demand and not dry_run:
        look.forget()
    return _change(ref, live, done, taking.given_up(live) if takes and live and dry_run else ())


def _body(look: Look, resource: Resource, live: Object | None) -> Object:
    body = jobs.bound(resource, to_object(resource, look.space.name), look)
    if resource.spec.get("bind", {}).get("bare") and live and label(live, "delivery") is None:
        body["metadata"]["labels"] = dict(resource.spec["metadata"]["labels"])
    return body


def _sent(space: Space, ref: Ref, query: Query, body: Object) -> Object:
    """The object as it is now. A retry of our own write, whose answer was lost, meets its
    own version.
    """
    try:
        return space.send("PATCH", ref, query, body, media=APPLY)
    except Status as status:
        if status.code != 409 or any(_held(status)):
            raise
    body["metadata"].pop("resourceVersion", None)
    done = space.get(ref) or {"metadata": {}}
    if not covers(shown(done), shown(body)):
        raise Mismatch(ref)
    return done


def _change(ref: Ref, live: Object | None, done: Object, given_up: Iterable[str]) -> Change:
    version = done["metadata"].get("resourceVersion")
    if live is None:
        return Change(ref, "created", version=version)
    diff = (*difference(shown(live), shown(done)), *given_up)
    return Change(ref, "updated" if diff else "unchanged", diff, version)


def _refusal(space: Space, ref: Ref, status: Status, held: tuple[str, ...]) -> Permanent:
    if not held:
        return space.refusal(ref, status)
    what = f"{ref} was changed by another field manager"
    fix = "let that manager give the fields up, or take them with `deliver up --take-over`"
    return Permanent(Finding("cluster.held-by-another", what, "; ".join(held), fix))


def _held(status: Status) -> Iterator[str]:
    """A line for each value that another field manager holds."""
    for cause in status.causes:
        if cause.get("reason") == "FieldManagerConflict":
            who = str(cause.get("message", "")).removeprefix("conflict with ").strip()
            yield f"{cause.get('field', '').lstrip('.')} is held by {who}"
