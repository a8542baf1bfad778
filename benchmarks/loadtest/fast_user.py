"""Locust's FastHttpUser as people write it for a token stream: lines as they come, a
clock read for each.
"""

from __future__ import annotations

import json
import os
import time

import gevent
from locust import constant, events, task
from locust.contrib.fasthttp import FastHttpUser

LEFT = [int(os.environ["REQUESTS"])]
SEEN: dict[str, list[float]] = {"ttft": [], "itl": [], "errors": [], "good": []}
BODY = json.loads(os.environ["BODY"])


class StreamUser(FastHttpUser):
    wait_time = constant(0)

    @task
    def chat(self) -> None:
        if LEFT[0] <= 0:
            time.sleep(0.05)
            return
        LEFT[0] -= 1
        start = last = time.perf_counter()
        with self.client.request("POST", "/v1/chat/completions", json=BODY, stream=True, catch_response=True) as answer:
            first = True
            while line := answer.stream.readline(b"\n"):
                if not line.startswith(b"data: ") or line.startswith(b"data: [DONE]"):
                    continue
                said = json.loads(line[6:])
                if not (said.get("choices") and said["choices"][0]["delta"].get("content")):
                    continue
                now = time.perf_counter()
                SEEN["ttft" if first else "itl"].append(1000 * (now - last))
                first, last = False, now
            (SEEN["good"] if answer.status_code == 200 and not first else SEEN["errors"]).append(1000 * (last - start))
            answer.success()
        if len(SEEN["good"]) + len(SEEN["errors"]) >= int(os.environ["REQUESTS"]):
            gevent.spawn(self.environment.runner.quit)


@events.quitting.add_listener
def write(**_: object) -> None:
    with open(os.environ["SEEN"], "w", encoding="utf-8") as out:
        json.dump(SEEN, out)
