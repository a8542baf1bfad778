"""Looking after a candidate while it has traffic."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import reduce
from typing import NoReturn

from model_delivery.base import Finding, GateFailed, Progress, report
from model_delivery.measure.degradation import Served, degraded
from model_delivery.run.answering import metrics, probe
from model_delivery.run.session import Session
from model_delivery.values import Current, Failed, Release, Stage, StageKind

ASK_SECONDS = 10.0
Counted = dict[str, Served]


def watch(session: Session, stage: Stage) -> None:
    """``soak`` on a canary's share, ``watch`` on all of the traffic.

    GateFailed when it, or the route to it, does not stay ready, when it gives no token,
    or does worse than what serves.
    """
    if length := _seconds(session, stage):
        _Watch(session, stage, length).run()


@dataclass
class _Watch:
    session: Session
    stage: Stage
    length: float

    def __post_init__(self) -> None:
        clock, serving = self.session.clock, self.session.record.serving
        self.candidate = self.session.release(self.session.candidate.release)
        self.serving = self.session.release(serving) if serving and serving != self.candidate.id else None
        self.before = {release.id: _counted(self.session, release) for release in self._both()}
        self.end, self.ask_at = clock.monotonic() + self.length, clock.monotonic()
        self.left = self.length

    def run(self) -> None:
        clock = self.session.clock
        while True:
            self.left = max(0.0, self.end - clock.monotonic())
            seen = ""
            if not self.left or clock.monotonic() >= self.ask_at:
                self._must_give_a_token()
                seen = self._must_not_degrade()
            self._must_be_ready()
            spent = round(self.length - self.left)
            report(Progress("watch", f"still ready{seen}", done=spent, total=self.length, unit="s"))
            if not self.left:
                return
            self.session.place.hint(self.session.delivery, min(self.left, ASK_SECONDS))

    def _must_be_ready(self) -> None:
        world, target = self.session.world(), self.session.target
        for state in (target.readiness(self.candidate, world), target.routed(self.stage.desired, world)):
            if isinstance(state, Failed):
                self._fails(state.finding)
            if not isinstance(state, Current):
                self._fails(Finding("gate.not-ready-while-watched", "it stopped being ready", state.why))

    def _must_give_a_token(self) -> None:
        """Never again where it cannot be asked."""
        if self.ask_at == math.inf:
            return
        found = probe(self.session, self.candidate.id)
        if found.unasked:
            report(Progress("watch", f"it cannot be asked for a token: {found.unasked}"))
        if why := found.why:
            what = "it says it is well, and gives no token"
            self._fails(Finding("gate.silent-while-watched", what, f"asked for one, {why}"))
        self.ask_at = math.inf if found.unasked else self.session.clock.monotonic() + ASK_SECONDS

    def _must_not_degrade(self) -> str:
        """What there was to judge by, in words. Where what serves has no traffic any
        more, only its errors before are of these minutes.
        """
        new = self._since(self.candidate)
        old = Served()
        if self.serving is not None:
            shared = self.stage.share(self.serving) > 0
            before = reduce(Served.and_of, self.before[self.serving.id].values(), Served())
            old = self._since(self.serving) if shared else Served(before.requests, before.errors)
        if why := degraded(new, old):
            self._fails(Finding("gate.degraded-while-watched", "it does worse than what served", why))
        return f", {new.requests:.0f} requests, {new.errors:.0f} of them in errors" if new.requests else ""

    def _since(self, release: Release) -> Served:
        before, now = self.before[release.id], _counted(self.session, release)
        windows = (served.since(before.get(life, Served())) for life, served in now.items())
        return reduce(Served.and_of, windows, Served())

    def _both(self) -> list[Release]:
        return [release for release in (self.candidate, self.serving) if release is not None]

    def _fails(self, seen: Finding) -> NoReturn:
        what, when = f"release {self.candidate.id} failed while it was watched", f"{self.left:.0f} s before the end"
        raise GateFailed(seen, Finding("gate.watch", what, when, "the previous release serves again"))


def _counted(session: Session, release: Release) -> Counted:
    """By engine; one that does not tell is left out."""
    servers = session.target.servers(release, session.world())
    told = {server.life: Served.read(metrics(server)) for server in servers}
    return {life: served for life, served in told.items() if served.waits}


def _seconds(session: Session, stage: Stage) -> float:
    rollout = session.candidate.rollout
    return (rollout.watch if stage.phase.kind == StageKind.PROMOTE else rollout.soak).seconds
