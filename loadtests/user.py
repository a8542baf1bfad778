"""The Locust user. ``locust -f loadtests/user.py --host URL`` works by hand; the pipeline gives a plan by ``MODEL_DELIVERY_PLAN``.

The plan is a JSON file (see ``Plan``), ``MODEL_DELIVERY_REPORT`` names where the report goes, ``MODEL_DELIVERY_API_KEY`` holds a key.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import gevent
from locust import User, constant, events, task
from locust.exception import StopUser

from loadtests.arrivals import Plan, bodies, poisson
from loadtests.reader import Connection, Stream, clock
from loadtests.recorder import SECOND, Recorder

BY_HAND = {"model": os.environ.get("MODEL", "default"), "profile": {"prompt_tokens": 64, "output_tokens": 64}, "users": 1, "rate": None}
BY_HAND |= {"warmup": 0, "duration": 3600, "seed": 1}
_file = os.environ.get("MODEL_DELIVERY_PLAN")
PLAN = Plan(**(json.loads(Path(_file).read_text(encoding="utf-8")) if _file else BY_HAND))
RECORDER = Recorder()
LAG_EVERY = 0.01


class StreamUser(User):  # type: ignore[misc]
    """Closed loop: each user asks, reads to the end, asks again. Open loop: one user keeps the schedule for all."""

    wait_time = constant(0)
    made = 0

    def on_start(self) -> None:
        address = urlsplit(self.host)
        secure = address.scheme == "https"
        self.address = (address.hostname or "127.0.0.1", address.port or (443 if secure else 80))
        self.secure = secure
        self.connection = self.connect()
        self.bodies = bodies(PLAN, StreamUser.made)
        StreamUser.made += 1

    def connect(self) -> Connection:
        return Connection(*self.address, tls=self.secure)

    def raw(self) -> bytes:
        body = next(self.bodies)
        path = "/v1/completions" if PLAN.profile.get("endpoint") == "completions" else "/v1/chat/completions"
        key = os.environ.get("MODEL_DELIVERY_API_KEY")
        auth = f"Authorization: Bearer {key}\r\n" if key else ""
        head = f"POST {path} HTTP/1.1\r\nHost: {self.address[0]}\r\n{auth}Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        return head.encode() + body

    def record(self, stream: Stream) -> None:
        RECORDER.add(stream)
        failure = stream.failure()
        said: dict[str, Any] = {"request_type": "stream", "response_length": len(stream.times), "context": {}}
        error = RuntimeError(failure) if failure else None
        self.environment.events.request.fire(name="end-to-end", response_time=(stream.end - stream.intended) / 1e6, exception=error, **said)
        if stream.first_text:
            self.environment.events.request.fire(
                name="TTFT", response_time=(stream.first_text - stream.intended) / 1e6, exception=None, **said
            )

    @task  # type: ignore[untyped-decorator]
    def ask(self) -> None:
        if PLAN.rate:
            self.keep_schedule()
            raise StopUser
        if over() or RECORDER.requests >= PLAN.max_requests:
            raise StopUser
        self.record(self.connection.request(self.raw()))

    def keep_schedule(self) -> None:
        """Send at the intended moments, whatever earlier requests do; the latency counts from there."""
        began, free = clock(), [self.connection]
        sent: list[Any] = []
        for at in poisson(PLAN.rate or 1, PLAN.seed):
            intended = began + int(at * SECOND)
            gevent.sleep(max(0.0, (intended - clock()) / SECOND))
            if over() or len(sent) >= PLAN.max_requests:
                break
            sent.append(gevent.spawn(self.one, free, intended))
        gevent.joinall(sent)

    def one(self, free: list[Connection], intended: int) -> None:
        connection = free.pop() if free else self.connect()
        self.record(connection.request(self.raw(), intended))
        free.append(connection)


def over() -> bool:
    return bool(RECORDER.close_at) and clock() >= RECORDER.close_at


def watch_lag(environment: Any) -> None:
    """How late the loop itself is: what it cannot read in time it would report as the server's latency."""
    while not over():
        wanted = clock() + int(LAG_EVERY * SECOND)
        gevent.sleep(LAG_EVERY)
        if clock() >= RECORDER.open_at:
            RECORDER.lag.add([max(0, clock() - wanted)])
            RECORDER.in_flight[(clock() - RECORDER.open_at) // SECOND] = environment.runner.user_count


def conduct(environment: Any) -> None:
    """Warm up, measure, drain, stop; the report is written whole or not at all."""
    gevent.spawn(watch_lag, environment)
    gevent.sleep(max(0.0, (RECORDER.close_at - clock()) / SECOND))
    while environment.runner.user_count:
        gevent.sleep(0.02)
    target = Path(os.environ["MODEL_DELIVERY_REPORT"])
    temporary = target.with_suffix(".new")
    temporary.write_text(RECORDER.report(PLAN).model_dump_json(), encoding="utf-8")
    temporary.replace(target)
    environment.runner.quit()


@events.test_start.add_listener  # type: ignore[untyped-decorator]
def begin(environment: Any, **_: Any) -> None:
    start = clock() + int(PLAN.warmup * SECOND)
    RECORDER.measure(start, start + int(PLAN.duration * SECOND))
    if "MODEL_DELIVERY_REPORT" in os.environ:
        gevent.spawn(conduct, environment)
