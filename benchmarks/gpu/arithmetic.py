"""What the GPU benchmark computes: quantiles of a server's own histograms, phases, KV
space, and its tables.
Needs no GPU.
"""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

HISTOGRAMS = {"ttft": "vllm:time_to_first_token_seconds", "itl": "vllm:inter_token_latency_seconds"}
ENDS = (
    ("resolve", r"^the fetch step: started"),
    ("fetch", r"^the fetch step: ended"),
    ("start", r"^release \w+: ready after"),
    ("smoke", r"^the smoke step: ended"),
    ("load", r"^the load step: ended"),
)
GIB, BYTES, CUDA_GIB = 2**30, 2, 0.22  # of bfloat16; what CUDA takes was measured on an H200
Buckets = dict[float, float]


@dataclass(frozen=True)
class Row:
    """One tool's load: what it says, what the server says of the same time, and what the
    load cost it. Latencies in ms, CPU in s.
    """

    users: int
    tool: str
    good: int
    tokens_per_second: float
    told: Mapping[str, float]
    server: Mapping[str, float] = field(default_factory=dict)
    cpu: float = 0.0


def buckets(metrics: Sequence[tuple[str, Mapping[str, str], float]], name: str) -> Buckets:
    """Cumulative counts by upper bound (s) of the histogram ``name``, added up over its
    labels, from (name, labels, value).
    """
    found: Buckets = {}
    for sample, labels, value in metrics:
        if sample == f"{name}_bucket":
            bound = float(labels["le"])
            found[bound] = found.get(bound, 0.0) + value
    return found


def between(before: Buckets, after: Buckets) -> Buckets:
    """What was counted between two readings."""
    return {bound: count - before.get(bound, 0.0) for bound, count in after.items()}


def quantile(counted: Buckets, share: float) -> float | None:
    """In ms, interpolated within its bucket as Prometheus does; None when nothing was
    counted. Beyond the last bound: that bound.
    """
    bounds = sorted(counted)
    total = counted[bounds[-1]] if bounds else 0.0
    if not total:
        return None
    rank, below, lower = share * total, 0.0, 0.0
    for bound in bounds:
        if counted[bound] >= rank and counted[bound] > below:
            if math.isinf(bound):
                return 1000 * lower
            return 1000 * (lower + (bound - lower) * (rank - below) / (counted[bound] - below))
        below, lower = counted[bound], bound if not math.isinf(bound) else lower
    return 1000 * lower


def table(rows: Sequence[Row]) -> str:
    """Markdown: each tool's figures, and the server's own beside them in brackets."""
    lines = [
        "| users | tool | good | output tok/s | TTFT p50 | TTFT p95 | ITL p50 | ITL p95 | CPU s |",
        "|--:|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        cells = [_cell(row, key) for key in ("ttft_p50", "ttft_p95", "itl_p50", "itl_p95")]
        lines.append(
            f"| {row.users} | {row.tool} | {row.good} | {row.tokens_per_second:,.0f} | {' | '.join(cells)} | {row.cpu:.2f} |"
        )
    return "\n".join(lines)


def _cell(row: Row, key: str) -> str:
    own = row.server.get(key)
    return f"{row.told[key]:,.1f}" + ("" if own is None else f" ({own:,.1f})")


def middle(rows: Sequence[Row]) -> list[Row]:
    """One row for each number of users and tool: the median of every figure."""
    kinds = dict.fromkeys((row.users, row.tool) for row in rows)
    return [_median([row for row in rows if (row.users, row.tool) == kind]) for kind in sorted(kinds)]


def _median(rows: Sequence[Row]) -> Row:
    def of(figures: Sequence[Mapping[str, float]]) -> dict[str, float]:
        keys = [key for key in figures[0] if all(key in other for other in figures)]
        return {key: statistics.median(each[key] for each in figures) for key in keys}

    return replace(
        rows[0],
        good=min(row.good for row in rows),
        tokens_per_second=statistics.median(row.tokens_per_second for row in rows),
        told=of([row.told for row in rows]),
        server=of([row.server for row in rows]),
        cpu=statistics.median(row.cpu for row in rows),
    )


def phases(lines: Sequence[tuple[float, str]], whole: float) -> dict[str, float]:
    """Seconds of each phase of a command, from its lines of progress and their times: a
    phase ends with the first line of its kind that comes after the phase before.
    """
    found, at, left = dict[str, float](), 0.0, list(lines)
    for name, pattern in ENDS:
        here = next((n for n, (_, text) in enumerate(left) if re.search(pattern, text)), None)
        if here is not None:
            found[name] = round(left[here][0] - at, 1)
            at, left = left[here][0], left[here + 1 :]
    return found | {"promote": round(whole - at, 1)}


def kv_space(config: Mapping[str, Any], weights: int, total: float, share: float) -> tuple[float, int]:
    """GiB and tokens that are left for keys and values, before the peak of activations is
    known: ``share`` of the card's ``total`` GiB less the weights (bytes) and what CUDA
    takes itself.
    """
    head = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    per_token = config["num_hidden_layers"] * 2 * config["num_key_value_heads"] * head * BYTES
    space = share * total - weights / GIB - CUDA_GIB
    return space, max(0, int(space * GIB / per_token))
