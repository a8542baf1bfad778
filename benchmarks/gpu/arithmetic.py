"""What the GPU benchmark computes: quantiles of a server's own histograms, and its table.
Needs no GPU.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

HISTOGRAMS = {"ttft": "vllm:time_to_first_token_seconds", "itl": "vllm:inter_token_latency_seconds"}
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
