"""Does a release give tokens? Only a token proves life: an engine that says it is well
may stand still.
"""

from __future__ import annotations

import json
import re
from collections import deque
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from http.client import INTERNAL_SERVER_ERROR, OK, SERVICE_UNAVAILABLE

from model_delivery.base import Finding, Permanent, Progress, Trouble, bearer, from_cluster, replace_file, report, scrub
from model_delivery.base.home import default_home, proven
from model_delivery.measure import asking
from model_delivery.measure.words import printable
from model_delivery.places import Place
from model_delivery.places.host.asking import Answer, ask
from model_delivery.places.host.stacks import stacks
from model_delivery.run import evidence, rules
from model_delivery.run.book import Book
from model_delivery.run.frozen import Frozen
from model_delivery.run.session import Session
from model_delivery.values import InProgress, ReleaseId, Server, World

SHORTEST, LONGEST = 30.0, 120.0
TTFT, TTFTS = "ttft_p95", 20
REACH_SECONDS, LED_SECONDS, STOP_SECONDS, STAND_IN_SECONDS = 5.0, 30.0, 5.0, 30.0
METRICS_BYTES = 4 * 1024 * 1024
ANSWER_BYTES = 64 * 1024
LOG_LINES = 1000
NO_SUCH_NAME = "connection: gaierror"
COUNTED = re.compile(
    rb"^vllm:(?:(?:generation_tokens|prompt_tokens|request_success|iteration_tokens)_total(?:_count|_sum)?"
    rb"|kv_cache_usage_perc)[{ ].*$",  # while a long prompt is read in pieces vLLM counts no token before the last
    re.MULTILINE,
)


@dataclass(frozen=True)
class Probe:
    """What came of asking the engines of a release for a token. ``silent``: why one gives
    none though it is up; ``unasked``: why one could not be asked from here.
    """

    silent: Mapping[Server, str] = field(default_factory=dict)
    unasked: str = ""

    @property
    def why(self) -> str:
        """Empty where none is silent."""
        several = [f"{server.ref}: {why}" for server, why in self.silent.items()]
        return next(iter(self.silent.values()), "") if len(several) < 2 else "; ".join(several)


def probe(book: Book, name: ReleaseId) -> Probe:
    """Each of the engines of ``name`` that are up is asked for one token, past any
    balancer.

    It has 20 times the release's own TTFT (p95), 30 s at least and two minutes at most,
    and never longer than it may take to start. Where none comes in time, but the engine
    works for others meanwhile, a full queue or a long prefill is no death. In a cluster
    only a run within it reaches a pod.
    """
    if not (servers := book.target.servers(book.release(name), book.world())):
        return Probe()
    frozen = book.frozen(name)
    try:
        with from_cluster(book.place.secret):
            key = bearer(frozen.payload.api_key)
    except Trouble as trouble:
        return Probe(unasked=trouble.findings[0].what)
    asked = partial(_silence, book.place, frozen.payload.names[0], key, _deadline(book, name, frozen))
    with ThreadPoolExecutor(max_workers=len(servers)) as pool:
        told = dict(zip(servers, pool.map(asked, servers), strict=True))
    missed = [f"{server.ref} at {server.url} does not answer from here" for server, why in told.items() if why is None]
    return Probe({server: why for server, why in told.items() if why}, ", ".join(missed))


def finding(delivery: str, why: str) -> Finding:
    fix = f"`deliver up` of its spec keeps its state and starts it anew; `deliver logs {delivery}` may say why"
    what = f"the engine of {delivery} says it is well, and gives no token"
    return Finding("release.silent", what, f"asked for one, {why}", fix)


def not_asked(delivery: str, why: str) -> Finding:
    fix = "ask where its engines are reached: in a cluster from a pod of it, such as a worker's"
    return Finding("release.not-asked", f"the engine of {delivery} could not be asked for a token", why, fix)


