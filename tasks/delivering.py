"""The steps of the DAG: bodies of a few lines over the session of this context."""

from __future__ import annotations

from dataclasses import replace

from model_delivery.base import (
    Duration,
    Finding,
    GateFailed,
    Permanent,
    Progress,
    Trouble,
    report,
)
from model_delivery.base.home import default_home, proven
from model_delivery.measure import report as reports
from model_delivery.measure.control import blame, breaks_figures
from model_delivery.measure.metrics import LoadReport
from model_delivery.measure.smoke import SmokeReport
from model_delivery.measure.verdict import Reason, Verdict, judge
from model_delivery.run import evidence, protocol, rules, starting, watching
from model_delivery.run.answering import finding, in_use, probe, restart, wait_led
from model_delivery.run.book import Book
from model_delivery.run.plan import Route
from model_delivery.run.protocol import Admission
from model_delivery.run.record import Outcome, Starts
from model_delivery.run.replicas import without_ended
from model_delivery.run.resolve import resolve_lock
from model_delivery.run.rules import Answer
from model_delivery.run.session import Session, current
from model_delivery.run.stepping import fetch as fetch_weights
from model_delivery.run.stepping import run_step
from model_delivery.spec import DeliverySpec
from model_delivery.steps.load import STEP as LOAD
from model_delivery.steps.load import LoadInput
from model_delivery.steps.smoke import STEP as SMOKE
from model_delivery.steps.smoke import SmokeInput
from model_delivery.tasks import artifacts, events
from model_delivery.tasks.events import Event
from model_delivery.tasks.step import step
from model_delivery.values import FETCH as FETCHING
from model_delivery.values import (
    Current,
    Failed,
    Lock,
    Release,
    ReleaseId,
    Rollout,
    Stage,
    ThroughputGate,
    max_model_len,
)
from model_delivery.verbs.adopt import verify_weights
from model_delivery.verbs.plan import differs

EVERYTHING = 10**6
AT_ONCE = Duration("0s")
ROLLBACK = Rollout(
    strategy="blue-green",
    when_full="recreate",
    watch=AT_ONCE,
    standby=AT_ONCE,
    standby_mode="sleep",
    keep=EVERYTHING,
    history=EVERYTHING,
)


@step("resolve")
def resolve(spec: DeliverySpec) -> Lock:
    """Branch → commit with its files; engine → its content. When that fails, what serves
    is still looked after.
    """
    session = current()
    try:
        return resolve_lock(spec, session)
    except Trouble:
        protocol.look_after(session)
        raise


@step("plan")
def plan(spec: DeliverySpec, lock: Lock, scheduled: bool) -> Admission:
    """What this request comes to; what is left of an earlier run is adopted or undone."""
    session = current()
    admission = protocol.admit(session, spec, lock, scheduled=scheduled)
    table = artifacts.plan_table(spec, lock, admission, session.record.serving, session.target.can)
    delivers = admission.answer.delivers
    artifacts.publish_plan(table, differs(session, session.frozen(admission.release)) if delivers else ())
    if admission.answer is Answer.NEW:
        events.tell(Event.PROPOSED, session.delivery, admission.release)
    return admission


@step("answers")
def answers(admission: Admission) -> Admission:
    """What serves still gives tokens, or is started anew."""
    session, asked = current(), (Answer.UNCHANGED, Answer.HEALED, Answer.HELD)
    serving = session.record.serving if admission.answer in asked else None
    if serving is None:
        return admission
    found = probe(session, serving)
    if found.unasked:
        report(Progress("answers", f"{serving} cannot be asked for a token: {found.unasked}"))
    if found.silent:
        events.tell(Event.WEDGED, session.delivery, serving, Permanent(finding(session.delivery, found.why)))
        restart(session, serving, found)
        admission = replace(admission, answer=Answer.HEALED)
    if admission.answer is Answer.HEALED:
        wait_led(session)
    return admission


@step("choose")
def choose(to: str | None) -> Admission:
    """Fix the release to go back to."""
    return protocol.start_rollback(current(), to, ROLLBACK)


@step("storage")
def storage() -> None:
    """The folder of the models, and the engine's environment."""
    session = current()
    frozen = session.frozen(session.candidate.release)
    for resource in session.target.storage(session.delivery, frozen.lock, frozen.storage):
        session.place.put(resource)


@step("fetch")
def fetch() -> None:
    """The model, verified, in the folder of its commit."""
    session = current()
    candidate, frozen = session.candidate, session.frozen(session.candidate.release)
    if candidate.phase != FETCHING:
        return
    if frozen.payload.by_hand is not None:
        verify_weights(session, candidate.release, frozen)
        return
    fetch_weights(session, candidate.release, "fetch")


