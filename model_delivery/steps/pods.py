"""What the servers themselves say while they are loaded: each one's own ``/metrics``, never a balancer's (that is a random one's)."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

from model_delivery.measure.metrics import Gauges, Pod

RUNNING, WAITING, KV = "vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc"
FINISHED, GENERATED = "vllm:request_success_total", "vllm:generation_tokens_total"
PREEMPTED, ASKED, HIT = "vllm:num_preemptions_total", "vllm:prefix_cache_queries_total", "vllm:prefix_cache_hits_total"
BORN = "process_start_time_seconds"
KEPT = {RUNNING, WAITING, KV, FINISHED, GENERATED, PREEMPTED, ASKED, HIT, BORN}


@dataclass
class _Seen:
    """One server: its figures before, and last; what it said it serves; its gauges on the way."""

    url: str
    first: dict[str, float]
    models: Any
    last: dict[str, float] = field(default_factory=dict)
    gauges: list[Gauges] = field(default_factory=list)


class Watch:
    """Looks at every one of ``urls`` (base addresses) before, during and after a load. One that does not tell is left out."""

    def __init__(self, urls: tuple[str, ...], headers: Mapping[str, str]) -> None:
        self.client = httpx.Client(headers=dict(headers), timeout=5, trust_env=False)
        self.start = time.monotonic()
        self.pods = [
            _Seen(url, figures, self._models(url)) for url in urls if (figures := self._figures(url)) is not None
        ]

    def look(self) -> None:
        """Sample the gauges."""
        for pod in self.pods:
            figures = self._figures(pod.url)
            if figures is not None:
                pod.last = figures
                at = round(time.monotonic() - self.start, 2)
                pod.gauges.append(
                    Gauges(
                        at=at,
                        running=figures.get(RUNNING, 0),
                        waiting=figures.get(WAITING, 0),
                        kv_use=round(figures.get(KV, 0), 4),
                    )
                )

    def told(self) -> tuple[Pod, ...]:
        """The differences of the counters; ``changed`` when a server is not the one that it was."""
        self.look()
        pods = tuple(self._pod(pod) for pod in self.pods)
        self.client.close()
        return pods

    def _pod(self, pod: _Seen) -> Pod:
        def grown(name: str) -> float | None:
            return pod.last[name] - pod.first.get(name, 0) if name in pod.last else None

        asked = grown(ASKED)
        return Pod(
            url=pod.url,
            requests=grown(FINISHED),
            generated=grown(GENERATED),
            preemptions=grown(PREEMPTED),
            prefix_hits=round((grown(HIT) or 0) / asked, 4) if asked else None,
            before=pod.first.get(RUNNING, 0) + pod.first.get(WAITING, 0) if RUNNING in pod.first else None,
            changed=self._changed(pod),
            gauges=tuple(pod.gauges[:: max(1, len(pod.gauges) // 120)]),
        )

    def _changed(self, pod: _Seen) -> str | None:
        if pod.first.get(BORN) != pod.last.get(BORN, pod.first.get(BORN)):
            return "was restarted during the test"
        if any(
            pod.last[name] < pod.first[name] for name in (FINISHED, GENERATED) if name in pod.last and name in pod.first
        ):
            return "counted backwards: another server answers there"
        now = self._models(pod.url)
        return f"now serves {now}, before it was {pod.models}" if pod.models and now and now != pod.models else None

    def _figures(self, url: str) -> dict[str, float] | None:
        """By name, added up over labels; None where there are none."""
        try:
            answer = self.client.get(f"{url}/metrics")
            answer.raise_for_status()
            found: dict[str, float] = {}
            for family in text_string_to_metric_families(answer.text):
                for sample in family.samples:
                    if sample.name in KEPT:
                        found[sample.name] = found.get(sample.name, 0.0) + sample.value
        except (httpx.HTTPError, ValueError):
            return None
        return found

    def _models(self, url: str) -> str:
        try:
            listed = self.client.get(f"{url}/v1/models").json()["data"]
            return ", ".join(sorted(f"{model['id']} ({model.get('root')})" for model in listed))
        except (httpx.HTTPError, ValueError, KeyError, TypeError):
            return ""
