"""A race of loaders: in the dark, before its gates, a release is started once with each
of the ways in which its engine can read the weights, and keeps the one that starts
soonest of those whose answers are equal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import isclose
from textwrap import shorten
from uuid import uuid4

from pydantic import BaseModel, ValidationError

from model_delivery.base import Finding, Interrupted, Permanent, Progress, Trouble, bearer, report
from model_delivery.measure import asking
from model_delivery.measure.words import printable
from model_delivery.run import rules, starting
from model_delivery.run.book import Book
from model_delivery.run.frozen import Frozen
from model_delivery.run.record import Lap, Race
from model_delivery.run.session import Session
from model_delivery.run.wait import Timeline
from model_delivery.values import Phase, Stage, StageKind, Strategy
from model_delivery.values.engine import DEFAULT_LOADER

SURE_SECONDS, SURE_SHARE = 1.0, 0.05  # by which a start must be shorter than the default's
LATE_SECONDS = 60.0  # after the default's time a start is lost
ANSWER_SECONDS, ANSWER_BYTES = 120.0, 1 << 20
TOKENS, LOGPROBS, SAME = 16, 5, 1e-3  # nats; a restart moves none, 64 values of one tensor 0.026
PROMPTS = (
    "The library opens at nine in the morning. On Sundays it stays closed, because",
    "Water boils at one hundred degrees Celsius at the level of the sea. On a high mountain",
    "def median(values):\n    ordered = sorted(values)\n    middle = len(ordered) // 2\n",
)


class Logprobs(BaseModel):
    tokens: list[str]
    top_logprobs: list[dict[str, float] | None]


class Choice(BaseModel):
    text: str
    logprobs: Logprobs


class _Said(BaseModel):
    choices: tuple[Choice, ...]


Answers = Sequence[Choice]
Ask = Callable[[Session, str], Answers]


def wanted(book: Book, stage: Stage) -> bool:
    """Shall the candidate's loaders race there? Not twice, and not for a rollback."""
    candidate = book.candidate
    dark = stage.phase.kind is StageKind.DARK and candidate.kind == "deliver"
    return dark and bool(announced(book.frozen(candidate.release)))


def is_outage(book: Book, strategy: Strategy) -> bool:
    """Does nothing serve while the candidate is started? Then its loaders do not race."""
    return strategy == "recreate" and book.record.serving is not None


def announced(frozen: Frozen) -> tuple[str, ...]:
    """Which loaders will race, in words; nothing where none do, or one has won."""
    loaders = frozen.payload.loaders if frozen.lock.loader is None else ()
    return (f"in the dark its loaders race: {', '.join((DEFAULT_LOADER, *loaders))}",) if loaders else ()


def race(session: Session, endpoint: str, strategy: Strategy, ask: Ask | None = None) -> str:
    """The endpoint of the candidate, started with the loader that has won. What cannot
    race keeps the engine's own; no loader but that one can fail a delivery.
    """
    ask = ask or answers
    if session.frozen(session.candidate.release).lock.loader:  # this step is tried again
        return _settled(session)
    if is_outage(session, strategy):
        report(Progress("race", "left out: nothing serves meanwhile; after `deliver down` the next `up` makes it"))
        return endpoint
    try:
        reference = ask(session, endpoint)
    except Permanent as trouble:
        report(Progress("race", f"left out: {_why(trouble)}"))
        return endpoint
    for loader in (DEFAULT_LOADER, *session.frozen(session.candidate.release).payload.loaders):
        laps = _race(session).laps
        if any(lap.loader == DEFAULT_LOADER and lap.out for lap in laps):
            break  # nothing to be measured by
        if all(lap.loader != loader for lap in laps):
            _Start(session, loader, ask, reference).run()
    return _settled(session)


def winner(laps: Iterable[Lap]) -> str:
    """The loader whose start was the shortest, surely shorter than the default's, with
    its weights not later; else the default.
    """
    known = {lap.loader: lap.starts for lap in laps if not lap.out and Phase.HEALTHY in lap.starts}
    default = known.get(DEFAULT_LOADER)
    if default is None:
        return DEFAULT_LOADER
    most = default[Phase.HEALTHY] - max(SURE_SECONDS, SURE_SHARE * default[Phase.HEALTHY])
    weights = default.get(Phase.WEIGHTS)
    better = {
        loader: starts[Phase.HEALTHY]
        for loader, starts in known.items()
        if starts[Phase.HEALTHY] <= most and (weights is None or starts.get(Phase.WEIGHTS, weights) <= weights)
    }
    return min(better, key=better.__getitem__, default=DEFAULT_LOADER)


def words(race: Race | None) -> str:
    """In one line: ``default 9.8 s; prefetch 7.1 s, won; runai out: it is not there``."""
    return "; ".join(_told(race)) if race else ""