def restart(session: Session, name: ReleaseId, found: Probe) -> None:
    """What stands still is started anew, each engine by itself, once the end of its log
    and its metrics are kept. Permanent where it gives no token then either.
    """
    release, startup, before = session.release(name), session.frozen(name).startup_seconds, session.record
    wanted = len(session.target.servers(release, session.world()))
    kept = _keep(session, name, found.silent)
    report(Progress("answers", f"{name} gives no token ({found.why}): started anew; its state is kept in {kept}"))
    stood_in = _stood_in(session)
    try:
        for server in found.silent:
            session.remove(server.ref, grace=STOP_SECONDS)
    except Permanent as refused:
        raise Permanent(finding(session.delivery, found.why), *refused.findings) from None

    def anew(world: World) -> tuple[Server, ...] | InProgress:
        ready = [one for one in session.target.servers(release, world) if one not in found.silent]
        return tuple(ready) if len(ready) >= wanted else InProgress(f"{len(ready)} of {wanted} engines are ready")

    session.converge()
    session.wait_ready(name, startup)
    session.until(f"release {name}", anew, startup)
    if still := probe(session, name).why:
        led = f"; the traffic is with {stood_in} meanwhile, and `deliver rollback` leaves it there" if stood_in else ""
        raise Permanent(finding(session.delivery, f"{still}; started anew once, it did so again{led}"))
    if stood_in:
        session.write(before)
        session.converge()
    session.wait_routed()


def _stood_in(session: Session) -> ReleaseId | None:
    """The standby that has the traffic while what serves is started anew; None where none
    gives a token.
    """
    before = session.record
    for standby in sorted(before.beside_serving):
        try:
            session.write(rules.stood_in(before, standby))
            session.converge()
            session.wait_ready(standby, STAND_IN_SECONDS)
            if (found := probe(session, standby)).silent or found.unasked:
                raise Permanent(finding(session.delivery, found.why or found.unasked))
        except Trouble as trouble:
            report(Progress("answers", f"{standby} cannot stand in: {trouble.findings[0].why}"))
            session.write(before)
            continue
        report(Progress("answers", f"{standby} stands in meanwhile"))
        return standby
    return None


def wait_led(session: Session) -> None:
    """What is new or was put right may have another address, to which a name or a
    Service leads late. Whether one is reached from here is not the release's affair.
    """
    url, began = session.url(session.world()), session.clock.monotonic()
    while url and (spent := session.clock.monotonic() - began) < LED_SECONDS:
        said = asking.ask(url, "/health", seconds=REACH_SECONDS, limit=ANSWER_BYTES)
        if said.status or said.error == NO_SUCH_NAME:
            return
        report(Progress("answers", f"{url} does not answer yet ({said.error})", done=round(spent), unit="s"))
        session.clock.sleep(1.0)


def _silence(place: Place, model: str, key: dict[str, str], seconds: float, server: Server) -> str | None:
    """Why it gives no token; empty: it does; None: it is not reached from here."""
    host, port = server.host, server.port
    well = ask(host, port, "/health", REACH_SECONDS)
    if not place.keeps_files and (well is None or well.status != OK):
        return None
    before = _counted(server)
    given = {"model": model, "prompt": "1", "max_tokens": 1}
    answer = ask(host, port, "/v1/completions", seconds, given, key, ANSWER_BYTES)
    if answer is not None:
        return _odd(answer)
    still = _counted(server) == before
    return f"it did not answer within {seconds:.0f} s, and did nothing for others meanwhile" if still else ""


def _keep(session: Session, name: ReleaseId, silent: Mapping[Server, str]) -> str:
    """Where it is kept."""
    place, delivery = session.place, session.delivery
    logs = (deque(place.log(delivery, server.ref, follow=False), maxlen=LOG_LINES) for server in silent)
    log = scrub(b"\n".join(line for lines in logs for line in lines).decode(errors="replace"))
    files = {"engine.log": log.encode(), "metrics.prom": b"".join(map(metrics, silent))}
    if not place.keeps_files:
        evidence.keep(place, delivery, name, evidence.SILENT, files)
        return evidence.where(delivery, name, evidence.SILENT)
    files["stacks.txt"] = scrub(
        b"\n".join(stacks(int(server.life)) for server in silent).decode(errors="replace")
    ).encode()
    home = default_home()
    folder = proven(home / "deliveries" / delivery / "silent" / f"{name}-{session.clock.now():.0f}", home)
    for file, content in files.items():
        replace_file(folder / file, content)
    return str(folder)


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


def _counted(server: Server) -> list[bytes]:
    """What an engine counts of its work, and holds of its cache, which each step of it
    changes; nothing where it has no metrics.
    """
    return COUNTED.findall(metrics(server))


def metrics(server: Server) -> bytes:
    """As the engine tells them; empty where it does not."""
    answer = ask(server.host, server.port, "/metrics", most=METRICS_BYTES)
    return answer.body if answer else b""
