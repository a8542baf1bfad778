"""One run at a time for each delivery."""

from __future__ import annotations

import socket
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from model_delivery.base import Clock, Finding, Permanent, Progress, Refused, Trouble, moment, report
from model_delivery.base.process import identity
from model_delivery.places import Place
from model_delivery.values import ABSENT, LEASE, Mismatch, Observed, Ref, Resource, Version

LONGEST = 86400.0
REF = Ref(LEASE, "lease")
RENEWALS = 4  # in a lease's time: it survives an API server that is away for a while


@dataclass
class Lease:
    """Held by one run, for ``seconds`` (default: the place's) unless renewed. It ends
    with its process where that can be seen.
    """

    place: Place
    delivery: str
    request: str
    clock: Clock
    holder: str = field(default_factory=lambda: uuid.uuid4().hex)
    version: Version | None = None
    seconds: float | None = None

    @property
    def term(self) -> float:
        return self.seconds or self.place.lease_seconds

    def acquire(self, when_busy: str, timeout: float = 3600.0) -> None:
        """Take it; one that the same request holds, or whose process is dead, is taken
        over. So is one that did not change for its whole time by our own clock: a time
        that another clock wrote decides nothing, and a process may outlive its run.

        Another's is waited for (``when_busy`` "wait"), or Refused with its holder and
        expiry named; one that may have expired is watched before.
        """
        start = since = self.clock.monotonic()
        first = seen = self.place.get(self.delivery, REF)
        reported = False
        while not self._try(seen, self.clock.monotonic() - since):
            now, before = self.place.get(self.delivery, REF), seen
            if now is None or before is None or now.version != before.version:
                first, seen, since = first or now, now, self.clock.monotonic()
            if now is None or first is None:
                continue
            who, fix = _who(now), "wait for it to end"
            if when_busy == "refuse" and (now.version != first.version or not self._doubtful(now)):
                what = f"another run is delivering {self.delivery}"
                raise Refused(Finding("lease.held", what, who, f"{fix}, or set concurrency: wait"))
            if self.clock.monotonic() - start > timeout:
                what = f"another run still delivers {self.delivery}"
                raise Permanent(Finding("lease.still-held", what, who, f"{fix}, then run again"))
            if not reported:
                report(Progress("lease", f"waiting for {who}"))
                reported = True
            self.place.hint(self.delivery, max(0.01, min(self.term / RENEWALS, timeout)))

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Renewed inside by a thread, then given back."""
        done = threading.Event()
        keeper = threading.Thread(target=self._renew, args=(done,), name="lease", daemon=True)
        keeper.start()
        try:
            yield
        finally:
            done.set()
            keeper.join()
            self.release()

    def _renew(self, done: threading.Event) -> None:
        while not done.wait(self.term / RENEWALS):
            try:
                self.version = self.place.put(self._resource(), expect=self.version or ABSENT).version
            except Mismatch:
                return  # lost: the next fence says to whom
            except Exception as error:  # noqa: BLE001 - whatever it is, it is tried again: fences say when it was lost
                report(Progress("lease", f"it could not be renewed: {type(error).__name__}"))

    def fence(self) -> None:
        """Raise Permanent when the lease is no longer ours."""
        seen = self.place.get(self.delivery, REF)
        if seen is None or seen.resource.spec.get("holder") != self.holder:
            who = _who(seen) if seen else self._nobody()
            fix = "nothing more was done by this run; run again when the other has ended"
            raise Permanent(Finding("lease.lost", f"the lease of {self.delivery} was lost", f"now held by {who}", fix))

    def _nobody(self) -> str:
        """Whoever had it may have ended. A place that takes none any more (its namespace
        is being deleted) says so itself.
        """
        if self._try(None, 0.0):
            self.release()
        return "nobody"

    def release(self) -> None:
        """Where the place is away, it ends by itself."""
        with suppress(Trouble, OSError):
            seen = self.place.get(self.delivery, REF)
            if seen is not None and seen.resource.spec.get("holder") == self.holder:
                self.place.delete(self.delivery, REF)

    def _try(self, seen: Observed | None, unchanged: float) -> bool:
        if seen is not None and not self._free(seen, unchanged):
            return False
        try:
            change = self.place.put(self._resource(), expect=seen.version if seen else ABSENT)
        except Mismatch:
            return False
        self.version = change.version
        return True

    def _resource(self) -> Resource:
        spec = {
            "holder": self.holder,
            "request": self.request,
            "host": socket.gethostname(),
            **identity(),
            "expires": self.clock.now() + self.term,
        }
        return Resource(REF, "lease", self.delivery, spec)

    def _free(self, seen: Observed, unchanged: float) -> bool:
        alive = seen.status.get("alive")
        by_us = seen.resource.spec.get("request") == self.request
        return by_us or alive is False or unchanged > self.term

    def _doubtful(self, seen: Observed) -> bool:
        """By our clock it has expired, or says what no run of ours would."""
        expires, now = seen.resource.spec.get("expires"), self.clock.now()
        return not (isinstance(expires, int | float) and now <= expires <= now + LONGEST)


def held(place: Place, delivery: str) -> bool:
    """Has a run the lease, whose process is not known to be dead?"""
    seen = place.get(delivery, REF)
    return seen is not None and seen.status.get("alive") is not False


def _who(seen: Observed) -> str:
    spec = seen.resource.spec
    try:
        until = moment(spec["expires"])
    except (LookupError, TypeError, ValueError, ArithmeticError, OSError):
        return "a run whose lease was damaged"
    return f"process {spec['pid']} on {spec['host']} (request {spec['request']}, until {until} at the latest)"