def _told(race: Race) -> Iterator[str]:
    for lap in race.laps:
        weights = f" (weights {lap.starts[Phase.WEIGHTS]:.1f} s)" if Phase.WEIGHTS in lap.starts else ""
        won = ", won" if lap.loader == race.won else ""
        yield f"{lap.loader} " + (
            f"out: {lap.out}" if lap.out else f"{lap.starts.get(Phase.HEALTHY, 0):.1f} s{weights}{won}"
        )


@dataclass(frozen=True)
class _Start:
    """One lap: what runs in the dark is ended, the weights leave the page cache, and it
    starts again with the loader.
    """

    session: Session
    loader: str
    ask: Ask
    reference: Answers

    def run(self) -> None:
        before, timeline = _race(self.session), Timeline()
        self.session.lap = self.loader, uuid4().hex
        report(Progress("race", f"{self.loader}: it is started, its weights on the disk alone"))
        try:
            self.session.converge()
            endpoint = self.session.wait_ready(self.session.candidate.release, self._deadline(before), timeline)
            if timeline.began is not None:  # where it was ready before the first look, now is not too little
                timeline.seconds.setdefault(Phase.HEALTHY, round(self.session.clock.now() - timeline.began, 1))
            out = unlike(self.reference, self.ask(self.session, endpoint))
        except Interrupted:
            raise
        except Trouble as trouble:  # a lost lease is told by the write that follows
            out = _why(trouble)
        lap = Lap(self.loader, timeline.seconds, out)
        report(Progress("race", f"{self.loader}: {out or starting.words(timeline.seconds)}"))
        self.session.write(rules.raced(self.session.record, replace(before, laps=(*before.laps, lap))))

    def _deadline(self, before: Race) -> float:
        session, release = self.session, self.session.candidate.release
        usual = starting.patience(session.frozen(release), starting.kept(session, release))
        default = (lap.starts[Phase.HEALTHY] for lap in before.laps if Phase.HEALTHY in lap.starts)
        return min(usual, next(default, usual) + LATE_SECONDS)


def _settled(session: Session) -> str:
    """From now on it starts with the loader that has won."""
    race, release, session.lap = _race(session), session.candidate.release, None
    while True:
        won = winner(race.laps)
        race, frozen = replace(race, won=won), session.frozen(release)
        starts = next((lap.starts for lap in race.laps if lap.loader == won and not lap.out), {})
        session.write(rules.raced(session.record, race, starts))
        session.freeze(release, frozen.with_loader(won))
        session.converge()
        try:
            endpoint = starting.wait_ready(session, release, racing=True)
        except Trouble as trouble:
            if won == DEFAULT_LOADER or isinstance(trouble, Interrupted):
                raise
            laps = (replace(lap, out=_why(trouble)) if lap.loader == won else lap for lap in race.laps)
            race = replace(race, laps=(*laps,))
        else:
            report(Progress("race", words(race)))
            return endpoint


def _race(session: Session) -> Race:
    return session.candidate.race or Race()


def _why(trouble: Trouble) -> str:
    first = trouble.findings[0]
    return shorten(printable("; ".join(filter(None, (first.what, first.why))), 400), 200, placeholder=" …")


def answers(session: Session, endpoint: str) -> Answers:
    """What the candidate says to a few fixed prompts, and how sure it is of each token.
    Permanent where it does not say.
    """
    payload = session.frozen(session.candidate.release).payload
    key, given = bearer(payload.api_key), {"model": payload.names[0], "max_tokens": TOKENS, "logprobs": LOGPROBS}
    return [_answer(endpoint, {**given, "prompt": prompt, "temperature": 0, "seed": 0}, key) for prompt in PROMPTS]


def _answer(endpoint: str, given: dict[str, object], key: dict[str, str]) -> Choice:
    path, seconds, most = "/v1/completions", ANSWER_SECONDS, ANSWER_BYTES
    said = asking.ask(endpoint, path, given, headers=key, seconds=seconds, limit=most)
    try:
        return _Said.model_validate_json(bytes(said.body)).choices[0]
    except (ValidationError, IndexError):
        what, why = "its answers cannot be compared", said.why() or "they say no log-probabilities"
        fix = "race only what answers /v1/completions with logprobs"
        raise Permanent(Finding("release.no-answers", what, why, fix)) from None


def unlike(reference: Answers, others: Answers) -> str:
    """How the answers differ from those of the default; empty: in nothing."""
    for number, (one, other) in enumerate(zip(reference, others, strict=True), 1):
        if (one.text, one.logprobs.tokens) != (other.text, other.logprobs.tokens):
            return f"its answer {number} has another text"
        ours, theirs = one.logprobs.top_logprobs, other.logprobs.top_logprobs
        if len(ours) != len(theirs) or not all(map(_alike, ours, theirs)):
            return f"its answer {number} has other log-probabilities"
    return ""


def _alike(one: dict[str, float] | None, other: dict[str, float] | None) -> bool:
    one, other = one or {}, other or {}
    return one.keys() == other.keys() and all(isclose(one[token], other[token], abs_tol=SAME) for token in one)
