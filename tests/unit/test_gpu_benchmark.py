"""The GPU benchmark's arithmetic, without a GPU."""

from __future__ import annotations

import math

import pytest

from benchmarks.gpu.arithmetic import Row, between, buckets, kv_space, middle, phases, quantile, table


def test_quantiles_are_interpolated_within_their_bucket() -> None:
    counted = {0.01: 0.0, 0.02: 50.0, 0.04: 100.0, math.inf: 100.0}
    assert quantile(counted, 0.5) == pytest.approx(20)
    assert quantile(counted, 0.75) == pytest.approx(30)
    assert quantile(counted, 0.25) == pytest.approx(15)


def test_what_lies_beyond_the_last_bound_is_that_bound_and_nothing_is_none() -> None:
    assert quantile({0.1: 5.0, math.inf: 10.0}, 0.95) == pytest.approx(100)
    assert quantile({0.1: 0.0, math.inf: 0.0}, 0.5) is None
    assert quantile({}, 0.5) is None


def test_only_what_came_between_two_readings_counts_over_all_engines() -> None:
    def reading(*counts: float) -> list[tuple[str, dict[str, str], float]]:
        return [
            ("h_bucket", {"le": bound, "engine": "0"}, count)
            for bound, count in zip(("0.1", "0.2", "+Inf"), counts, strict=True)
        ]

    other = [("h_bucket", {"le": "0.1", "engine": "1"}, 3.0), ("h_count", {"engine": "0"}, 9.0)]
    before, after = buckets(reading(10, 10, 10), "h"), buckets([*reading(10, 30, 30), *other], "h")
    assert after == {0.1: 13, 0.2: 30, math.inf: 30}
    assert between(before, after) == {0.1: 3, 0.2: 20, math.inf: 20}


def test_the_table_has_the_servers_figures_beside() -> None:
    told = {"ttft_p50": 30.0, "ttft_p95": 61.04, "itl_p50": 5.5, "itl_p95": 6.0}
    row = Row(16, "this harness", 96, 2512.4, told, {"ttft_p95": 52.5}, 0.63)
    assert table([row]).splitlines()[-1] == "| 16 | this harness | 96 | 2,512 | 30.0 | 61.0 (52.5) | 5.5 | 6.0 | 0.63 |"


def test_of_alternating_runs_each_figure_is_the_median() -> None:
    def row(tool: str, rate: float, ttft: float, cpu: float) -> Row:
        return Row(16, tool, 96, rate, {"ttft_p50": ttft}, {"ttft_p50": ttft - 1}, cpu)

    rows = [row("a", 10, 3, 0.1), row("b", 5, 1, 9), row("a", 30, 1, 0.3), row("a", 20, 2, 0.9)]
    first, second = middle(rows)
    assert (first.tokens_per_second, first.told, first.server, first.cpu) == (20, {"ttft_p50": 2}, {"ttft_p50": 1}, 0.3)
    assert second.tool == "b"


def test_phases_come_from_a_commands_own_lines() -> None:
    lines = [
        (4.0, "the fetch step: started after 0.3 s"),
        (9.5, "the fetch step: ended after 5.5 s"),
        (11.0, "release 80ab1b749b: the engine is starting: its core begins, 1 of at most 900 s"),
        (95.5, "release 80ab1b749b: ready after 86.0 s"),
        (99.0, "the smoke step: ended after 3.9 s"),
        (120.0, "the load step: ended after 19.8 s"),
        (121.0, "release 80ab1b749b: ready after 0.6 s"),
    ]
    assert phases(lines, 122) == {"resolve": 4, "fetch": 5.5, "start": 86, "smoke": 3.5, "load": 21, "promote": 2}
    assert phases([(1.0, "release 80ab1b749b: ready after 0.6 s")], 3) == {"start": 1, "promote": 2}


def test_kv_space_before_activations_is_what_vllm_reported_with_them() -> None:
    shape = {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32}
    space, tokens = kv_space(shape, round(12.56 * 2**30), 139.8, 0.92)
    assert space - 0.78 == pytest.approx(115.05, abs=0.02)  # CodeLlama-7B on an H200: 235,616 tokens
    assert tokens * (space - 0.78) / space == pytest.approx(235_616, rel=1e-3)
