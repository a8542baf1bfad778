"""Does what serves give tokens? An engine that says it is well may stand still."""

from __future__ import annotations

import json
import re
from http.client import INTERNAL_SERVER_ERROR, OK, SERVICE_UNAVAILABLE
from urllib.parse import urlsplit

from model_delivery.base import Finding, Permanent, bearer
from model_delivery.measure.words import printable
from model_delivery.places.host.asking import ask
from model_delivery.run.session import Session
from model_delivery.values import Current

LONGEST = 120.0
METRICS_BYTES = 4 * 1024 * 1024
ANSWER_BYTES = 64 * 1024
COUNTED = re.compile(rb"^vllm:(?:generation_tokens|prompt_tokens|request_success)_total.*$", re.MULTILINE)


def must_answer(session: Session) -> None:
    """Ask what serves for one token, where it can be reached from here. Permanent where
    it is silent for as long as it may take to start (two minutes at most), and did
    nothing for anybody else meanwhile: a full queue is no death.
    """
    release = session.record.serving
    if release is None or not session.place.keeps_files:
        return
    frozen = session.frozen(release)
    match session.target.readiness(session.release(release), session.world()):
        case Current(endpoint):
            host, port = urlsplit(endpoint).hostname or "", urlsplit(endpoint).port or 80
        case _:
            return
    before, seconds = _counted(host, port), min(LONGEST, frozen.startup_seconds)
    given = {"model": frozen.payload.names[0], "prompt": "1", "max_tokens": 1}
    answer = ask(host, port, "/v1/completions", seconds, given, bearer(frozen.payload.api_key), ANSWER_BYTES)
    if answer is None and _counted(host, port) == before:
        _silent(session, f"it did not answer within {seconds:.0f} s, and did nothing for others meanwhile")
    if answer is not None and answer.status >= INTERNAL_SERVER_ERROR and answer.status != SERVICE_UNAVAILABLE:
        _silent(session, f"it answered with status {answer.status}")
    if answer is not None and answer.status == OK and not _chosen(answer.body):
        _silent(session, f"its answer has none: {printable(answer.body) or 'it is empty'}")


def _silent(session: Session, why: str) -> None:
    name = session.delivery
    fix = f"`deliver logs {name}` may say why; `deliver down {name}`, then `deliver up` again, starts it anew"
    what = f"the engine of {name} says it is well, and gives no token"
    raise Permanent(Finding("release.silent", what, f"asked for one, {why}", fix))


def _chosen(body: bytes) -> bool:
    """Is it a completion with a choice? The text of one token may be empty."""
    try:
        said = json.loads(body)
    except (ValueError, RecursionError):
        return False
    return isinstance(said, dict) and isinstance(said.get("choices"), list) and len(said["choices"]) > 0


def _counted(host: str, port: int) -> list[bytes]:
    """What an engine counts of its work; nothing where it has no metrics."""
    answer = ask(host, port, "/metrics", most=METRICS_BYTES)
    return COUNTED.findall(answer.body) if answer else []