@step("release", per_stage=True)
def release(stage: Stage, way: Route) -> None:
    """Make it so: the stage's releases and traffic."""
    protocol.enter(current(), stage, way.strategy)


@step("ready", per_stage=True)
def ready(stage: Stage) -> str:
    """The candidate's own endpoint, once it is ready and the traffic is where it shall
    be.

    A retry starts again what may come up then.
    """
    session = current()
    candidate = session.candidate.release
    if candidate not in stage.desired.awake:
        return ""
    match session.target.readiness(session.release(candidate), session.world()):
        case Failed(retryable=True):
            session.converge()
    endpoint = starting.wait_ready(session, candidate)
    protocol.wait_routed(session, stage)
    return endpoint


@step("smoke", per_stage=True)
def smoke(stage: Stage, endpoint: str) -> SmokeReport | None:
    """Does it answer, streamed and not, as the model that was meant?"""
    session = current()
    gate = session.candidate.gates.smoke
    if gate is None or "smoke" not in stage.gates:
        return None
    again = "-approved" if _passed(session, stage) else ""
    payload = session.frozen(session.candidate.release).payload
    given = SmokeInput(
        url=endpoint,
        api_key=payload.api_key,
        model_names=payload.names,
        prompt=gate.prompt,
        expect=gate.expect,
        max_tokens=gate.max_tokens,
        max_model_len=max_model_len(payload.args),
    )
    return without_ended(run_step(session, SMOKE, given, f"{stage.phase}{again}"), session.world())


@step("throughput", per_stage=True)
def throughput(stage: Stage, endpoint: str, smoked: SmokeReport | None) -> LoadReport | None:
    """Locust against the candidate's own endpoint; not where the smoke test already said
    no.
    """
    session = current()
    candidate, gate = session.candidate, session.candidate.gates.throughput
    failed = smoked is not None and not smoked.passed
    if gate is None or "throughput" not in stage.gates or failed or _passed(session, stage):
        return None
    tried = session.release(candidate.release)
    shared = stage.share(tried) > 0 and session.record.serving is not None
    return run_step(session, LOAD, _load(session, gate, tried, endpoint, shared=shared), str(stage.phase))


def _load(session: Session, gate: ThroughputGate, tried: Release, endpoint: str, *, shared: bool) -> LoadInput:
    return LoadInput(
        **gate.load(),
        url=endpoint,
        api_key=tried.payload.api_key,
        model=tried.payload.names[0],
        seed=session.candidate.attempt,
        shared=shared,
    )


def breaks_a_figure(smoked: SmokeReport | None, load: LoadReport | None) -> bool:
    """Will the verdict refuse it for what its load test measured?"""
    session = current()
    return load is not None and breaks_figures(_judged(session, smoked, load, baseline(session)))


@step("control", per_stage=True)
def control(stage: Stage) -> LoadReport | None:
    """Where a figure is refused: what serves, under the same load in the same minutes.
    Not while somebody uses it.
    """
    session, serving = current(), current().record.serving
    gate = session.candidate.gates.throughput
    if gate is None or not gate.control:
        return None
    running = next((one for one in stage.desired.releases if one.id == serving), None)
    state = session.target.readiness(running, session.world()) if running else None
    if running is None or not isinstance(state, Current):
        return None
    if why := in_use(session, running.id):
        report(Progress("control", f"{serving} is not loaded beside it: {why}"))
        return None
    try:
        given = _load(session, gate, running, state.endpoint, shared=False)
        return run_step(session, LOAD, given, f"{stage.phase}-control", running.id)
    except Trouble as trouble:  # what was measured says no, whatever this would tell
        report(Progress("control", f"{serving} could not be measured beside it: {trouble.findings[0].what}"))
        return None


