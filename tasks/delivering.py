"""The steps of the DAG: bodies of a few lines over the session of this context."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from model_delivery.base.findings import Finding, GateFailed, Interrupted, Permanent, Trouble, trouble
from model_delivery.base.home import default_home
from model_delivery.base.units import Duration
from model_delivery.measure import report as reports
from model_delivery.measure.metrics import LoadReport
from model_delivery.measure.smoke import SmokeReport
from model_delivery.measure.verdict import judge
from model_delivery.places.guarded import Observer, unobserved
from model_delivery.places.host.place import Host
from model_delivery.places.opening import open_place
from model_delivery.run import evidence, protocol
from model_delivery.run.preflight import preflight
from model_delivery.run.protocol import Admission
from model_delivery.run.record import Candidate, Record
from model_delivery.run.resolve import last_snapshot, resolve_lock
from model_delivery.run.session import Session, current, frozen_releases, opened
from model_delivery.spec import DeliverySpec
from model_delivery.steps.fetch import STEP as FETCH
from model_delivery.steps.fetch import FetchInput
from model_delivery.steps.load import STEP as LOAD
from model_delivery.steps.load import LoadInput
from model_delivery.steps.smoke import STEP as SMOKE
from model_delivery.steps.smoke import SmokeInput
from model_delivery.targets import TargetKey
from model_delivery.tasks import artifacts
from model_delivery.tasks.step import run_id, step
from model_delivery.values.gates import Rollout
from model_delivery.values.readiness import Failed
from model_delivery.values.release import Lock
from model_delivery.values.rollout import Stage
from model_delivery.verbs import adopting
from model_delivery.verbs.service import record_of

observer: Observer = unobserved
EVERYTHING = 10**6
ROLLBACK = Rollout(
    strategy="blue-green",
    when_full="recreate",
    watch=Duration("0s"),
    standby=Duration("0s"),
    keep=EVERYTHING,
    history=EVERYTHING,
)


class Run:
    """One request on one delivery, while its session is open."""

    def __init__(self, session: Session) -> None:
        self.session = session

    def stages(self) -> Iterator[Stage]:
        yield from protocol.plan_stages(self.session)

    @contextmanager
    def withdrawn_on_trouble(self) -> Iterator[None]:
        """A Trouble inside ends the candidate: what serves keeps serving."""
        try:
            yield
        except Interrupted:
            raise
        except Trouble as bad:
            try:
                protocol.refuse(self.session, bad)
            except Trouble as worse:
                raise Permanent(*bad.findings, *worse.findings) from bad
            raise

    def outcome(self, admission: Admission) -> dict[str, Any]:
        """What this request came to, as plain JSON. A reported failure is raised again, with its exit code."""
        record = self.session.record
        ended = admission.ended or next((e for e in reversed(record.ended) if e.request == self.session.request), None)
        if ended is not None and ended.exit_code != 0:
            raise trouble(
                ended.exit_code,
                Finding(
                    "todo",
                    f"request {ended.request} has ended before: {ended.outcome}",
                    ended.message,
                    "make a new request to try again",
                ),
            )
        return {
            "name": self.session.delivery,
            "result": ended.outcome if ended else admission.result,
            "release": record.serving,
            "url": self.session.url(self.session.place.world(self.session.delivery)),
            "report": ended.report if ended else None,
            "request": self.session.request,
        }


@contextmanager
def delivering(spec: DeliverySpec, request: str | None, *, take_over: bool = False) -> Iterator[Run]:
    """Preflight, then a session of ``spec``'s delivery. Refused before anything is touched."""
    key = spec.target.key()
    target = key.target()
    place = open_place(key, take_over=take_over)
    with artifacts.progress_sink():
        preflight(spec, place, target)
        asked = request or run_id() or uuid.uuid4().hex
        with opened(
            place, spec.name, target, key, request=asked, when_busy=spec.concurrency, observer=observer
        ) as session:
            yield Run(session)


@contextmanager
def rolling_back(name: str, request: str | None, where: TargetKey | None = None) -> Iterator[Run]:
    """A session of a delivery that exists already, on this host or ``where``."""
    place = Host(default_home()) if where is None else open_place(where)
    key, asked = record_of(place, name).target, request or run_id() or uuid.uuid4().hex
    with artifacts.progress_sink(), opened(place, name, key.target(), key, request=asked, observer=observer) as session:
        yield Run(session)


