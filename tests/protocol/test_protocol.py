"""The protocol of a release, played by hypothesis: any story, killed after any effect,
killed again in its recovery, with other runs beside it.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from model_delivery.base import NoRoom
from model_delivery.run import protocol, rules
from model_delivery.run.frozen import Frozen
from model_delivery.run.plan import Planned, identify, planned, unchanged_digest
from model_delivery.run.record import Ended, Outcome, Record
from model_delivery.run.session import Session
from model_delivery.spec import DeliverySpec
from model_delivery.tasks import delivering as do
from model_delivery.values import LEASE, RECORD_REF, RELEASE, Ref, Resource, Version, digest
from tests.protocol.machine import TARGETS, Run, Runs, lock, played, spec
from tests.protocol.simulated import ENGINE, THE_ROUTE, weighty

STEPS_WANTED = 20_000
LABELS = ("a", "b", "c", "dead", "bad", "broken", "asked", "raced")
SPECS = st.tuples(
    st.sampled_from(LABELS),
    st.sampled_from(["canary", "blue-green", "recreate"]),
    st.sampled_from(["refuse", "recreate"]),
    st.sampled_from([1, 1, 2]),
    st.sampled_from(["0s", "600s"]),
    st.sampled_from(["run", "sleep", "sleep", "off"]),
)
EFFECTS = st.integers(1, 30)


class Deliveries(RuleBasedStateMachine, Runs):
    """One delivery: what people and machines do to it, and what must hold."""

    kind = "process"
    last: DeliverySpec | None = None
    route: tuple[Resource, Version] | None = None

    @initialize(room=st.integers(1, 3))
    def begin(self, room: int) -> None:
        self.prepare(self.kind, room)

    # --- stories

    @rule(
        given=SPECS,
        scheduled=st.booleans(),
        request=st.sampled_from([None, None, "nightly"]),
        effects=EFFECTS,
    )
    def a_spec_is_delivered(
        self, given: tuple[str, str, str, int, str, str], scheduled: bool, request: str | None, effects: int
    ) -> None:
        label, strategy, when_full, replicas, standby, mode = given
        if label == "raced" and self.kind != "process":
            label = "b"
        if label == "asked":
            strategy, when_full = strategy.replace("recreate", "canary"), "refuse"
        if strategy == "canary" and self.can.weights == "none":
            strategy = "blue-green"
        if not self.can.sleep:
            mode = mode.replace("sleep", "run")
        self.last = spec(label, strategy, when_full, replicas, standby, mode)
        self.advance(self.start(request, self.deliver(self.last, scheduled=scheduled)), effects)

    @precondition(lambda self: rules.unanswered(self.record()) is not None)
    @rule(promote=st.booleans(), effects=EFFECTS)
    def a_person_answers(self, promote: bool, effects: int) -> None:
        self.advance(self.start(None, self.answer(promote=promote)), effects)

    @rule(effects=EFFECTS)
    def it_is_rolled_back(self, effects: int) -> None:
        self.advance(self.start(None, self.roll_back), effects)

    @rule(effects=EFFECTS)
    def it_is_taken_down(self, effects: int) -> None:
        self.advance(self.start(None, protocol.take_down), effects)

    @precondition(lambda self: not self.runs and not self.record().active)
    @rule(effects=EFFECTS)
    def what_runs_by_hand_is_adopted(self, effects: int) -> None:
        wanted = spec("hand", "blue-green", "refuse", 1, "0s")
        self.advance(self.start(None, lambda session: self._adopt(session, wanted)), effects)

    def _adopt(self, session: Session, wanted: DeliverySpec) -> None:
        """As ``verbs/adopt.py`` takes it."""
        payload, address = session.target.payload(wanted, lock(wanted)), session.target.address("m")
        name, now = digest(payload.content()), self.clock.now()
        frozen = Frozen(
            payload=payload,
            lock=lock(wanted),
            unchanged=unchanged_digest(wanted, lock(wanted)),
            model=wanted.model,
            storage=wanted.storage,
            args=wanted.serving.args,
            address=address,
            created=now,
            verified=False,
        )
        self.proven.add(name)
        session.freeze(name, frozen)
        ended = Ended(name, session.record.attempt_of(name), Outcome.ADOPTED, session.request, 0, now)
        session.write(rules.adopted(session.record, ended, 1, address, wanted.runner))
        session.converge()

    @precondition(lambda self: self.runs)
    @rule(which=st.integers(0, 3), effects=EFFECTS)
    def a_run_goes_on(self, which: int, effects: int) -> None:
        self.advance(self.runs[which % len(self.runs)], effects)

    @precondition(lambda self: self.runs)
    @rule(which=st.integers(0, 3))
    def a_run_is_killed(self, which: int) -> None:
        self.kill(self.runs[which % len(self.runs)])

    @precondition(lambda self: self.last)
    @rule(first=EFFECTS, second=EFFECTS)
    def a_run_is_killed_and_its_recovery_too(self, first: int, second: int) -> None:
        assert self.last is not None
        for effects in (first, second):
            run = self.start(None, self.deliver(self.last))
            self.advance(run, effects)
            self.kill(run)

    @precondition(lambda self: self.record().previous)
    @rule(effects=EFFECTS)
    def a_rollback_is_killed(self, effects: int) -> None:
        run = self.start(None, self.roll_back)
        self.advance(run, effects)
        self.kill(run)

    @precondition(lambda self: self.runs)
    @rule(which=st.integers(0, 3))
    def a_run_is_stopped_for_longer_than_its_lease(self, which: int) -> None:
        self.runs[which % len(self.runs)].stopped = True
        self.clock.sleep(61)

    @rule()
    def all_engines_die(self) -> None:
        for states in self.place.status.values():
            for release in states:
                states[release] = "failed"

    @precondition(lambda self: self.record().serving)
    @rule()
    def what_serves_breaks(self) -> None:
        """As a node that lost its GPU, or an image that is gone: it cannot run again."""
        self.place.broken.add(str(self.record().serving))
        self.place.tick()

    @rule(seconds=st.sampled_from([1.0, 700.0]))
    def time_passes(self, seconds: float) -> None:
        self.clock.sleep(seconds)

    @rule()
    def everything_settles(self) -> None:
        """Every run ends, the last request is made again, as its plan says, and again. In
        the end all can run.
        """
        self.finish()
        self.place.broken.clear()
        self.place.tick()
        if self.last is None:
            return
        self.up_does_what_the_plan_says(self.last)
        self.start(None, self.deliver(self.last))
        self.finish()
        if rules.unanswered(self.record()):
            self.start(None, self.answer(promote=True))
            self.finish()
        self.at_rest_one_release_serves(self.last)

    def teardown(self) -> None:
        if hasattr(self, "place"):
            self.everything_settles()

    # --- what must hold

    def check(self) -> None:
        now = self.record()
        self.nothing_is_without_a_record()
        self.no_traffic_goes_to_an_unproven_release(now)
        self.the_old_release_is_untouched_before_the_gate(now)
        self.a_request_ends_once(now)
        self.no_traffic_goes_to_a_sleeper()
        self.no_traffic_goes_to_a_lap_of_a_race()
        self.nobody_gets_traffic_before_a_person_has_said_so(now)
        if self.target.weighs:
            self.a_gateway_knows_whoever_gets_traffic_and_whoever_leaves_had_none()

    def shares(self) -> dict[str, int]:
        seen = self.place.objects.get(THE_ROUTE)
        return weighty(seen[0]) if seen else {}

    def nothing_is_without_a_record(self) -> None:
        running = self.place.running()
        assert not running or RECORD_REF in self.place.objects
        unknown = {release for release in running if Ref(RELEASE, release) not in self.place.objects}
        assert not unknown, (unknown, self.record())

    def no_traffic_goes_to_an_unproven_release(self, now: Record) -> None:
        passed = {e.release for e in now.ended if e.exit_code == 0} | self.proven
        first = not self.can.dark_first and (now.candidate is not None or not now.active)
        for release, share in self.shares().items():
            assert not share or release in passed or first, (release, now)

    def no_traffic_goes_to_a_sleeper(self) -> None:
        assert not self.shares().keys() & self.place.asleep(), (self.shares(), self.record())

    def no_traffic_goes_to_a_lap_of_a_race(self) -> None:
        engines = (resource for resource, _ in self.place.objects.values() if resource.ref.kind == ENGINE)
        laps = {resource.ref.name for resource in engines if resource.spec["lap"]}
        assert not laps & {name for name, share in self.shares().items() if share}, (laps, self.record())

    def the_old_release_is_untouched_before_the_gate(self, now: Record) -> None:
        candidate, serving = now.candidate, now.serving
        if candidate is None or serving is None or candidate.ending is not None:
            return
        moves = candidate.strategy == "recreate" or candidate.kind == "rollback"
        if moves or candidate.release in self.proven:
            return
        if serving in self.shares() or serving in self.place.running():
            assert self.shares().get(serving, 0) == 100, (self.shares(), now)

    def a_gateway_knows_whoever_gets_traffic_and_whoever_leaves_had_none(self) -> None:
        before, self.route = self.route, self.place.objects.get(THE_ROUTE)
        if before is None or self.route is None or before == self.route:
            return
        then, now = before[0].spec["traffic"], self.route[0].spec["traffic"]
        raised = [name for name, weight in now.items() if weight and not then.get(name)]
        assert then.keys() >= set(raised), (then, now)
        assert not raised or self.place.known == before[1], ("no status was waited for", then, now)
        assert not [name for name, weight in then.items() if weight and name not in now], (then, now)

    def nobody_gets_traffic_before_a_person_has_said_so(self, now: Record) -> None:
        candidate = now.candidate
        if candidate and candidate.approval and not candidate.approval.promote and self.can.dark_first:
            assert not self.shares().get(candidate.release), (self.shares(), now)

    def a_request_ends_once(self, now: Record) -> None:
        requests = [e.request for e in now.ended if e.request]
        assert len(requests) == len(set(requests)), requests

    def up_does_what_the_plan_says(self, wanted: DeliverySpec) -> None:
        """The same release, and the same stages in the same order, in the middle of any
        phase too; a run that is refused has passed the first of them. And the same word,
        where nothing is delivered.
        """
        try:
            plan = planned(self.session(self.place, ""), wanted, lock(wanted), now=self.clock.now())
        except NoRoom:
            return
        run = self.start(None, self.deliver(wanted))
        passed = list(dict.fromkeys(self._phases(run, plan)))
        said = [str(stage.phase) for stage in plan.route.stages] if plan.route else []
        assert passed == said[: len(passed)], (plan, passed)
        if self.record().serving == plan.release:
            assert passed == said, (plan, passed)
        if not plan.answer.delivers and isinstance(run.outcome, dict):
            assert run.outcome["result"] == plan.answer, (plan, run.outcome)

    def _phases(self, run: Run, plan: Planned) -> Iterator[str]:
        while run.alive:
            candidate = self.record().candidate
            if candidate and candidate.release == plan.release and not candidate.ending and candidate.strategy:
                yield str(candidate.phase)
            self.advance(run, 1)
        self.runs.clear()

    def at_rest_one_release_serves(self, wanted: DeliverySpec) -> None:
        """Alone or beside its standby; a rerun would change nothing; its plan says so."""
        now = self.record()
        assert now.candidate is None
        assert Ref(LEASE, "lease") not in self.place.objects
        running = {name for name, _ in now.desired.releases} - {*now.desired.asleep}
        assert self.place.asleep() == {*now.desired.asleep}
        assert self.place.running() == (running if now.address else set()), (self.place.running(), now)
        assert self.shares() == ({now.serving: 100} if now.serving else {}), (self.shares(), now)
        book = self.session(self.place, "")
        assert book.changes(book.desired()) == ()
        if now.serving and now.serving == identify(book, wanted, lock(wanted), 0)[0]:
            assert planned(book, wanted, lock(wanted), now=0).answer is rules.Answer.UNCHANGED


@pytest.mark.parametrize("kind", sorted(TARGETS))
def test_any_story_killed_anywhere_twice_converges(kind: str) -> None:
    examples = settings(
        max_examples=100,
        stateful_step_count=40,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink],
    )
    before = played.copy()
    run_state_machine_as_test(type(kind, (Deliveries,), {"kind": kind}), settings=examples)
    steps, runs, kills = (played[what] - before[what] for what in ("steps", "runs", "kills"))
    print(f"{kind}: {steps} effects of {runs} runs, {kills} of them killed")
    assert steps >= STEPS_WANTED / len(TARGETS)


@pytest.mark.parametrize("room", [1, 2])
@pytest.mark.parametrize("label", ["b", "bad", "dead"])
def test_a_sleeper_is_neither_forgotten_nor_given_traffic_wherever_a_run_is_killed(label: str, room: int) -> None:
    """A promotion or a refusal beside what then sleeps, and the rollback to it: killed
    after each effect, and made again.
    """
    effects, slept = 0, 0
    for story in ("deliver", "roll back"):
        for at in range(1, 60):
            runs = Deliveries()
            runs.prepare("process", room)
            specs = [spec(name, "blue-green", "recreate", 1, "600s", "sleep") for name in ("a", label)]
            runs.start(None, runs.deliver(specs[0]))
            runs.finish()
            old = str(runs.record().serving)
            if story == "roll back":
                runs.start(None, runs.deliver(specs[1]))
                runs.finish()
                slept += runs.place.asleep() == {old}
            if story == "roll back" and runs.record().previous is None:
                break
            act = runs.deliver(specs[1]) if story == "deliver" else runs.roll_back
            run = runs.start(None, act)
            runs.advance(run, at)
            over = not run.alive
            runs.kill(run)
            again = runs.start(None, act)
            runs.finish()
            if story == "roll back":  # what it left is due, and whoever comes next ends it
                runs.start(None, lambda session: protocol.collect(session, do.ROLLBACK))
                runs.finish()
            effects += 1
            now = runs.record()
            promoted = story == "deliver" and label == "b"
            assert (now.serving == old) != promoted, (story, at, again.outcome, now)
            assert now.candidate is None
            assert (runs.place.running(), runs.place.asleep()) == ({now.serving}, {old} if promoted else set())
            if over:
                break
        else:
            raise AssertionError("a run of more than sixty effects")
    assert effects > 5
    assert slept or label != "b"


def test_a_fault_of_ours_withdraws_the_release_as_a_refusal_does() -> None:
    runs = Runs()
    runs.prepare("process", 2)
    run = None
    for label in ("a", "broken"):
        run = runs.start(None, runs.deliver(spec(label, "blue-green", "refuse", 1, "0s")))
        runs.finish()
    now = runs.record()
    assert run is not None
    assert isinstance(run.outcome, ZeroDivisionError)
    assert (now.candidate, now.ended[-1].outcome) == (None, Outcome.FAILED)
    assert "the run broke, and what was on its way was withdrawn" in now.ended[-1].message
    assert runs.place.running() == {now.serving}


@pytest.mark.parametrize(
    ("kind", "strategy"), [*product(TARGETS, ["blue-green"]), *product(["process", "gateway", "t9k"], ["canary"])]
)
@pytest.mark.parametrize("label", ["good", "bad", "dead"])
def test_a_serving_release_that_is_down_holds_up_neither_its_repair_nor_a_refusal(
    kind: str, label: str, strategy: str
) -> None:
    runs = Runs()
    runs.prepare(kind, room=3)
    first = runs.start(None, runs.deliver(spec("a", "blue-green", "refuse", 1, "0s")))
    runs.finish()
    serving = runs.record().serving
    assert first.outcome["result"] == "promoted"
    runs.place.broken.add(str(serving))
    runs.place.tick()
    began = runs.clock.monotonic()
    runs.start(None, runs.deliver(spec(label, strategy, "refuse", 1, "0s")))
    runs.finish()
    assert (runs.record().serving == serving) == (label != "good")
    assert runs.record().candidate is None
    assert runs.clock.monotonic() - began < 100, "nothing waits for what was down before"
