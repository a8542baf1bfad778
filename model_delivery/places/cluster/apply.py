"""Server-side apply: what is wanted is bound, counted, taken where it was somebody's,
sent, compared.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from model_delivery.base import Finding, Permanent
from model_delivery.places.cluster import jobs, room, taking
from model_delivery.places.cluster.client import APPLY, Status
from model_delivery.places.cluster.look import Look
from model_delivery.places.cluster.objects import MANAGER, Object, label, shown, to_object
from model_delivery.values import ABSENT, ANY, Change, Mismatch, Ref, Resource, Version, covers, difference


@dataclass(frozen=True)
class Apply:
    """Of one resource over what is ``live``. ``take_over``: values that another field
    manager holds are taken from it.
    """

    look: Look
    resource: Resource
    live: Object | None
    take_over: bool = False
    dry_run: bool = False

    def apply(self, expect: Version) -> Change:
        body = self._body()
        room.check(self.look, self.resource, body, self.live)
        if self._takes and self.live and not self.dry_run:
            taken = taking.take(self.look.space, self._ref, self.live, body)
            expect = expect if expect in (ANY, ABSENT) else taken
        if expect not in (ANY, ABSENT):
            body["metadata"]["resourceVersion"] = expect
        try:
            return self._change(self._sent(body))
        except Status as status:
            held = tuple(_held(status))
            if held and self.dry_run:
                return Change(self._ref, "updated", tuple(f"{line}: needs --take-over" for line in held))
            raise self._refusal(status, held) from None

    @property
    def _ref(self) -> Ref:
        return self.resource.ref

    @property
    def _takes(self) -> bool:
        """Does somebody's object become ours with this write?"""
        return self.live is not None and taking.may_take(self.resource, self.live) and not taking.is_taken(self.live)

    def _body(self) -> Object:
        body = jobs.bound(self.resource, to_object(self.resource, self.look.space.name), self.look)
        if self.resource.spec.get("bind", {}).get("bare") and self.live and label(self.live, "delivery") is None:
            body["metadata"]["labels"] = dict(self.resource.spec["metadata"]["labels"])
        return body

    def _sent(self, body: Object) -> Object:
        """The object as it is now. A retry of our own write, whose answer was lost, meets
        its own version.
        """
        force = str(self.take_over or self._takes).lower()
        query = {"fieldManager": MANAGER, "force": force} | ({"dryRun": "All"} if self.dry_run else {})
        try:
            done = self.look.space.send("PATCH", self._ref, query, body, media=APPLY)
        except Status as status:
            if status.code != 409 or any(_held(status)):
                raise
            body["metadata"].pop("resourceVersion", None)
            done = self.look.space.get(self._ref) or {"metadata": {}}
            if not covers(shown(done), shown(body)):
                raise Mismatch(self._ref) from None
        if self._ref.kind.demand and not self.dry_run:
            self.look.forget()
        return done

    def _change(self, done: Object) -> Change:
        version = done["metadata"].get("resourceVersion")
        if self.live is None:
            return Change(self._ref, "created", version=version)
        given_up = taking.given_up(self.live) if self._takes and self.dry_run else ()
        diff = (*difference(shown(self.live), shown(done)), *given_up)
        return Change(self._ref, "updated" if diff else "unchanged", diff, version)

    def _refusal(self, status: Status, held: tuple[str, ...]) -> Permanent:
        if not held:
            return self.look.space.refusal(self._ref, status)
        what = f"{self._ref} was changed by another field manager"
        fix = "let that manager give the fields up, or take them with `deliver up --take-over`"
        return Permanent(Finding("cluster.held-by-another", what, "; ".join(held), fix))


def _held(status: Status) -> Iterator[str]:
    """A line for each value that another field manager holds."""
    for cause in status.causes:
        if cause.get("reason") == "FieldManagerConflict":
            who = str(cause.get("message", "")).removeprefix("conflict with ").strip()
            yield f"{cause.get('field', '').lstrip('.')} is held by {who}"
