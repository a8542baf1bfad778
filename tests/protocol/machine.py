"""Runs of the real protocol on a place in memory: each stops after its every effect, and
whenever it waits, until the machine lets it go on.

A kill before an effect is one after the effect before. Between the look at the lease and
the effect nobody else can act here: that window is microseconds, and no fence closes it.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import greenlet

from model_delivery.base import Finding, GateFailed, Trouble
from model_delivery.places.guarded import guarded, observed
from model_delivery.run import approval, protocol, racing, record, watching
from model_delivery.run.lease import Lease
from model_delivery.run.plan import route
from model_delivery.run.record import Approval, Record
from model_delivery.run.session import Session
from model_delivery.spec import DeliverySpec, parse_spec
from model_delivery.tasks import delivering as do
from model_delivery.tasks import running
from model_delivery.values import ABSENT, RECORD_REF, Capabilities, File, Lock, Snapshot
from model_delivery.values.engine import Engine, Loader, Sleep
from tests.protocol.simulated import Clock, Place, Target

TARGETS = {
    "process": (Capabilities(dark_first=True, weights="slots", sleep=True), False),
    "deployment": (Capabilities(dark_first=True, weights="none"), False),
    "gateway": (Capabilities(dark_first=True, weights="percent"), False),
    "t9k": (Capabilities(dark_first=False, weights="percent"), True),
}
played = {"steps": 0, "runs": 0, "kills": 0}


@cache
def spec(label: str, strategy: str, when_full: str, replicas: int, standby: str, mode: str = "run") -> DeliverySpec:
    return parse_spec(
        {
            "apiVersion": "model-delivery/v1",
            "name": "m",
            "model": {"source": "local", "path": "/model"},
            "serving": {
                "args": ["--label", label],
                "replicas": {"min": replicas, "max": replicas},
                "loader": "race" if label == "raced" else "default",
            },
            "target": {"kind": "process", "engine": "vllm-cpu", "port": 8000},
            "gates": {"throughput": None},
            "approval": "manual" if label == "asked" else "none",
            "approval_timeout": "10m",
            "rollout": {
                "strategy": strategy,
                "when_full": when_full,
                "steps": [10, 50],
                "soak": "1s",
                "watch": "1s",
                "standby": standby,
                "standby_mode": mode,
                "keep": 2,
                "history": 12,
            },
        }
    )


def lock(wanted: DeliverySpec) -> Lock:
    return _lock(sleeps=wanted.rollout.standby_mode == "sleep", races=wanted.serving.loader == "race")


@cache
def _lock(*, sleeps: bool, races: bool) -> Lock:
    snapshot = Snapshot(
        source="local", key="k", commit="c" * 40, files=(File(path="tokenizer.json", size=1, sha256="0" * 64),)
    )
    loaders = {name: Loader(args=(name,)) for name in ("odd", "fast", "dead")} if races else None
    engine = Engine(name="e", command=("x",), sleep=Sleep() if sleeps else None, loaders=loaders)
    return Lock(snapshot=snapshot, engine=engine)


def told(session: Session, endpoint: str) -> tuple[racing.Choice, ...]:
    """What an engine answers: with one loader something else."""
    loader = session.lap[0] if session.lap else "default"
    text, sure = "odd" if loader == "odd" else "even", racing.Logprobs(tokens=[], top_logprobs=[])
    return (racing.Choice(text=text, logprobs=sure),)


class Killed(BaseException):
    """The run's process is gone: nothing more is done by it."""


@dataclass
class Run:
    """A process: it goes on when the machine says so, up to its next effect (or wait)."""

    request: str
    holder: str = ""
    stopped: bool = False
    killed: bool = False
    outcome: Any = None
    fiber: Any = None

    @property
    def alive(self) -> bool:
        return not self.fiber.dead


