"""Does a release do worse than another in the same minutes? By what its engines count of
the requests of everybody; pure.

It is said only where it is sure: by Wilson's interval, 99.9 % on one side.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self

from prometheus_client.parser import text_string_to_metric_families

FINISHED, ANSWERED = "vllm:request_success_total", "http_requests_total"
WAITS = {"vllm:time_to_first_token_seconds_bucket": "TTFT", "vllm:inter_token_latency_seconds_bucket": "ITL"}
SURE = 3.09  # standard errors
FEWEST, FEWEST_WAITS = 20, 50
ERRORS, USUAL, SLOW, TIMES = 0.01, 0.95, 0.10, 2.0
Waits = Mapping[float, float]


@dataclass(frozen=True)
class Served:
    """Requests that ended, how many in an error of the server, and by metric how many
    waits were no longer than a bound in s.
    """

    requests: float = 0.0
    errors: float = 0.0
    waits: Mapping[str, Waits] = field(default_factory=dict)

    @classmethod
    def read(cls, metrics: bytes) -> Self:
        """Of vLLM's ``/metrics``; nothing of what is none."""
        requests = errors = 0.0
        waits: dict[str, defaultdict[float, float]] = {name: defaultdict(float) for name in WAITS.values()}
        try:
            for family in text_string_to_metric_families(metrics.decode()):
                for name, labels, value, *_ in family.samples:
                    if not math.isfinite(value):
                        continue
                    failed = labels.get("finished_reason") == "error" or labels.get("status", "").startswith("5")
                    if name == FINISHED or (name == ANSWERED and failed):
                        requests, errors = requests + value, errors + value * failed
                    elif name in WAITS:
                        waits[WAITS[name]][float(labels["le"])] += value
        except Exception:  # noqa: BLE001 - a foreign parser over foreign text
            return cls()
        return cls(requests, errors, {name: dict(bounds) for name, bounds in waits.items()})

    def since(self, before: Served) -> Served:
        """What came after ``before``; all of it where the engine was started anew
        meanwhile.
        """
        if self.requests < before.requests:
            return self
        waits = {
            name: {bound: count - before.waits.get(name, {}).get(bound, 0.0) for bound, count in bounds.items()}
            for name, bounds in self.waits.items()
        }
        return Served(self.requests - before.requests, self.errors - before.errors, waits)

    def and_of(self, other: Served) -> Served:
        waits = {
            name: {
                bound: self.waits.get(name, {}).get(bound, 0.0) + other.waits.get(name, {}).get(bound, 0.0)
                for bound in sorted({*self.waits.get(name, {}), *other.waits.get(name, {})})
            }
            for name in WAITS.values()
        }
        return Served(self.requests + other.requests, self.errors + other.errors, waits)


def degraded(new: Served, old: Served) -> str:
    """What ``new`` does surely worse than ``old``; empty: nothing.

    More than 1 % of errors, and twice the share of ``old``; or a tenth of its waits
    longer than twice what ``old`` keeps to in 95 of 100.
    """
    share = old.errors / old.requests if old.requests else 0.0
    if new.requests >= FEWEST and _at_least(new.errors, new.requests) > max(ERRORS, TIMES * share):
        said = f"{new.errors:.0f} of its {new.requests:.0f} requests ended in an error of the server"
        return f"{said}, of the other release's {old.errors:.0f} of {old.requests:.0f}"
    return next(filter(None, (_slower(name, new, old) for name in WAITS.values())), "")


def _slower(name: str, new: Served, old: Served) -> str:
    ours, theirs = (dict(sorted(served.waits.get(name, {}).items())) for served in (new, old))
    every, known = ours.get(math.inf, 0.0), theirs.get(math.inf, 0.0)
    if min(every, known) < FEWEST_WAITS:
        return ""
    usual = next(bound for bound, count in theirs.items() if count >= USUAL * known)
    limit = next((bound for bound in ours if TIMES * usual <= bound < math.inf), None)
    if limit is None or _at_least(every - ours[limit], every) <= SLOW:
        return ""
    late = f"its {name} was longer than {limit:g} s in {every - ours[limit]:.0f} of {every:.0f}"
    return f"{late}, the other release's no longer than {usual:g} s in {100 * USUAL:.0f} of 100"


def _at_least(hits: float, of: float) -> float:
    """The share that there surely is."""
    share, square = hits / of, SURE**2 / of
    middle = share + square / 2
    return (middle - SURE * math.sqrt(share * (1 - share) / of + square / 4 / of)) / (1 + square)
