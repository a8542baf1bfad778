"""The Locust user. By hand: ``locust -f loadtests/user.py --host URL --model NAME``, with
any of Locust's own options, its web UI, ``--processes``, master and workers, custom
shapes. The pipeline gives ``--plan`` (see ``Plan``, as JSON) and reads what ``--tally``
names.

An API key is read from the environment variable ``MODEL_DELIVERY_API_KEY``.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import time
from functools import partial
from pathlib import Path
from typing import Any

import gevent
import yaml
from locust import User, constant, events, task
from locust.exception import StopUser
from locust.runners import MasterRunner, WorkerRunner
from pydantic import TypeAdapter

from model_delivery.base import scrubbing
from model_delivery.loadtests.arrivals import Plan, schedule
from model_delivery.loadtests.connection import Connection
from model_delivery.loadtests.prompts import Count, Vocabulary, bodies, question, vocabulary
from model_delivery.loadtests.recorder import SECOND, Recorder
from model_delivery.measure.asking import address, ask
from model_delivery.measure.metrics import TALLY, Tally
from model_delivery.measure.profile import Profile
from model_delivery.measure.reader import Stream, clock
from model_delivery.measure.words import printable

LAG_EVERY = 0.01
DRAIN_SECONDS = 60
ENDED = "model-delivery-ended"
SHORTEST_REST, LONGEST_REST = 0.01, 1.0
ANSWER_BYTES, TOKEN_BYTES = 1 << 20, 4096
KEY = os.environ.get("MODEL_DELIVERY_API_KEY", "")
scrubbing.learn(KEY)
AUTHORIZED = {"Authorization": f"Bearer {KEY}"} if KEY else {}
log = logging.getLogger(__name__)


class Load:
    """What this process knows of the load that runs: one test at a time, as in Locust."""

    def __init__(self) -> None:
        self.vocabulary = Vocabulary()
        self.begin(Plan("", Profile(prompt_tokens=64, output_tokens=64)))

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
        to, plan, profile = address(self.host), LOAD.plan, LOAD.plan.profile
        number, LOAD.started = LOAD.started, LOAD.started + 1
        worker = max(0, getattr(self.environment.runner, "worker_index", 0))
        self.part, self.refused = worker + number * plan.processes, 0
        self.connect = partial(Connection, to.host, to.port, tls=to.secure, timeout=profile.timeout)
        self.limit = ANSWER_BYTES + TOKEN_BYTES * profile.longest
        self.connection = self.connect()
        self.connection.open()
        self.bodies = bodies(profile, plan.model, LOAD.vocabulary, f"{plan.seed}/{worker}/{number}")
        self.head = to.head(f"/v1/{'chat/' * (profile.endpoint == 'chat')}completions", "", AUTHORIZED)

    def send(self, connection: Connection, intended: int | None = None) -> Stream:
        """One request, counted whatever comes of it, and told to Locust."""
        recorder, now = LOAD.recorder, clock()
        recorder.running += 1
        recorder.sent += 1
        stream = Stream(intended or now, start=now, end=now, error="stopped")
        try:
            body, asked = next(self.bodies)
            raw = f"{self.head}{len(body)}\r\n\r\n".encode() + body
            left = DRAIN_SECONDS + (recorder.close_at - now) / SECOND
            stream = connection.request(raw, intended, asked, limit=self.limit, within=max(0.1, left))
        except Exception as error:
            stream.error, stream.said, stream.end = f"broke: {type(error).__name__}", printable(str(error)), clock()
            if stream.error not in recorder.tally.errors:
                log.exception("a request could not be made")
        finally:
            recorder.running -= 1
            recorder.add(stream)
        self.tell(stream)
        return stream

    def tell(self, stream: Stream) -> None:
        """Fire Locust's own events, for its statistics and web UI; ours come from the
        recorder.
        """
        failure = stream.failure()
        fire = partial(
            self.environment.events.request.fire, request_type="stream", response_length=len(stream.times), context={}
        )
        ended = (stream.end - stream.intended) / 1e6
        fire(name="end-to-end", response_time=ended, exception=RuntimeError(failure) if failure else None)
        if stream.first_text:
            fire(name="TTFT", response_time=(stream.first_text - stream.intended) / 1e6, exception=None)

    @task  # type: ignore[untyped-decorator]
    def ask(self) -> None:
        if LOAD.plan.rate:
            self.keep_schedule(LOAD.plan.rate)
            raise StopUser
        if not self.refused:
            self.connection.open()  # before it counts as sent: what is sent before the end is measured
        if over():
            raise StopUser
        stream = self.send(self.connection)
        self.refused = 0 if stream.times else self.refused + 1
        if self.refused:
            self.rest(stream.retry_after or min(LONGEST_REST, SHORTEST_REST * 2**self.refused))

    def rest(self, seconds: float) -> None:
        """As long as a server that refuses wants it, or longer each time; not longer than
        the test.
        """
        end = clock() + seconds * SECOND
        while (left := end - clock()) > 0 and not over():
            gevent.sleep(min(left / SECOND, 0.1))

    def keep_schedule(self, rate: float) -> None:
        """Send at the intended moments, whatever earlier requests do; the latency counts
        from there.
        """
        parts = max(1, getattr(self.environment.parsed_options, "num_users", None) or 1)
        began, free, sent = clock(), [self.connection], list[gevent.Greenlet]()
        for at in schedule(LOAD.plan.profile.arrivals, rate, str(LOAD.plan.seed), self.part, parts):
            intended = began + int(at * SECOND)
            gevent.sleep(max(0.0, (min(intended, LOAD.recorder.close_at) - clock()) / SECOND))
            if over():
                break
            sent = [greenlet for greenlet in sent if not greenlet.dead] if len(sent) > 4096 else sent
            sent.append(gevent.spawn(self.send_once, free, intended))
        gevent.joinall(sent)

    def send_once(self, free: list[Connection], intended: int) -> None:
        connection = free.pop() if free else self.connect()
        self.send(connection, intended)
        free.append(connection)


def over() -> bool:
    recorder = LOAD.recorder
    most = LOAD.plan.profile.max_requests
    return clock() >= recorder.close_at or recorder.hopeless or recorder.sent * LOAD.plan.processes >= most


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
    recorder.tally.counts.update(
        sent=recorder.sent, stamped=Connection.stamped - stamped, reads=Connection.reads - reads
    )
    if isinstance(environment.runner, WorkerRunner):
        environment.runner.send_message(ENDED, TALLY.dump_python(recorder.tally, mode="json"))
    else:
        LOAD.total.merge(recorder.tally)
        finish(environment)


def finish(environment: Any) -> None:
    """The tally is written whole or not at all; then a headless run is over."""
    options = environment.parsed_options
    if options.tally:
        target = Path(options.tally)
        temporary = target.with_suffix(".new")
        temporary.write_bytes(TALLY.dump_json(LOAD.total))
        temporary.replace(target)
    if options.headless:
        environment.runner.quit()


def count_tokens(host: str, plan: Plan) -> Count:
    """A function that asks the server how many tokens a prompt has.

    ValueError where it has no ``/tokenize``.
    """

    def count(text: str) -> int:
        asked = {"model": plan.model, **question(plan.profile, text)}
        answer = ask(host, "/tokenize", asked, headers=AUTHORIZED)
        if why := answer.why():
            raise ValueError(f"/tokenize: {why}")
        return int(json.loads(answer.body)["count"])

    return count


def learn(host: str) -> None:
    """The words to ask with; without a tokenizer, lengths are of words."""
    LOAD.vocabulary = Vocabulary()
    if LOAD.plan.profile.prompts:
        return
    try:
        LOAD.vocabulary = vocabulary(count_tokens(host, LOAD.plan), LOAD.plan.profile.prompt_tokens)
    except (ValueError, TypeError, LookupError, RecursionError) as error:
        log.warning("prompts have about as many tokens as asked, not exactly: %s", error)
        LOAD.recorder.tally.exact = False


OPTIONS: dict[str, tuple[str | float, str]] = {
    "model": ("default", "The model's name, as clients send it."),
    "load-profile": ("chat", "A profile under loadtests/profiles, or a YAML file of that form."),
    "rate": (0.0, "Open loop: requests per second of all users together; 0: closed loop."),
    "warmup": (0.0, "Seconds at the beginning that are not measured."),
    "measure": (3600.0, "Seconds that are measured; the users stop by themselves after them."),
    "seed": (1, "The same seed asks the same, at the same moments."),
    "plan": ("", "A file with all of this as JSON, from the pipeline."),
    "tally": ("", "Where what was counted is written as JSON, at the end."),
}


@events.init_command_line_parser.add_listener  # type: ignore[untyped-decorator]
def options(parser: Any) -> None:
    for name, (default, text) in OPTIONS.items():
        by_hand = {"env_var": "MODEL"} if name == "model" else {"include_in_web_ui": default != ""}
        parser.add_argument(f"--{name}", type=type(default), default=default, help=text, **by_hand)


def planned(given: Any) -> Plan:
    """The plan that the options name."""
    if given.plan:
        return TypeAdapter(Plan).validate_json(Path(given.plan).read_bytes())
    file = Path(given.load_profile)
    if file.suffix not in (".yaml", ".yml"):
        file = Path(__file__).with_name("profiles") / f"{file}.yaml"
    profile = Profile.model_validate(yaml.safe_load(file.read_text(encoding="utf-8")))
    return Plan(
        given.model,
        profile,
        rate=given.rate or None,
        warmup=given.warmup,
        duration=given.measure,
        seed=given.seed,
        processes=max(1, given.expect_workers or 1),
    )


@events.init.add_listener  # type: ignore[untyped-decorator]
def prepare(environment: Any, runner: Any, **_: Any) -> None:
    if isinstance(runner, MasterRunner):
        runner.register_message(ENDED, worker_ended)
    if not environment.stop_timeout:
        environment.stop_timeout = DRAIN_SECONDS


def worker_ended(environment: Any, msg: Any, **_: Any) -> None:
    LOAD.total.merge(TALLY.validate_python(msg.data))
    LOAD.ended += 1
    if LOAD.ended == environment.runner.worker_count:
        gevent.spawn(finish, environment)


@events.test_start.add_listener  # type: ignore[untyped-decorator]
def begin(environment: Any, **_: Any) -> None:
    LOAD.begin(planned(environment.parsed_options))
    if isinstance(environment.runner, MasterRunner):
        return
    learn(environment.host or environment.parsed_options.host)
    LOAD.recorder.open_at = clock() + int(LOAD.plan.warmup * SECOND)
    LOAD.recorder.close_at = LOAD.recorder.open_at + int(LOAD.plan.duration * SECOND)
    gc.collect()
    gc.freeze()  # what stands by now is not looked through again while answers come
    gevent.spawn(watch, environment)


@events.test_stop.add_listener  # type: ignore[untyped-decorator]
def stop(**_: Any) -> None:
    """Stopped by hand or by ``--run-time``: what came until now counts."""
    LOAD.recorder.close_at = min(LOAD.recorder.close_at, clock())