class Runs:
    """One delivery to a place of a target's capabilities, and the runs at work on it."""

    def prepare(self, kind: str, room: int) -> None:
        self.can, self.together = TARGETS[kind]
        self.clock = Clock()
        holds = lambda holder: holder in {run.holder for run in self.runs if run.alive}  # noqa: E731
        self.place = Place(self.clock, self.together, room, lambda args: "dead" in args, pause, holds)
        self.target = Target(can=self.can, together=self.together)
        self.runs: list[Run] = []
        self.proven = set[str]()
        self._read: tuple[str, Record] | None = None

    def check(self) -> None:
        """What must hold after every effect."""

    def record(self) -> Record:
        """As it is stored; read again only when it has changed."""
        stored = self.place.objects.get(RECORD_REF)
        if stored is None:
            return Record(spec("a", "blue-green", "refuse", 1, "0s").target.key())
        if self._read is None or self._read[0] != stored[1]:
            self._read = stored[1], record.load(stored[0].spec)
        return self._read[1]

    def session(self, place: Any, request: str) -> Session:
        seen = self.place.get("m", RECORD_REF)
        version = seen.version if seen else ABSENT
        return Session(place, self.target, "m", self.record(), version, request=request, clock=self.clock)

    def start(self, request: str | None, body: Callable[[Session], Any]) -> Run:
        run = Run(request or uuid.uuid4().hex)
        run.fiber = greenlet.greenlet(lambda: self._contained(run, body))
        self.runs.append(run)
        played["runs"] += 1
        self.advance(run, 1)
        return run

    def advance(self, run: Run, effects: int) -> None:
        for _ in range(effects):
            if not run.alive or run.stopped:
                return
            run.fiber.switch()
            played["steps"] += 1
            self.check()

    def finish(self) -> None:
        """Every run goes on to its end, in turn."""
        for run in self.runs:
            run.stopped = False
        for _ in range(5000):
            if not any(run.alive for run in self.runs):
                self.runs.clear()
                return
            for run in self.runs:
                self.advance(run, 1)
        raise AssertionError("runs never end")

    def kill(self, run: Run) -> None:
        self.runs.remove(run)
        if run.alive:
            played["kills"] += 1
            run.killed = True
            run.fiber.throw(Killed)

    def _contained(self, run: Run, body: Callable[[Session], Any]) -> None:
        try:
            run.outcome = self._run(run, body)
        except (Trouble, ZeroDivisionError) as trouble:
            run.outcome = trouble
        except Killed:
            run.outcome = None

    def _run(self, run: Run, body: Callable[[Session], Any]) -> Any:
        lease = Lease(self.place, "m", run.request, self.clock)
        run.holder = lease.holder
        lease.acquire("wait", timeout=300)
        with observed(lambda when, *_: pause() if when == "after" else None):
            place = guarded(self.place, lease.fence)
        try:
            return body(self.session(place, run.request))
        finally:
            if not run.killed:
                lease.release()

    def deliver(self, wanted: DeliverySpec, *, scheduled: bool = False) -> Callable[[Session], Any]:
        def body(session: Session) -> Any:
            admission = protocol.admit(session, wanted, lock(wanted), scheduled=scheduled)
            if admission.answer.delivers:
                if not self.bring(session, asks=wanted.approval == "manual"):
                    return running.Run(session).outcome(running.AWAITING)
                protocol.collect(session, wanted.rollout)
            return running.Run(session).outcome(admission)

        return body

    def answer(self, *, promote: bool) -> Callable[[Session], Any]:
        """What `deliver promote` does."""

        def body(session: Session) -> Any:
            said = Approval(0, promote)
            approval.decide(session, said)
            if not promote:
                return protocol.refuse(session, approval.not_approved(said))
            session.request = session.candidate.request
            return self.bring(session)

        return body

    def roll_back(self, session: Session) -> Any:
        admission = protocol.start_rollback(session, None, do.ROLLBACK)
        if admission.answer.delivers:
            self.bring(session)
            protocol.collect(session, do.ROLLBACK)
        return running.Run(session).outcome(admission)

    def bring(self, session: Session, *, asks: bool = False) -> bool:
        """As ``flows/deliver.py`` does it, on this session."""
        with running.Run(session).withdrawn_on_trouble():
            way = route(session)
            for stage in way.stages:
                if asks and stage.watched and not approval.approved(session, 600):
                    return False
                protocol.enter(session, stage, way.strategy)
                candidate = session.candidate.release
                if candidate not in stage.desired.awake:
                    continue
                session.wait_ready(candidate, 100)
                protocol.wait_routed(session, stage)
                if racing.wanted(session, stage):
                    racing.race(session, "", way.strategy, told)
                if stage.gates and session.candidate.kind == "deliver":
                    if "bad" in session.frozen(candidate).args:
                        raise GateFailed(Finding("gate.test", "the gate says no"))
                    if "broken" in session.frozen(candidate).args:
                        raise ZeroDivisionError("a fault of ours")
                    self.proven.add(candidate)
                if stage.watched:
                    watching.watch(session, stage)
            protocol.promote(session)
        return True


def pause() -> None:
    """A run hands over to whoever let it go on."""
    here = greenlet.getcurrent()
    if here.parent is not None:
        here.parent.switch()
