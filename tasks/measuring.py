"""The steps of a load test of what serves already: nothing is changed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from model_delivery.base import BadInput, Finding, GateFailed, SecretRef, from_cluster, problems
from model_delivery.base.home import default_home, proven
from model_delivery.measure.metrics import LoadReport
from model_delivery.places import Place
from model_delivery.places.opening import Location
from model_delivery.steps.load import LoadInput, profile, run
from model_delivery.tasks import artifacts
from model_delivery.tasks.gates import baseline
from model_delivery.tasks.running import page
from model_delivery.tasks.step import run_id, step
from model_delivery.values import ThroughputGate
from model_delivery.verbs import loadtest as loads
from model_delivery.verbs.status import served


@dataclass(frozen=True)
class Asked:
    """``folder``: of the report. ``before``: the figures that it may not be worse than by
    ``max_regression``.
    """

    given: LoadInput
    folder: Path
    before: LoadReport | None
    max_regression: float | None


@contextmanager
def measuring(service: str, where: Location) -> Iterator[Place]:
    """A page, and a place whose secrets can be read."""
    with page(service):
        place = where.open()
        with from_cluster(place.secret):
            yield place


@step("find")
def find(place: Place, service: str, load: ThroughputGate, model: str | None, api_key: SecretRef | None) -> Asked:
    """The address, model and key of a delivery, or those that are given; one token is
    asked for.
    """
    profile(load.profile, load.duration, load.warmup)
    url, before, why = loads.base(service), None, "nothing is kept of what was measured at an address before"
    if "://" not in service:
        book, payload = served(place, service)
        url, earlier = str(book.url(book.world())), baseline(book)
        before, why = (None, earlier) if isinstance(earlier, str) else (earlier, "")
        model, api_key = model or payload.names[0], api_key or payload.api_key
    if load.max_regression is not None and before is None:
        raise BadInput(Finding("load.no-baseline", "nothing can have regressed", why, "leave max_regression out"))
    home = default_home()
    folder = proven(home / "loadtests" / (run_id() or time.strftime("%Y%m%d-%H%M%S")), home)
    try:
        given = LoadInput(**load.load(), url=url, model=model or "", api_key=api_key, folder=str(folder / "locust"))
    except ValidationError as error:
        fix = "name a delivery, or an address such as http://HOST:PORT"
        raise BadInput(*(Finding("load.bad-input", text, "", fix) for text in problems(error))) from None
    return Asked(loads.ready(given), folder, before, load.max_regression)


@step("throughput")
def throughput(asked: Asked) -> LoadReport:
    """Locust against that address."""
    return run(asked.given)


@step("verdict")
def verdict(asked: Asked, load: LoadReport) -> dict[str, Any]:
    """GateFailed names every figure and bound that was broken."""
    given, limit = asked.given, asked.max_regression
    judged, written = loads.judged(given, load, asked.folder, baseline=asked.before, max_regression=limit)
    artifacts.publish_verdict(written.markdown)
    if written.png is not None:
        artifacts.publish_picture(written.png, "Load test")
    result, where = "passed" if judged.passed else "not met", {"url": given.url, "model": given.model}
    outcome = {"result": result, **where, "validity": load.validity.kind, "report": str(written.html)}
    artifacts.publish_table("outcome", "Load test", {"result": result}, (f"{key}: {outcome[key]}" for key in outcome))
    if not judged.passed:
        raise GateFailed(*judged.findings())
    return outcome | {"figures": load.figures()}