@step("verdict", per_stage=True)
def verdict(
    stage: Stage, smoked: SmokeReport | None, load: LoadReport | None, beside: LoadReport | None = None
) -> None:
    """Judge what was measured; GateFailed names every figure and bound that it broke, and
    where the evidence is. ``beside``: what serves, under the same load.
    """
    session = current()
    if load is None and (smoked is None or (smoked.passed and _passed(session, stage))):
        return
    earlier = baseline(session) if load is not None else None
    candidate, judged = session.candidate, _judged(session, smoked, load, earlier)
    blamed = _blamed(session, judged, load, beside, earlier)
    judged = replace(judged, reasons=(*judged.reasons, *blamed))
    home, attempt = default_home(), f"{candidate.release}-{candidate.attempt}"
    folder = proven(home / "deliveries" / session.delivery / "reports" / attempt, home)
    written = reports.write(folder, subject(session, stage), smoked, load, judged)
    artifacts.publish_verdict(written.markdown)
    if written.png is not None:
        artifacts.publish_picture(written.png, f"{session.delivery} {candidate.release}")
    where = keep(session, written, starting.answered(candidate, smoked))
    if not judged.passed:
        main = session.world().objects.get(session.target.main(session.delivery, session.release(candidate.release)))
        there = f"`deliver history {session.delivery} --reports DIR` writes it, beside its report"
        shown = (f"report: {where}", f"engine log: {main.status.get('log', there) if main else there}")
        old, wanted = session.record.serving, stage.desired
        again = "is woken" if old in wanted.asleep else "is started again"
        still = f"release {old} {'still serves' if old in wanted.awake else again}" if old else "nothing serves"
        still = "; ".join((still, *(reason.text for reason in blamed if reason.passed)))
        what = f"the release was refused at stage {stage.phase}"
        refused = Finding("gate.refused", what, still, "read the report", shown)
        raise GateFailed(*_ended(session, candidate.release), *judged.findings(), refused)


@step("watch", per_stage=True)
def watch(stage: Stage) -> None:
    """Look after the candidate while it has traffic; GateFailed when it does not stay
    ready.
    """
    watching.watch(current(), stage)


@step("promote")
def promote() -> None:
    """From now on it is what serves."""
    session = current()
    candidate = session.candidate
    protocol.promote(session)
    event = Event.ROLLED_BACK if candidate.kind == "rollback" else Event.PROMOTED
    events.tell(event, session.delivery, candidate.release)


@step("collect")
def collect(rollout: Rollout) -> None:
    """Remove what is due."""
    protocol.collect(current(), rollout)


def _judged(
    session: Session, smoked: SmokeReport | None, load: LoadReport | None, earlier: LoadReport | None
) -> Verdict:
    gate = session.candidate.gates.throughput
    return judge(
        smoked,
        load,
        gate.slo if gate else None,
        baseline=earlier,
        max_regression=gate.max_regression if gate else None,
    )


def _blamed(
    session: Session,
    judged: Verdict,
    load: LoadReport | None,
    beside: LoadReport | None,
    earlier: LoadReport | None,
) -> tuple[Reason, ...]:
    gate, serving = session.candidate.gates.throughput, session.record.serving
    if load is None or beside is None or gate is None or serving is None:
        return ()
    return (blame(judged, load, beside, earlier, gate.slo, gate.max_regression, serving),)


def _passed(session: Session, stage: Stage) -> bool:
    """Was a person asked behind the gates of ``stage``? What they measured stands; life
    is proven anew.
    """
    return session.candidate.approval is not None and not stage.watched


def _ended(session: Session, release: ReleaseId) -> tuple[Finding, ...]:
    """Why its engine has ended by itself, of which the gates only saw that nobody
    answers.
    """
    match session.target.readiness(session.release(release), session.world()):
        case Failed(finding, retryable=False) if finding.code.startswith("engine."):
            return (finding,)
    return ()


def keep(session: Session, written: reports.Written, starts: Starts) -> str:
    """Note figures and report of the attempt, and when it gave its first token, in a
    cluster its files too.

    Returns what the record says of them: a path, or a ConfigMap's name.
    """
    candidate, folder = session.candidate, written.html.parent
    if session.place.keeps_files:
        session.write(rules.judged(session.record, written.figures, str(written.html), starts))
        return str(written.html)
    where = evidence.where(session.delivery, candidate.release, candidate.attempt)
    session.write(rules.judged(session.record, written.figures, where, starts))
    files = {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}
    evidence.keep(session.place, session.delivery, candidate.release, candidate.attempt, files)
    return where


def baseline(book: Book) -> LoadReport | None:
    """The load test that what serves now has passed; None when there was none, or its
    report is gone.
    """
    serving = book.record.serving
    passed = [e for e in book.record.ended if e.release == serving and e.outcome == Outcome.PROMOTED and e.report]
    if not passed:
        return None
    try:
        return reports.load_test(evidence.report_json(book.place, book.delivery, passed[-1]))
    except OSError:
        return None


def subject(session: Session, stage: Stage) -> reports.Subject:
    candidate, frozen = session.candidate, session.frozen(session.candidate.release)
    snapshot = frozen.lock.snapshot
    return reports.Subject(
        session.delivery,
        candidate.release,
        candidate.attempt,
        str(stage.phase),
        f"{snapshot.source} {snapshot.key}",
        snapshot.commit,
        frozen.lock.engine.name if frozen.lock.engine else str(frozen.lock.image),
        frozen.args,
        session.clock.now(),
    )
