"""What the servers themselves say while they are loaded: each one's own ``/metrics``,
never a balancer's (that is a random one's).
"""

from __future__ import annotations

import json
import math
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

from prometheus_client.parser import text_string_to_metric_families

from model_delivery.measure.asking import ask
from model_delivery.measure.metrics import Gauges, Pod
from model_delivery.measure.profile import SLICES
from model_delivery.measure.words import printable

RUNNING, WAITING, KV = "vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc"
FINISHED, GENERATED = "vllm:request_success_total", "vllm:generation_tokens_total"
PREEMPTED, ASKED, HIT = "vllm:num_preemptions_total", "vllm:prefix_cache_queries_total", "vllm:prefix_cache_hits_total"
SECONDS = 5.0
BORN = "process_start_time_seconds"
KEPT = {RUNNING, WAITING, KV, FINISHED, GENERATED, PREEMPTED, ASKED, HIT, BORN}


@dataclass
class _Server:
    """Its figures before, and last; what it said it serves; its gauges on the way."""

    url: str
    first: dict[str, float]
    models: str
    last: dict[str, float] = field(default_factory=dict)
    gauges: list[Gauges] = field(default_factory=list)

    def grown(self, name: str) -> float | None:
        return self.last[name] - self.first.get(name, 0) if name in self.last else None


class Watch:
    """Looks at all of ``urls`` (base addresses) before, during and after a load.

    What does not tell is left out.
    """

    def __init__(self, urls: tuple[str, ...], headers: Mapping[str, str]) -> None:
        self.headers = headers
        self.start = time.monotonic()
        self.servers = [
            _Server(url, figures, self._models(url)) for url in urls if (figures := self._figures(url)) is not None
        ]

    def look(self) -> None:
        """Sample the gauges."""
        for server in self.servers:
            figures = self._figures(server.url)
            if figures is not None:
                server.last = figures
                running, waiting, use = (figures.get(name, 0) for name in (RUNNING, WAITING, KV))
                at = round(time.monotonic() - self.start, 2)
                server.gauges.append(Gauges(at=at, running=running, waiting=waiting, kv_use=round(use, 4)))

    def pods(self) -> tuple[Pod, ...]:
        """The differences of the counters; ``changed`` when a server is not the one that
        it was.
        """
        self.look()
        return tuple(map(self._pod, self.servers))

    def _pod(self, server: _Server) -> Pod:
        asked, first = server.grown(ASKED), server.first
        return Pod(
            url=server.url,
            requests=server.grown(FINISHED),
            generated=server.grown(GENERATED),
            preemptions=server.grown(PREEMPTED),
            prefix_hits=round((server.grown(HIT) or 0) / asked, 4) if asked else None,
            before=first[RUNNING] + first.get(WAITING, 0) if RUNNING in first else None,
            changed=self._changed(server),
            gauges=tuple(server.gauges[:: max(1, len(server.gauges) // SLICES)]),
        )

    def _changed(self, server: _Server) -> str | None:
        first, last = server.first, server.last
        if first.get(BORN) != last.get(BORN, first.get(BORN)):
            return "was restarted during the test"
        if any(last[name] < first[name] for name in (FINISHED, GENERATED) if name in last and name in first):
            return "counted backwards: another server answers there"
        before, now = server.models, self._models(server.url)
        return f"now serves {now}, before it was {before}" if before and now and now != before else None

    def _figures(self, url: str) -> dict[str, float] | None:
        """By name, added up over labels; None where there are none. What is no number
        (NaN) does not tell.
        """
        answer, figures = self._asked(url, "/metrics"), defaultdict[str, float](float)
        try:
            for family in text_string_to_metric_families(answer.decode()):
                for sample in family.samples:
                    if sample.name in KEPT and math.isfinite(sample.value):
                        figures[sample.name] += sample.value
        except Exception:  # a foreign parser over foreign text
            return None
        return dict(figures) if answer else None

    def _models(self, url: str) -> str:
        try:
            listed = json.loads(self._asked(url, "/v1/models"))["data"]
            return printable(", ".join(sorted(f"{model['id']} ({model.get('root')})" for model in listed)))
        except Exception:  # JSON of anybody's making
            return ""

    def _asked(self, url: str, path: str) -> bytes:
        answer = ask(url, path, headers=self.headers, seconds=SECONDS)
        return b"" if answer.refusal() else bytes(answer.body)
