"""One run at a time for each delivery."""

from __future__ import annotations

import os
import socket
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime

from model_delivery.base import Clock, Finding, Permanent, Progress, Refused, Trouble, report
from model_delivery.places import Place
from model_delivery.values import ABSENT, LEASE, Mismatch, Observed, Ref, Resource, Version

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
        """Take it; one that expired, whose process is dead, or that the same request
        holds, is taken over.

        Another's is waited for (``when_busy`` "wait"), or Refused with its holder and
        expiry named.
        """
        deadline = self.clock.monotonic() + timeout
        reported = False
        while not self._try():
            seen = self.place.get(self.delivery, REF)
            if seen is None:
                continue
            who = _who(seen)
            if when_busy == "refuse":
                what, fix = f"another run is delivering {self.delivery}", "wait for it to end, or set concurrency: wait"
                raise Refused(Finding("lease.held", what, who, fix))
            if self.clock.monotonic() > deadline:
                raise Permanent(
                    Finding(
                        "lease.still-held",
                        f"another run still delivers {self.delivery}",
                        who,
                        "wait for it to end, then run again",
                    )
                )
            if not reported:
                report(Progress("lease", f"waiting for {who}"))
                reported = True
            self.place.hint(self.delivery, max(0.01, deadline - self.clock.monotonic()))

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
            except Trouble:
                continue  # the place is away: tried again as long as the lease lasts, and fenced by it

    def fence(self) -> None:
        """Raise Permanent when the lease is no longer ours."""
        seen = self.place.get(self.delivery, REF)
        if seen is None or seen.resource.spec["holder"] != self.holder:
            who = _who(seen) if seen else "nobody"
            fix = "nothing more was done by this run; run again when the other has ended"
            raise Permanent(Finding("lease.lost", f"the lease of {self.delivery} was lost", f"now held by {who}", fix))

    def release(self) -> None:
        seen = self.place.get(self.delivery, REF)
        if seen is not None and seen.resource.spec["holder"] == self.holder:
            self.place.delete(self.delivery, REF)

    def _try(self) -> bool:
        seen = self.place.get(self.delivery, REF)
        if seen is not None and not self._free(seen):
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
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "expires": self.clock.now() + self.term,
        }
        return Resource(REF, "lease", self.delivery, spec)

    def _free(self, seen: Observed) -> bool:
        spec = seen.resource.spec
        return (
            spec["request"] == self.request or not seen.status.get("alive", True) or spec["expires"] < self.clock.now()
        )


def _who(seen: Observed) -> str:
    spec = seen.resource.spec
    until = datetime.fromtimestamp(spec["expires"], tz=UTC).isoformat(timespec="seconds")
    return f"process {spec['pid']} on {spec['host']} (request {spec['request']}, until {until} at the latest)"
