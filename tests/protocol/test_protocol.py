"""The protocol of a release, played by hypothesis: any story, killed after any effect,
killed again in its recovery.

A run is the real protocol on a place in memory; each effect of it is a step of the
machine, so that runs meet each other anywhere. ``shared/protocol`` is where the rules
were first tried; nothing of it is used here.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Any

import greenlet
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from model_delivery.base import Finding, GateFailed, Trouble
from model_delivery.places.guarded import guarded, observed
from model_delivery.run import protocol, record, rules
from model_delivery.run.frozen import Frozen
from model_delivery.run.lease import Lease
from model_delivery.run.plan import identify, planned, route, unchanged_digest
from model_delivery.run.record import Ended, Outcome, Record
from model_delivery.run.session import Session
from model_delivery.spec import DeliverySpec, parse_spec
from model_delivery.tasks import delivering as do
from model_delivery.values import (
    ABSENT,
    LEASE,
    RECORD_REF,
    RELEASE,
    Capabilities,
    Engine,
    File,
    Lock,
    Ref,
    Snapshot,
    digest,
)
from tests.protocol.simulated import THE_ROUTE, Clock, Place, Target

STEPS_WANTED = 20_000
TARGETS = {
    "process": (Capabilities(dark_first=True, weights="slots"), False),
    "deployment": (Capabilities(dark_first=True, weights="none"), False),
    "gateway": (Capabilities(dark_first=True, weights="percent"), False),
    "t9k": (Capabilities(dark_first=False, weights="percent"), True),
}
LABELS = ("a", "b", "c", "dead", "bad")
played = {"steps": 0, "runs": 0, "kills": 0}


@cache
def spec(label: str, strategy: str, when_full: str, replicas: int, standby: str) -> DeliverySpec:
    return parse_spec(
        {
            "apiVersion": "model-delivery/v1",
            "name": "m",
            "model": {"source": "local", "path": "/model"},
            "serving": {"args": ["--label", label], "replicas": {"min": replicas, "max": replicas}},
            "target": {"kind": "process", "engine": "vllm-cpu", "port": 8000},
            "gates": {"throughput": None},
            "rollout": {
                "strategy": strategy,
                "when_full": when_full,
                "steps": [10, 50],
                "soak": "1s",
                "watch": "1s",
                "standby": standby,
                "keep": 2,
            },
        }
    )


@cache
def lock() -> Lock:
    snapshot = Snapshot(
        source="local", key="k", commit="c" * 40, files=(File(path="config.json", size=1, sha256="0" * 64),)
    )
    return Lock(snapshot=snapshot, engine=Engine(name="e", command=("x",)))


class Killed(BaseException):
    """The run's process is gone: nothing more is done by it."""


@dataclass
class Run:
    """A process: it goes on when the machine says so, up to its next effect (or wait)."""

    name: str
    request: str
    body: Callable[[Run], Any]
    holder: str = ""
    stopped: bool = False
    outcome: Any = None
    fiber: Any = None

    @property
    def alive(self) -> bool:
        return not self.fiber.dead


