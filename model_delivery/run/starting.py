"""How a release's start goes on, how long it may yet take, and what is kept of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from model_delivery.base import Finding, Progress, Trouble, report
from model_delivery.measure.smoke import SmokeReport
from model_delivery.run import rules
from model_delivery.run.book import Book
from model_delivery.run.frozen import Frozen, releases
from model_delivery.run.record import Candidate, Starts
from model_delivery.run.session import Session
from model_delivery.run.wait import Timeline
from model_delivery.values import Phase, ReleaseId, World
from model_delivery.values.engine import DEFAULT_LOADER

PATIENCE = 3.0  # times the longest start that is kept
ANSWERS = ("chat", "completions")  # checks of a smoke test that need a token


def words(starts: Mapping[Phase, float | None]) -> str:
    """In one line: ``process up 0.4 s, weights 12.0 s``."""
    told = ((phase, starts[phase]) for phase in Phase if phase in starts)
    return ", ".join(phase if at is None else f"{phase} {at:.1f} s" for phase, at in told)


def kept(book: Book, release: ReleaseId, world: World | None = None) -> list[Starts]:
    """How the starts of the same model by the same engine went, the newest last."""
    went = [ended for ended in book.record.ended if Phase.HEALTHY in ended.starts]
    known = releases(world or book.world()) if went else {}
    same = {name for name, frozen in known.items() if release in known and _of(frozen) == _of(known[release])}
    return [ended.starts for ended in went if ended.release in same]


def _of(frozen: Frozen) -> tuple[object, ...]:
    lock = frozen.lock
    return lock.snapshot.source, lock.snapshot.key, lock.image, lock.engine and lock.engine.name


def patience(frozen: Frozen, before: Sequence[Starts]) -> float:
    """How long its start may take. Where a spec does not say, a start before does too."""
    longest = 0.0 if frozen.startup_timeout else max((one[Phase.HEALTHY] for one in before), default=0.0)
    return max(frozen.startup_seconds, PATIENCE * longest)


def wait_ready(session: Session, release: ReleaseId, *, racing: bool = False) -> str:
    """The candidate's own endpoint, once it is ready; how its start went is noted, once.
    A start that fails with what may be left out (an earlier start's cache, the loader
    that has won, unless they are ``racing``) is tried once without it.
    """
    frozen, before = session.frozen(release), kept(session, release)
    timeline, timeout = Timeline(before[-1] if before else {}), patience(frozen, before)
    try:
        endpoint = session.wait_ready(release, timeout, timeline)
    except Trouble as failed:
        plain = _plainer(frozen, failed.findings[0], kept=timeline.kept, racing=racing)
        if plain is None:
            raise
        session.freeze(release, plain)
        session.remove(session.target.main(session.delivery, session.release(release)))
        session.converge()
        timeline = Timeline(timeline.before)
        endpoint = session.wait_ready(release, timeout, timeline)
    if timeline.seconds and not session.candidate.starts:
        if Phase.HEALTHY in timeline.seconds:
            report(Progress("start", words(timeline.seconds)))
        session.write(rules.started(session.record, timeline.seconds))
    return endpoint


def _plainer(frozen: Frozen, failed: Finding, *, kept: bool, racing: bool) -> Frozen | None:
    """A start is doubted, not its error: a spoilt cache has no words of its own."""
    if not failed.code.startswith("engine."):
        return None
    if kept and (payload := frozen.payload.without_cache()):
        what, why = "the engine is started once more, without its cache", "with what an earlier start left"
        fix = "where it becomes ready now, `deliver gc` removes what was spoilt"
        report(Progress("cache", str(Finding("engine.cache-dropped", what, f"{why}: {failed.what}", fix))))
        return frozen.model_copy(update={"payload": payload})
    if not racing and frozen.lock.loader not in (None, DEFAULT_LOADER):
        what, why = "the engine is started once more, with its own loader", f"with {frozen.lock.loader}: {failed.what}"
        fix = "where it becomes ready now, nothing: it keeps that one"
        report(Progress("race", str(Finding("engine.loader-dropped", what, why, fix))))
        return frozen.with_loader(DEFAULT_LOADER)
    return None


def answered(candidate: Candidate, smoked: SmokeReport | None) -> Starts:
    """A smoke test's first answer is its first token, as if it was asked for at once."""
    healthy, checks = candidate.starts.get(Phase.HEALTHY), smoked.checks if smoked else ()
    first = next((one for one in checks if one.passed and one.name.startswith(ANSWERS)), None)
    if healthy is None or first is None or Phase.ANSWERED in candidate.starts:
        return {}
    return {Phase.ANSWERED: round(healthy + first.seconds, 1)}