@step("resolve")
def resolve(spec: DeliverySpec) -> Lock:
    """Branch → commit with its files; engine → its content. When that fails, what serves is still looked after."""
    session = current()
    try:
        return resolve_lock(spec, last_snapshot(spec.model, frozen_releases(session.place.world(spec.name)).values()))
    except Trouble:
        protocol.look_after(session)
        raise


@step("plan")
def plan(spec: DeliverySpec, lock: Lock, scheduled: bool) -> Admission:
    """What this request comes to; what is left of an earlier run is adopted or undone."""
    admission = protocol.admit(current(), spec, lock, scheduled=scheduled)
    artifacts.publish_plan(plan_markdown(spec, lock, admission, current().record))
    return admission


@step("choose")
def choose(to: str | None) -> Admission:
    """Fix the release to go back to."""
    return protocol.start_rollback(current(), to, ROLLBACK)


@step("storage")
def storage() -> None:
    """The folder of the models, and the engine's environment."""
    session = current()
    frozen = session.frozen(candidate().release)
    for resource in session.target.storage(session.delivery, frozen.lock, frozen.storage):
        session.place.put(resource)


@step("fetch")
def fetch() -> None:
    """The model, verified, in the folder of its commit."""
    session = current()
    if candidate().phase != protocol.FETCH:
        return
    frozen = session.frozen(candidate().release)
    if frozen.payload.by_hand is not None:
        adopting.verify_weights(session, candidate().release, frozen)
        return
    root = session.target.root(frozen.storage) or str(default_home())
    session.run_step(FETCH, FetchInput(model=frozen.model, snapshot=frozen.lock.snapshot, root=root), "fetch")


@step("release")
def release(stage: Stage) -> None:
    """Make it so: the stage's releases and traffic."""
    protocol.enter(current(), stage)


@step("ready")
def ready(stage: Stage) -> str:
    """The candidate's own endpoint, once it is ready and the traffic is where it shall be. A retry starts again what may come up then."""
    session = current()
    if not any(r.id == candidate().release for r in stage.desired.releases):
        return ""
    match session.target.readiness(session.release(candidate().release), session.place.world(session.delivery)):
        case Failed(retryable=True):
            session.converge()
    endpoint = session.wait_ready(candidate().release, protocol.ready_timeout(session))
    session.wait_routed()
    return endpoint


@step("smoke")
def smoke(stage: Stage, endpoint: str) -> SmokeReport | None:
    """Does it answer, streamed and not, as the model that was meant?"""
    gate = candidate().gates.smoke
    if gate is None or "smoke" not in stage.gates:
        return None
    payload = current().frozen(candidate().release).payload
    given = SmokeInput(
        url=endpoint,
        api_key=payload.api_key,
        model_names=payload.names,
        prompt=gate.prompt,
        expect=gate.expect,
        max_tokens=gate.max_tokens,
        max_model_len=max_model_len(payload.args),
    )
    return current().run_step(SMOKE, given, stage.name)


@step("throughput")
def throughput(stage: Stage, endpoint: str, smoked: SmokeReport | None) -> LoadReport | None:
    """Locust against the candidate's own endpoint; not where the smoke test already said no."""
    gate = candidate().gates.throughput
    if gate is None or "throughput" not in stage.gates or (smoked is not None and not smoked.passed):
        return None
    payload = current().frozen(candidate().release).payload
    given = LoadInput(
        url=endpoint,
        api_key=payload.api_key,
        model=payload.names[0],
        profile=gate.profile,
        users=gate.users,
        rate=gate.rate,
        warmup=gate.warmup,
        duration=gate.duration,
        repeats=gate.repeats,
        seed=candidate().attempt,
        folder=".",
        slo=gate.slo,
        shared=stage.desired.shares.get(candidate().release, 0) > 0 and current().record.serving is not None,
    )
    return current().run_step(LOAD, given, stage.name)