class Deliveries(RuleBasedStateMachine):
    """One delivery, its runs, and the world that they work on."""

    kind = "process"

    @initialize(kind=st.sampled_from(sorted(TARGETS)), room=st.integers(1, 3))
    def begin(self, kind: str, room: int) -> None:
        self.can, self.together = TARGETS[kind]
        self.clock = Clock()
        self.place = Place(
            self.clock,
            self.together,
            room,
            lambda args: "dead" in args or self.down,
            self._pause,
            lambda holder: holder in self._holders(),
        )
        self.target = Target(can=self.can, together=self.together)
        self.runs: list[Run] = []
        self.down = False
        self.proven = set[str]()
        self.old_starts: tuple[str, int] | None = None
        self.last: DeliverySpec | None = None

    # --- runs

    def _holders(self) -> set[str]:
        return {run.holder for run in self.runs if run.alive}

    def _pause(self) -> None:
        here = greenlet.getcurrent()
        if here.parent is not None:
            here.parent.switch()

    def _start(self, name: str, request: str | None, body: Callable[[Session], Any]) -> None:
        run = Run(name, request or uuid.uuid4().hex, lambda run: self._run(run, body))
        run.fiber = greenlet.greenlet(lambda: self._contained(run))
        self.runs.append(run)
        played["runs"] += 1
        self._advance(run, 1)

    def _contained(self, run: Run) -> None:
        try:
            run.outcome = run.body(run)
        except Trouble as trouble:
            run.outcome = trouble
        except Killed:
            run.outcome = "killed"

    def _run(self, run: Run, body: Callable[[Session], Any]) -> Any:
        lease = Lease(self.place, "m", run.request, self.clock)
        run.holder = lease.holder
        lease.acquire("wait", timeout=300)
        with observed(lambda *_: self._pause()):
            place = guarded(self.place, lease.fence)
        seen = place.get("m", RECORD_REF)
        now = (
            record.load(seen.resource.spec) if seen else Record(spec("a", "blue-green", "refuse", 1, "0s").target.key())
        )
        session = Session(
            place, self.target, "m", now, seen.version if seen else ABSENT, request=run.request, clock=self.clock
        )
        try:
            return body(session)
        finally:
            if run.outcome != "killed":
                lease.release()

    def _advance(self, run: Run, effects: int) -> None:
        for _ in range(effects):
            if not run.alive or run.stopped:
                return
            run.fiber.switch()
            played["steps"] += 1
            self._check()

    def _finish(self) -> None:
        for run in self.runs:
            run.stopped = False
        for _ in range(5000):
            going = [run for run in self.runs if run.alive]
            if not going:
                self.runs.clear()
                return
            for run in going:
                self._advance(run, 1)
        raise AssertionError(f"runs never end: {[run.name for run in self.runs if run.alive]}")

    # --- what a run does

    def _deliver(self, wanted: DeliverySpec, *, scheduled: bool) -> Callable[[Session], Any]:
        def body(session: Session) -> Any:
            admission = protocol.admit(session, wanted, lock(), scheduled=scheduled)
            if not admission.answer.delivers:
                return do.Run(session).outcome(admission)
            self._bring(session)
            protocol.collect(session, wanted.rollout)
            return do.Run(session).outcome(admission)

        return body

    def _rollback(self, session: Session) -> Any:
        admission = protocol.start_rollback(session, None, do.ROLLBACK)
        if admission.answer.delivers:
            self._bring(session)
            protocol.collect(session, do.ROLLBACK)
        return do.Run(session).outcome(admission)

    def _bring(self, session: Session) -> None:
        """As ``flows/deliver.py`` does it, on this session."""
        with do.Run(session).withdrawn_on_trouble():
            way = route(session)
            for stage in way.stages:
                protocol.enter(session, stage, way.strategy)
                candidate = session.candidate.release
                if all(release.id != candidate for release in stage.desired.releases):
                    continue
                session.wait_ready(candidate, 100)
                session.wait_routed()
                if stage.gates and session.candidate.kind == "deliver":
                    if "bad" in session.frozen(candidate).args:
                        raise GateFailed(Finding("gate.test", "the gate says no"))
                    self.proven.add(candidate)
                protocol.watch(session, stage)
            protocol.promote(session)

    # --- stories

    @rule(
        label=st.sampled_from(LABELS), strategy=st.sampled_from(["canary", "blue-green", "recreate"]),
        when_full=st.sampled_from(["refuse", "recreate"]), replicas=st.sampled_from([1, 1, 2]), standby=st.sampled_from(["0s", "600s"]),
        scheduled=st.booleans(), request=st.sampled_from([None, None, None, "nightly"]), at_once=st.integers(1, 40),
    )  # fmt: skip
    def deliver(
        self,
        label: str,
        strategy: str,
        when_full: str,
        replicas: int,
        standby: str,
        scheduled: bool,
        request: str | None,
        at_once: int,
    ) -> None:
        if strategy == "canary" and self.can.weights == "none":
            strategy = "blue-green"
        self.last = spec(label, strategy, when_full, replicas, standby)
        self._start("deliver", request, self._deliver(self.last, scheduled=scheduled))
        self._advance(self.runs[-1], at_once)

    @rule(at_once=st.integers(1, 40))
    def rollback(self, at_once: int) -> None:
        self._start("rollback", None, self._rollback)
        self._advance(self.runs[-1], at_once)

    @rule()
    def take_down(self) -> None:
        self._start("down", None, protocol.take_down)
        self._advance(self.runs[-1], 10)

    @precondition(lambda self: not self.runs and not self._record().active)
    @rule(label=st.sampled_from(["hand"]), at_once=st.integers(1, 20))
    def adopt(self, label: str, at_once: int) -> None:
        wanted = spec(label, "blue-green", "refuse", 1, "0s")

        def body(session: Session) -> None:
            payload = session.target.payload(wanted, lock())
            name, address = digest(payload.content()), session.target.address("m")
            frozen = Frozen(
                payload=payload, lock=lock(), unchanged=unchanged_digest(wanted, lock()), model=wanted.model, storage=wanted.storage,
                args=wanted.serving.args, address=address, created=self.clock.now(), verified=False,
            )  # fmt: skip
            self.proven.add(name)
            if not session.record.active:
                session.freeze(name, frozen)
                ended = Ended(
                    name, session.record.attempt_of(name), Outcome.ADOPTED, session.request, 0, self.clock.now()
                )
                session.write(rules.adopted(session.record, ended, 1, address, wanted.runner))
            session.converge()

        self._start("adopt", None, body)
        self._advance(self.runs[-1], at_once)

    @precondition(lambda self: self.runs)
    @rule(which=st.integers(0, 3), effects=st.integers(1, 30))
    def go_on(self, which: int, effects: int) -> None:
        self._advance(self.runs[which % len(self.runs)], effects)

    @precondition(lambda self: self.last)
    @rule(first=st.integers(1, 45), second=st.integers(1, 45))
    def killed_and_killed_again_in_the_recovery(self, first: int, second: int) -> None:
        assert self.last is not None
        for effects in (first, second):
            self._start("deliver", None, self._deliver(self.last, scheduled=False))
            self._advance(self.runs[-1], effects)
            self._kill(self.runs.pop())

    @precondition(lambda self: self._record().previous)
    @rule(first=st.integers(1, 45))
    def killed_in_a_rollback(self, first: int) -> None:
        self._start("rollback", None, self._rollback)
        self._advance(self.runs[-1], first)
        self._kill(self.runs.pop())

    @precondition(lambda self: self.runs)
    @rule(which=st.integers(0, 3))
    def kill(self, which: int) -> None:
        self._kill(self.runs.pop(which % len(self.runs)))

    def _kill(self, run: Run) -> None:
        run.outcome = "killed"
        played["kills"] += run.alive
        with suppress(Killed):
            if run.alive:
                run.fiber.throw(Killed)

    @precondition(lambda self: self.runs)
    @rule(which=st.integers(0, 3))
    def stop(self, which: int) -> None:
        """A process that is stopped (SIGSTOP) for longer than its lease: another may take
        it meanwhile.
        """
        self.runs[which % len(self.runs)].stopped = True
        self.clock.sleep(61)

    @rule()
    def engines_die(self) -> None:
        for states in self.place.status.values():
            for release in states:
                states[release] = "failed"

    @rule(seconds=st.sampled_from([1.0, 700.0]))
    def time_passes(self, seconds: float) -> None:
        self.clock.sleep(seconds)

    @rule()
    def settle(self) -> None:
        """Every run ends, the last request is made again, and again: then everything is
        as it should be.
        """
        self._finish()
        if self.last is None:
            return
        for _ in range(2):
            self._start("again", None, self._deliver(self.last, scheduled=False))
            self._finish()
        self._at_rest()

    def teardown(self) -> None:
        if hasattr(self, "place"):
            self.settle()

    # --- what must hold

    def _record(self) -> Record:
        seen = self.place.get("m", RECORD_REF)
        return (
            record.load(seen.resource.spec) if seen else Record(spec("a", "blue-green", "refuse", 1, "0s").target.key())
        )

    def _shares(self) -> dict[str, int]:
        seen = self.place.objects.get(THE_ROUTE)
        return dict(seen[0].spec["traffic"]) if seen else {}

    def _check(self) -> None:
        now = self._record()
        self.nothing_without_a_record(now)
        self.no_traffic_to_an_unproven_release(now)
        self.the_old_release_is_untouched_before_the_gate(now)
        self.a_request_ends_once(now)

    def nothing_without_a_record(self, now: Record) -> None:
        running = self.place.running()
        assert not running or RECORD_REF in self.place.objects
        assert all(Ref(RELEASE, release) in self.place.objects for release in running)

    def no_traffic_to_an_unproven_release(self, now: Record) -> None:
        passed = {e.release for e in now.ended if e.exit_code == 0} | self.proven
        first = not self.can.dark_first and (now.candidate is not None or not now.active)
        for release, share in self._shares().items():
            assert not share or release in passed or first, (release, now)

    def the_old_release_is_untouched_before_the_gate(self, now: Record) -> None:
        candidate, serving = now.candidate, now.serving
        gone = candidate is not None and (candidate.strategy == "recreate" or candidate.kind == "rollback")
        if (
            candidate is None
            or serving is None
            or gone
            or candidate.release in self.proven
            or candidate.ending is not None
        ):
            return
        if serving in self._shares() or serving in self.place.running():
            assert self._shares().get(serving, 0) == 100, (self._shares(), now)

    def a_request_ends_once(self, now: Record) -> None:
        requests = [e.request for e in now.ended if e.request and e.outcome != Outcome.ROLLED_BACK_FROM]
        assert len(requests) == len(set(requests)), requests

    def _at_rest(self) -> None:
        """One release serves, alone or beside its standby; a rerun changes nothing; the
        plan says so.
        """
        now = self._record()
        assert now.candidate is None
        assert Ref(LEASE, "lease") not in self.place.objects
        wanted = {name for name, _ in now.desired.releases}
        assert self.place.running() == (wanted if now.address else set()), (self.place.running(), now)
        assert self._shares() == ({now.serving: 100} if now.serving else {}), (self._shares(), now)
        session = Session(self.place, self.target, "m", now, "", clock=self.clock)
        assert session.changes(session.desired()) == ()
        if now.serving and self.last and now.serving == identify(session, self.last, lock(), 0)[0]:
            assert planned(session, self.last, lock(), now=0).answer is rules.Answer.UNCHANGED


def test_any_story_killed_anywhere_twice_converges() -> None:
    examples = settings(
        max_examples=250,
        stateful_step_count=40,
        deadline=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
        database=None,
    )
    run_state_machine_as_test(Deliveries, settings=examples)
    assert played["steps"] >= STEPS_WANTED, played
    print(f"played {played['steps']} effects of {played['runs']} runs, {played['kills']} of them killed")
