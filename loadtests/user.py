"""The Locust user. By hand: ``locust -f loadtests/user.py --host URL --model NAME``, with
any of Locust's own options, its web UI, ``--processes``, master and workers, custom
shapes. The pipeline gives ``--plan`` (see ``Plan``, as JSON) and reads what ``--tally``
names.

An API key is read from the environment variable ``MODEL_DELIVERY_API_KEY``.
"""

from __future__ import annotations

import http.client
import json
import logging
import os
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import gevent
import yaml
from locust import User, constant, events, task
from locust.exception import StopUser
from locust.runners import MasterRunner, WorkerRunner

from model_delivery.loadtests.arrivals import Plan, schedule
from model_delivery.loadtests.connection import Connection
from model_delivery.loadtests.prompts import Vocabulary, bodies, question, vocabulary
from model_delivery.loadtests.reader import Stream, clock
from model_delivery.loadtests.recorder import SECOND, Recorder
from model_delivery.measure.metrics import Tally
from model_delivery.measure.profile import Profile

LAG_EVERY = 0.01
DRAIN_SECONDS = 60
ENDED = "model-delivery-ended"
KEY = os.environ.get("MODEL_DELIVERY_API_KEY", "")
log = logging.getLogger(__name__)


class Load:
    """What this process knows of the load that runs: one test at a time, as in Locust."""

    def __init__(self) -> None:
        self.plan = Plan("", Profile(prompt_tokens=64, output_tokens=64))
        self.recorder = Recorder(self.plan)
        self.vocabulary = Vocabulary()
        self.started = self.ended = 0
        self.total = Tally()

    def begin(self, plan: Plan) -> None:
        self.plan, self.recorder, self.total = plan, Recorder(plan), Tally()
        self.started = self.ended = 0


LOAD = Load()


class StreamUser(User):  # type: ignore[misc]
    """Closed loop: each user asks, reads to the end, asks again.

    Open loop (``--rate``): the users share the schedule.
    """

    wait_time = constant(0)

    def on_start(self) -> None:
        address = urlsplit(self.host)
        self.address = (address.hostname or "127.0.0.1", address.port or (443 if address.scheme == "https" else 80))
        self.secure, self.base = address.scheme == "https", address.path.rstrip("/")
        self.number, LOAD.started = LOAD.started, LOAD.started + 1
        worker = max(0, getattr(self.environment.runner, "worker_index", 0))
        self.part = worker + self.number * LOAD.plan.processes
        self.connection = self.connect()
        self.connection.open()
        self.bodies = bodies(
            LOAD.plan.profile, LOAD.plan.model, LOAD.vocabulary, f"{LOAD.plan.seed}/{worker}/{self.number}"
        )

    def connect(self) -> Connection:
        return Connection(*self.address, tls=self.secure, timeout=LOAD.plan.profile.timeout)

    def send(self, connection: Connection, intended: int | None = None) -> Stream:
        """One request, counted and told to Locust."""
        body, asked = next(self.bodies)
        path = "/v1/completions" if LOAD.plan.profile.endpoint == "completions" else "/v1/chat/completions"
        auth = f"Authorization: Bearer {KEY}\r\n" if KEY else ""
        head = f"POST {self.base}{path} HTTP/1.1\r\nHost: {self.address[0]}:{self.address[1]}\r\n{auth}Content-Type: application/json\r\n"
        recorder = LOAD.recorder
        recorder.running, recorder.sent = recorder.running + 1, recorder.sent + 1
        try:
            stream = connection.request(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body, intended, asked)
        finally:
            recorder.running -= 1
        recorder.add(stream)
        self.tell(stream)
        return stream

    def tell(self, stream: Stream) -> None:
        """Fire Locust's own events, for its statistics and web UI; ours come from the
        recorder.
        """
        failure, fire = stream.failure(), self.environment.events.request.fire
        said: dict[str, Any] = {"request_type": "stream", "response_length": len(stream.times), "context": {}}
        fire(
            name="end-to-end",
            response_time=(stream.end - stream.intended) / 1e6,
            exception=RuntimeError(failure) if failure else None,
            **said,
        )
        if stream.first_text:
            fire(name="TTFT", response_time=(stream.first_text - stream.intended) / 1e6, exception=None, **said)

    @task  # type: ignore[untyped-decorator]
    def ask(self) -> None:
        if LOAD.plan.rate:
            self.keep_schedule(LOAD.plan.rate)
            raise StopUser
        if over():
            raise StopUser
        if self.send(self.connection).error:
            gevent.sleep(0.01)

    def keep_schedule(self, rate: float) -> None:
        """Send at the intended moments, whatever earlier requests do; the latency counts
        from there.
        """
        parts = max(1, getattr(self.environment.parsed_options, "num_users", None) or 1)
        began, free, sent = clock(), [self.connection], []
        for at in schedule(LOAD.plan.profile.arrivals, rate, f"{LOAD.plan.seed}", self.part, parts):
            intended = began + int(at * SECOND)
            gevent.sleep(max(0.0, (min(intended, LOAD.recorder.close_at) - clock()) / SECOND))
            if over():
                break
            sent.append(gevent.spawn(self.one, free, intended))
            if len(sent) > 4096:
                sent = [greenlet for greenlet in sent if not greenlet.dead]
        gevent.joinall(sent)

    def one(self, free: list[Connection], intended: int) -> None:
        connection = free.pop() if free else self.connect()
        self.send(connection, intended)
        free.append(connection)


