"""The throughput test of a server that is there already: the model it is asked for, and
what is made of the figures.
"""

from __future__ import annotations

import json
import time
from contextlib import suppress
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING

from model_delivery.base import BadInput, Finding, Permanent, bearer, did_you_mean
from model_delivery.measure.asking import ask
from model_delivery.measure.metrics import LoadReport
from model_delivery.measure.words import printable
from model_delivery.steps.load import LoadInput, profile

if TYPE_CHECKING:
    from model_delivery.measure.capacity import Capacity
    from model_delivery.measure.report import Written
    from model_delivery.measure.verdict import Verdict

FIRST_SECONDS = 30.0


def base(url: str) -> str:
    """A server's address as people write it, without /v1."""
    return url.rstrip("/").removesuffix("/v1")


def ready(given: LoadInput) -> LoadInput:
    """With the first model that the server lists, where none is named.

    Permanent where it lists none, or is silent when one token is asked for, before a test
    of minutes; what else it may say, the test counts. BadInput where it does not know the
    model.
    """
    if not given.model:
        given = given.model_copy(update={"model": _first_model(given)})
    _must_answer(given)
    return given


def judged(
    given: LoadInput,
    load: LoadReport,
    folder: Path,
    *,
    baseline: LoadReport | None = None,
    max_regression: float | None = None,
    search: Capacity | None = None,
) -> tuple[Verdict, Written]:
    """The verdict on ``load``, and its report, written into ``folder``."""
    from model_delivery.measure import report
    from model_delivery.measure.verdict import judge

    verdict = judge(None, load, given.slo, baseline=baseline, max_regression=max_regression)
    subject = report.Subject(given.url, given.model, 1, "load test", "", "", "", (), time.time())
    return verdict, report.write(folder, subject, None, load, verdict, search)


def _first_model(given: LoadInput) -> str:
    answer = ask(given.url, "/v1/models", headers=bearer(given.api_key))
    why = answer.why()
    try:
        name = str(json.loads(answer.body)["data"][0]["id"])
        if not name or name != printable(name):
            raise ValueError(f"a model is called {printable(name)!r}")
        return name
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        what, why = f"{given.url}/v1/models does not list a model", why or f"{type(error).__name__}: {error}"
        fix = "is the service up, and URL its base address (without /v1)? a key is named with --api-key-env, or api_key"
        raise Permanent(Finding("load.no-model", what, why, fix)) from None


def _listed(given: LoadInput) -> list[str]:
    """The models that the server lists; none where it lists none that could be shown."""
    answer = ask(given.url, "/v1/models", headers=bearer(given.api_key))
    with suppress(ValueError, LookupError, TypeError, RecursionError):
        names = [str(entry["id"]) for entry in json.loads(answer.body)["data"]]
        return [name for name in names if name == printable(name)]
    return []


def _must_answer(given: LoadInput) -> None:
    asked = {"model": given.model, "max_tokens": 1, "messages": [{"role": "user", "content": "1"}]}
    path, seconds = "/v1/chat/completions", FIRST_SECONDS
    if profile(given.profile).endpoint == "completions":
        asked, path = {"model": given.model, "max_tokens": 1, "prompt": "1"}, "/v1/completions"
    answer = ask(given.url, path, asked, headers=bearer(given.api_key), seconds=seconds)
    if answer.status == HTTPStatus.NOT_FOUND and (listed := _listed(given)) and given.model not in listed:
        why = did_you_mean(given.model, listed) or f"it lists: {', '.join(listed[:5])}"
        raise BadInput(
            Finding("load.unknown-model", f"{given.url} has no model {given.model}", why, "correct the model's name")
        )
    if (answer.error or "").startswith("timeout"):
        what, why = f"{given.url} does not answer", f"one token was asked of {path}: nothing came in {seconds:g} s"
        raise Permanent(Finding("load.silent", what, why, "look at the server: it takes connections and is silent"))
