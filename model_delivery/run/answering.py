"""Does a release give tokens? Only a token proves life: an engine that says it is well
may stand still.
"""

from __future__ import annotations

import json
import re
from collections import deque
from http.client import INTERNAL_SERVER_ERROR, OK, SERVICE_UNAVAILABLE
from pathlib import Path
from urllib.parse import urlsplit

from model_delivery.base import Finding, Permanent, Progress, bearer, replace_file, report, scrub
from model_delivery.base.home import default_home, proven
from model_delivery.measure.words import printable
from model_delivery.places.host.asking import Answer, ask
from model_delivery.run.book import Book
from model_delivery.run.frozen import Frozen
from model_delivery.run.session import Session
from model_delivery.values import Current, ReleaseId

SHORTEST, LONGEST = 30.0, 120.0
TTFT, TTFTS = "ttft_p95", 20
METRICS_BYTES = 4 * 1024 * 1024
ANSWER_BYTES = 64 * 1024
LOG_LINES = 1000
COUNTED = re.compile(
    rb"^vllm:(?:generation_tokens|prompt_tokens|request_success|iteration_tokens)_total(?:_count|_sum)?[{ ].*$",
    re.MULTILINE,
)


def silence(book: Book, name: ReleaseId) -> str:
    """Why ``name`` gives no token though it is up; empty where it gives one, is not up,
    or cannot be reached from here.

    One token is asked for, within 20 times its own TTFT (p95), 30 s at least and two
    minutes at most, and never longer than it may take to start. Where none comes in
    time, but the engine works for others meanwhile, a full queue or a long prefill is no
    death.
    """
    if not book.place.keeps_files or (address := _address(book, name)) is None:
        return ""
    (host, port), frozen = address, book.frozen(name)
    before, seconds = _counted(host, port), _deadline(book, name, frozen)
    given = {"model": frozen.payload.names[0], "prompt": "1", "max_tokens": 1}
    answer = ask(host, port, "/v1/completions", seconds, given, bearer(frozen.payload.api_key), ANSWER_BYTES)
    if answer is not None:
        return _odd(answer)
    still = _counted(host, port) == before
    return f"it did not answer within {seconds:.0f} s, and did nothing for others meanwhile" if still else ""


def finding(delivery: str, why: str) -> Finding:
    fix = f"`deliver logs {delivery}` may say why; `deliver down {delivery}`, then `deliver up` again, starts it anew"
    what = f"the engine of {delivery} says it is well, and gives no token"
    return Finding("release.silent", what, f"asked for one, {why}", fix)


def restart(session: Session, name: ReleaseId, why: str) -> None:
    """What stands still is started anew, once the end of its log and its metrics are
    kept. Permanent where it gives no token then either.
    """
    release = session.release(name)
    home = default_home()
    folder = home / "deliveries" / session.delivery / "silent" / f"{name}-{session.clock.now():.0f}"
    _keep(session, name, proven(folder, home))
    report(Progress("answers", f"{name} gives no token ({why}): started anew; its state is kept in {folder}"))
    session.remove(session.target.main(session.delivery, release))
    session.converge()
    session.wait_ready(name, session.frozen(name).startup_seconds)
    session.wait_routed()
    if still := silence(session, name):
        raise Permanent(finding(session.delivery, f"{still}; started anew once, it did so again"))


def _keep(session: Session, name: ReleaseId, folder: Path) -> None:
    lines = deque(session.place.engine_log(session.delivery, name, follow=False), maxlen=LOG_LINES)
    replace_file(folder / "engine.log", scrub(b"\n".join(lines).decode(errors="replace")))
    if address := _address(session, name):
        replace_file(folder / "metrics.prom", _metrics(*address))


def _address(book: Book, name: ReleaseId) -> tuple[str, int] | None:
    """Where ``name`` itself listens; None where it is not up."""
    match book.target.readiness(book.release(name), book.world()):
        case Current(endpoint) if endpoint:
            return urlsplit(endpoint).hostname or "", urlsplit(endpoint).port or 80
    return None


def _deadline(book: Book, name: ReleaseId, frozen: Frozen) -> float:
    own = [e.figures[TTFT] for e in book.record.ended if e.release == name and TTFT in e.figures]
    return min(LONGEST, frozen.startup_seconds, max(SHORTEST, TTFTS * own[-1] / 1000 if own else LONGEST))


def _odd(answer: Answer) -> str:
    if answer.status >= INTERNAL_SERVER_ERROR and answer.status != SERVICE_UNAVAILABLE:
        return f"it answered with status {answer.status}"
    if answer.status == OK and not _chosen(answer.body):
        return f"its answer has none: {printable(answer.body) or 'it is empty'}"
    return ""


def _chosen(body: bytes) -> bool:
    """Is it a completion with a choice? The text of one token may be empty."""
    try:
        said = json.loads(body)
    except (ValueError, RecursionError):
        return False
    return isinstance(said, dict) and isinstance(said.get("choices"), list) and len(said["choices"]) > 0


def _counted(host: str, port: int) -> list[bytes]:
    """What an engine counts of its work; nothing where it has no metrics."""
    return COUNTED.findall(_metrics(host, port))


def _metrics(host: str, port: int) -> bytes:
    answer = ask(host, port, "/metrics", most=METRICS_BYTES)
    return answer.body if answer else b""