def over() -> bool:
    recorder = LOAD.recorder
    return clock() >= recorder.close_at or recorder.sent * LOAD.plan.processes >= LOAD.plan.profile.max_requests


def watch(environment: Any) -> None:
    """Watch how late this process's loop is, until the measured time ends; then drain,
    and hand over what was counted.
    """
    recorder, cpu = LOAD.recorder, 0.0
    stamped, reads = Connection.stamped, Connection.reads
    while not over():
        wanted = clock() + int(LAG_EVERY * SECOND)
        gevent.sleep(LAG_EVERY)
        now = clock()
        if not cpu and now >= recorder.open_at:
            cpu = time.process_time()
        recorder.watched(max(0, now - wanted), now)
    recorder.finished(clock(), time.process_time() - cpu if cpu else 0.0)
    while environment.runner.user_count or recorder.running:
        gevent.sleep(0.02)
    recorder.tally.counts.update({"stamped": Connection.stamped - stamped, "reads": Connection.reads - reads})
    if isinstance(environment.runner, WorkerRunner):
        environment.runner.send_message(ENDED, recorder.take().dump())
    else:
        LOAD.total.merge(recorder.take())
        finish(environment)


def finish(environment: Any) -> None:
    """The tally is written whole or not at all; then a headless run is over."""
    options = environment.parsed_options
    if options.tally:
        target = Path(options.tally)
        temporary = target.with_suffix(".new")
        temporary.write_text(json.dumps(LOAD.total.dump(), separators=(",", ":")), encoding="utf-8")
        temporary.replace(target)
    if options.headless:
        environment.runner.quit()


def count_tokens(host: str, plan: Plan) -> Any:
    """A function that asks the server how many tokens a prompt has: OSError or ValueError
    where it has no ``/tokenize``.
    """
    address = urlsplit(host)
    kind = http.client.HTTPSConnection if address.scheme == "https" else http.client.HTTPConnection
    connection = kind(address.hostname or "", address.port, timeout=30)
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {KEY}"} if KEY else {})

    def count(text: str) -> int:
        connection.request(
            "POST",
            f"{address.path.rstrip('/')}/tokenize",
            json.dumps({"model": plan.model, **question(plan.profile, text)}),
            headers,
        )
        answer = connection.getresponse()
        said = answer.read()
        if answer.status != http.client.OK:
            raise ValueError(f"/tokenize answers {answer.status}")
        return int(json.loads(said)["count"])

    return count


