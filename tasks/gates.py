"""The gates of a release, each one task: smoke, throughput, and the verdict on both."""

from __future__ import annotations

from dataclasses import replace

from model_delivery.base import (
    Finding,
    GateFailed,
    Progress,
    Trouble,
    report,
)
from model_delivery.base.home import default_home, proven
from model_delivery.measure import report as reports
from model_delivery.measure.control import blame, breaks_figures
from model_delivery.measure.metrics import LoadReport
from model_delivery.measure.smoke import SmokeReport
from model_delivery.measure.verdict import UNCOMPARED, Reason, Verdict, judge
from model_delivery.run import evidence, rules, starting
from model_delivery.run.book import Book
from model_delivery.run.record import Outcome, Starts
from model_delivery.run.replicas import without_ended
from model_delivery.run.session import Session, current
from model_delivery.run.stepping import run_step
from model_delivery.steps.load import STEP as LOAD
from model_delivery.steps.load import LoadInput
from model_delivery.steps.smoke import STEP as SMOKE
from model_delivery.steps.smoke import SmokeInput
from model_delivery.tasks import artifacts
from model_delivery.tasks.step import step
from model_delivery.values import (
    Current,
    Failed,
    Release,
    ReleaseId,
    Stage,
    ThroughputGate,
    max_model_len,
)


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


def _load(
    session: Session, gate: ThroughputGate, tried: Release, endpoint: str, *, shared: bool, unless_used: bool = False
) -> LoadInput:
    return LoadInput(
        **gate.load(),
        url=endpoint,
        api_key=tried.payload.api_key,
        model=tried.payload.names[0],
        seed=session.candidate.attempt,
        shared=shared,
        unless_used=unless_used,
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
    try:
        given = _load(session, gate, running, state.endpoint, shared=False, unless_used=True)
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
    for reason in judged.reasons:
        if reason.name == UNCOMPARED:
            report(Progress("verdict", reason.text))
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


def _judged(
    session: Session, smoked: SmokeReport | None, load: LoadReport | None, earlier: LoadReport | str | None
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
    earlier: LoadReport | str | None,
) -> tuple[Reason, ...]:
    gate, serving = session.candidate.gates.throughput, session.record.serving
    if load is None or beside is None or gate is None or serving is None:
        return ()
    before = earlier if isinstance(earlier, LoadReport) else None
    return (blame(judged, load, beside, before, gate.slo, gate.max_regression, serving),)


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


def baseline(book: Book) -> LoadReport | str | None:
    """The load test that what serves now has passed, or why there is none to compare
    with; None where nothing serves.
    """
    serving = book.record.serving
    if serving is None:
        return None
    passed = [e for e in book.record.ended if e.release == serving and e.outcome == Outcome.PROMOTED and e.report]
    if not passed:
        return f"no report is kept of a load test that {serving} has passed"
    try:
        load = reports.parse(evidence.report_json(book.place, book.delivery, passed[-1])).throughput
    except (OSError, ValueError) as error:
        return f"the report of {serving} cannot be read: {getattr(error, 'strerror', None) or error}"
    return load or f"{serving} was promoted without a load test"


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
