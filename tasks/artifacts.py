"""What a run shows on its page: plan, progress, verdict, picture. Outside a run nothing
happens.

A page that cannot be written is a warning in the run's log: it never ends a delivery.
"""

from __future__ import annotations

import base64
import logging
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import copy_context
from dataclasses import dataclass
from textwrap import indent
from traceback import format_exception
from typing import TYPE_CHECKING, Any, cast

import httpx

from model_delivery.base import NAME, Progress, Trouble, progress
from model_delivery.base.findings import together
from model_delivery.base.scrubbing import plain
from model_delivery.run.protocol import Admission
from model_delivery.spec import DeliverySpec
from model_delivery.tasks.step import flow_run
from model_delivery.values import Capabilities, Lock, ReleaseId

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun

LOG_SECONDS = 5.0
ARTIFACT_SECONDS = 1.0
BROKE = "release.broke"


def publish_plan(markdown: str, differs: Iterable[str]) -> None:
    """What this run is going to do, and in what the release differs from what serves."""
    quoted = "\n".join(_quoted(differs))
    told = f"\n\nDiffers from what serves:\n\n{quoted}" if quoted else ""
    _markdown("plan", markdown + told, "What this run does")


def publish_verdict(markdown: str) -> None:
    """The table of figures, bounds and reasons."""
    _markdown("verdict", markdown, "Figures and bounds")


def publish_picture(png: bytes, caption: str) -> None:
    """A PNG, carried inside the artifact: Prefect's image artifact knows only
    addresses.
    """
    data = base64.b64encode(png).decode()
    _markdown("throughput", f"![{caption}](data:image/png;base64,{data})\n\n{caption}", caption)


def publish_outcome(outcome: Mapping[str, Any], then: Mapping[str, str]) -> None:
    """What came of it, with the links, and what may be done ``then``."""
    name, url, report = outcome["name"], outcome["url"], outcome["report"]
    there = f"[{url}/v1]({url}/v1/models), by release `{outcome['release']}`"
    rows = {
        "result": words(outcome),
        "endpoint": there if outcome["release"] else "none: nothing serves",
        "report": f"`{report}`; all of them: `deliver history {name} --reports DIR`" if report else "none",
        **then,
    }
    _markdown("outcome", _table(f"## {name}: {outcome['result']}", rows), "What came of it")


def publish_ending(run: FlowRun, name: str, told: str) -> None:
    """The outcome of a run that cannot say it itself: it was cancelled."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import ArtifactCreate

    with suppress(httpx.HTTPError), get_client(sync_client=True) as client:
        table = _table(f"## {name}: cancelled", {"result": told})
        made = ArtifactCreate(
            key=f"{name}-outcome", type="markdown", description="What came of it", data=table, flow_run_id=run.id
        )
        client.create_artifact(made)


def words(outcome: Mapping[str, Any]) -> str:
    """The result, the release that it is about, and what serves where that is another."""
    result, about, serving = str(outcome["result"]), outcome["candidate"], outcome["release"]
    if about:
        return f"{result}: release {about}; {f'{serving} serves' if serving else 'nothing serves'}"
    return f"{result} (release {serving})" if serving else f"{result}; nothing serves"


def publish_table(kind: str, title: str, rows: Mapping[str, str], lines: Iterable[str] = ()) -> None:
    """``rows`` are words of ours; ``lines`` may quote anything, and stand as code."""
    _markdown(kind, "\n".join([_table(f"## {title}", rows), "", *_quoted(lines)]), title)


def completed(outcome: dict[str, Any], told: str = "") -> dict[str, Any]:
    """What a flow returns: in a run with a state that says how it ended."""
    if flow_run() is None:
        return outcome
    from prefect.states import Completed

    message = told or words(outcome)
    return cast("dict[str, Any]", Completed(message=message, data=outcome))  # whoever calls the flow gets its data


def publish_trouble(name: str, trouble: Trouble) -> None:
    """Why not, and what to type. A finding may quote anything: it stands as code, where a
    page shows no picture and follows no link.
    """
    lines = [f"## {name}: exit code {trouble.exit_code}", ""]
    for finding in together(trouble.findings):
        lines += [f"`{finding.code}`", "", indent(plain(str(finding)), "    ", lambda _: True), ""]
    if re.fullmatch(NAME, name):
        words = ("status NAME", "logs NAME", "history NAME --reports DIR")
        lines += ["To see more:", "", *(f"    deliver {word.replace('NAME', name)}" for word in words)]
    _markdown("trouble", "\n".join(lines), "Why not, and what to do")


def plan_table(
    spec: DeliverySpec, lock: Lock, admission: Admission, serving: ReleaseId | None, can: Capabilities
) -> str:
    """What the run's page shows first, as Markdown."""
    snapshot, at_once = lock.snapshot, serving is None and not can.dark_first
    model = f"{snapshot.source} {snapshot.key} @ {snapshot.commit[:12]}"
    first = " (a first release: all of the traffic at once; a refusal takes it away)" if at_once else ""
    rows = {
        "result": admission.answer.value,
        "release": admission.release,
        "serving now": serving or "nothing",
        "model": f"{model} ({len(snapshot.files)} files, {snapshot.size / 1e6:,.1f} MB)",
        "target": spec.target.kind,
        "strategy": spec.rollout.strategy + first,
    }
    return _table(f"## {spec.name}", rows)