def learn(host: str) -> None:
    """The words to ask with; without a tokenizer, lengths are of words."""
    LOAD.vocabulary = Vocabulary()
    if LOAD.plan.profile.prompts:
        return
    try:
        LOAD.vocabulary = vocabulary(count_tokens(host, LOAD.plan), LOAD.plan.profile.prompt_tokens)
    except (OSError, ValueError, KeyError, http.client.HTTPException) as error:
        log.warning("prompts have about as many tokens as asked, not exactly: %s", error)
        LOAD.recorder.tally.exact = False


@events.init_command_line_parser.add_listener  # type: ignore[untyped-decorator]
def options(parser: Any) -> None:
    parser.add_argument("--model", default="default", env_var="MODEL", help="The model's name, as clients send it.")
    parser.add_argument(
        "--load-profile", default="chat", help="A profile under loadtests/profiles, or a YAML file of that form."
    )
    parser.add_argument(
        "--rate", type=float, default=0.0, help="Open loop: requests per second of all users together; 0: closed loop."
    )
    parser.add_argument("--warmup", type=float, default=0.0, help="Seconds at the beginning that are not measured.")
    parser.add_argument(
        "--measure",
        type=float,
        default=3600.0,
        help="Seconds that are measured; the users stop by themselves after them.",
    )
    parser.add_argument("--seed", type=int, default=1, help="The same seed asks the same, at the same moments.")
    parser.add_argument(
        "--plan", default="", help="A file with all of this as JSON, from the pipeline.", include_in_web_ui=False
    )
    parser.add_argument(
        "--tally", default="", help="Where what was counted is written as JSON, at the end.", include_in_web_ui=False
    )


def planned(given: Any) -> Plan:
    """The plan that the options name."""
    if given.plan:
        told = json.loads(Path(given.plan).read_text(encoding="utf-8"))
        return Plan(**{**told, "profile": Profile.model_validate(told["profile"])})
    file = Path(given.load_profile)
    if file.suffix not in (".yaml", ".yml"):
        file = Path(__file__).with_name("profiles") / f"{given.load_profile}.yaml"
    profile = Profile.model_validate(yaml.safe_load(file.read_text(encoding="utf-8")))
    load = {"rate": given.rate or None, "warmup": given.warmup, "duration": given.measure, "seed": given.seed}
    return Plan(given.model, profile, processes=max(1, given.expect_workers or 1), **load)


@events.init.add_listener  # type: ignore[untyped-decorator]
def prepare(environment: Any, runner: Any, **_: Any) -> None:
    if isinstance(runner, MasterRunner):
        runner.register_message(ENDED, lambda environment, msg, **_: worker_ended(environment, msg.data))
    if not environment.stop_timeout:
        environment.stop_timeout = DRAIN_SECONDS


def worker_ended(environment: Any, told: dict[str, Any]) -> None:
    LOAD.total.merge(Tally(told))
    LOAD.ended += 1
    if LOAD.ended == environment.runner.worker_count:
        gevent.spawn(finish, environment)


@events.test_start.add_listener  # type: ignore[untyped-decorator]
def begin(environment: Any, **_: Any) -> None:
    LOAD.begin(planned(environment.parsed_options))
    if isinstance(environment.runner, MasterRunner):
        return
    learn(environment.host or environment.parsed_options.host)
    start = clock() + int(LOAD.plan.warmup * SECOND)
    LOAD.recorder.measure(start, start + int(LOAD.plan.duration * SECOND))
    gevent.spawn(watch, environment)


@events.test_stop.add_listener  # type: ignore[untyped-decorator]
def stop(**_: Any) -> None:
    """Stopped by hand or by ``--run-time``: what came until now counts."""
    LOAD.recorder.close_at = min(LOAD.recorder.close_at, clock())