@step("verdict")
def verdict(stage: Stage, smoked: SmokeReport | None, load: LoadReport | None) -> None:
    """Judge what was measured; GateFailed names every figure and bound that it broke, and where the evidence is."""
    if not stage.gates or (smoked is None and load is None):
        return
    session, gate = current(), candidate().gates.throughput
    judged = judge(
        smoked,
        load,
        gate.slo if gate else None,
        baseline=baseline(session) if load is not None else None,
        max_regression=gate.max_regression if gate else None,
    )
    written = reports.write(report_folder(), subject(stage), smoked, load, judged)
    artifacts.publish_verdict(written.markdown)
    if written.png is not None:
        artifacts.publish_picture(written.png, f"{session.delivery} {candidate().release}")
    where = keep(written)
    if not judged.passed:
        why = [Finding("todo", reason.text, f"gate {reason.gate}") for reason in judged.reasons if not reason.passed]
        main = session.place.world(session.delivery).objects.get(
            session.target.main(session.delivery, session.release(candidate().release))
        )
        there = f"`deliver history {session.delivery} --reports DIR` writes it, beside its report"
        shown = (f"report: {where}", f"engine log: {main.status.get('log', there) if main else there}")
        end = Finding(
            "todo",
            f"the release was refused at stage {stage.name}",
            "the previous release, if any, still serves",
            "read the report",
            shown,
        )
        raise GateFailed(*why, end)


@step("watch")
def watch(stage: Stage) -> None:
    """Look after the candidate while it has traffic; GateFailed when it does not stay ready."""
    protocol.watch(current(), stage)


@step("promote")
def promote() -> None:
    """From now on it is what serves."""
    protocol.promote(current())


@step("collect")
def collect(rollout: Rollout) -> None:
    """Remove what is due."""
    protocol.collect(current(), rollout)


def candidate() -> Candidate:
    return protocol.candidate_of(current())


def report_folder() -> Path:
    return (
        default_home() / "deliveries" / current().delivery / "reports" / f"{candidate().release}-{candidate().attempt}"
    )


def keep(written: reports.Written) -> str:
    """Note figures and report of the attempt; in a cluster its files too. Returns what the record says of them: a path, or a ConfigMap's name."""
    session, tried = current(), candidate()
    on_host = session.record.target.place == "host"
    where = str(written.html) if on_host else evidence.where(session.delivery, tried.release, tried.attempt)
    protocol.judged(session, written.figures, where)
    if not on_host:
        files = {file.name: file.read_bytes() for file in written.html.parent.iterdir() if file.is_file()}
        evidence.keep(session.place, session.delivery, tried.release, tried.attempt, files)
    return where


def baseline(session: Session) -> LoadReport | None:
    """The load test that what serves now has passed; None when there was none, or its report is gone."""
    record = session.record
    passed = [e for e in record.ended if e.release == record.serving and e.outcome == "promoted" and e.report]
    return (
        reports.load_test(evidence.files(session.place, session.delivery, passed[-1]).get("report.json", b""))
        if passed
        else None
    )


def subject(stage: Stage) -> reports.Subject:
    session, tried = current(), candidate()
    frozen = session.frozen(tried.release)
    snapshot = frozen.lock.snapshot
    engine = frozen.lock.engine.name if frozen.lock.engine else str(frozen.lock.image)
    return reports.Subject(
        session.delivery,
        tried.release,
        tried.attempt,
        stage.name,
        f"{snapshot.source} {snapshot.key}",
        snapshot.commit,
        engine,
        frozen.args,
        session.clock.now(),
    )


def plan_markdown(spec: DeliverySpec, lock: Lock, admission: Admission, record: Record) -> str:
    """What the run's page shows first."""
    snapshot = lock.snapshot
    at_once = record.serving is None and not spec.target.key().target().can.dark_first
    rows = {
        "result": {
            "candidate": "a new release",
            "unchanged": "nothing to do",
            "healed": "what serves was put right",
            "held": "held after a rollback",
            "reported": "this request has ended",
        }[admission.result],
        "release": admission.release,
        "serving now": record.serving or "nothing",
        "model": f"{snapshot.source} {snapshot.key} @ {snapshot.commit[:12]} ({len(snapshot.files)} files, {snapshot.size / 1e6:,.1f} MB)",
        "target": spec.target.kind,
        "strategy": spec.rollout.strategy
        + (" (a first release: all of the traffic at once; a refusal takes it away)" if at_once else ""),
    }
    return "\n".join(
        [f"## {spec.name}", "", "| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in rows.items())]
    )


def max_model_len(args: Sequence[str]) -> int | None:
    """What ``--max-model-len`` says among the engine's arguments, None when it says nothing (or not a plain number)."""
    for at, arg in enumerate(args):
        name, _, value = arg.partition("=")
        if name == "--max-model-len":
            value = value or (args[at + 1] if at + 1 < len(args) else "")
            return int(value) if value.isdigit() else None
    return None