def _quoted(lines: Iterable[str]) -> Iterator[str]:
    return (indent(plain(line), "    ", lambda _: True) for line in lines)


def _table(title: str, rows: Mapping[str, str]) -> str:
    return "\n".join([title, "", "| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in rows.items())])


def publish_progress(percent: float, note: str, artifact: Any = None) -> Any:
    """Create the run's progress artifact, or update ``artifact`` (an earlier answer);
    ``percent`` is 0 to 100.
    """
    if flow_run() is None:
        return None
    from prefect.artifacts import create_progress_artifact, update_progress_artifact

    if artifact is None:
        return _tolerant(lambda: create_progress_artifact(percent, key=_key("progress"), description=note))
    _tolerant(lambda: update_progress_artifact(artifact, percent, description=note))
    return artifact


@contextmanager
def progress_sink() -> Iterator[None]:
    """Inside a run: progress goes to the run's log (every 5 s, and what a step said last)
    and to a progress artifact (once a second); a Trouble is logged without a traceback.

    A sink that listens already still hears everything.
    """
    if flow_run() is None:
        yield
        return
    for logger in ("prefect.flow_runs", "prefect.task_runs"):
        logging.getLogger(logger).addFilter(_in_words)
    outer, page = copy_context(), _Page()

    def hear(news: Progress) -> None:
        outer.copy().run(progress.report, news)
        page.hear(news)

    with progress.sink(hear):
        try:
            yield
        finally:
            page.flush()
    page.done()


def _in_words(record: logging.LogRecord) -> bool:
    """Of what ended a run or a task, the words alone; a fault of ours keeps its
    traceback. Nothing has a secret: a library's error may quote what a hub said.
    """
    error = record.exc_info[1] if record.exc_info else None
    foreseen = isinstance(error, Trouble) and all(finding.code != BROKE for finding in error.findings)
    record.msg, record.args = plain(str(error) if foreseen else record.getMessage()), ()
    record.exc_text = None if error is None or foreseen else plain("".join(format_exception(error)))
    record.exc_info = None
    return True


@dataclass
class _Page:
    last: Progress | None = None
    logger: Any = None  # of the step that said it, which may be over when it is logged
    logged: Progress | None = None
    logged_at: float = -LOG_SECONDS
    drawn_at: float = -ARTIFACT_SECONDS
    percent: float = 0.0
    artifact: Any = None

    def hear(self, news: Progress) -> None:
        now = time.monotonic()
        if self.last is not None and news.step != self.last.step:
            self.flush()
        if self.last is None or news.step != self.last.step or now - self.logged_at >= LOG_SECONDS:
            self.logger = _logger()
            self._log(news, now)
        self.last = news
        if news.done is not None and news.total:
            self.percent = min(100.0, 100 * news.done / news.total)
        if now - self.drawn_at >= ARTIFACT_SECONDS:
            self.drawn_at = now
            self.artifact = publish_progress(self.percent, news.line(), self.artifact)

    def flush(self) -> None:
        """Log the last news, if they were held back."""
        if self.last is not None and self.last is not self.logged:
            self._log(self.last, time.monotonic())

    def done(self) -> None:
        if self.artifact is not None:
            publish_progress(100.0, "done", self.artifact)

    def _log(self, news: Progress, now: float) -> None:
        self.logged, self.logged_at = news, now
        self.logger.info("%s", news.line())


def _markdown(kind: str, markdown: str, description: str) -> None:
    if flow_run() is None:
        return
    from prefect.artifacts import create_markdown_artifact

    _tolerant(lambda: create_markdown_artifact(markdown, key=_key(kind), description=description))


def _key(kind: str) -> str:
    """A key of this delivery's own (its runs are named after it), of lower-case letters,
    digits and dashes.
    """
    context = flow_run()
    run = context.flow_run.name if context is not None and context.flow_run is not None else ""
    return re.sub(r"[^a-z0-9]+", "-", f"{run}-{kind}".lower()).strip("-")


def _tolerant(publish: Callable[[], Any]) -> Any:
    try:
        return publish()
    except httpx.HTTPError as error:
        _logger().warning("an artifact could not be written: %s", error)
        return None


def _logger() -> Any:
    from prefect.logging import get_run_logger

    return get_run_logger()
