"""How often the regression gate cries wolf, and what it finds
(docs/benchmarks/regression.md).

``benchmarks/loadtest/alarms.py measure FILE [--pairs N]`` plays A/A pairs: both load
tests of a pair meet one timing server that never changes. ``table FILE`` counts the
false alarms, and simulates many more pairs, and slower releases, from those runs' own
spread. Load goes to loopback only.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT)]

from model_delivery.base import Duration, Rate  # noqa: E402
from model_delivery.measure.compare import Comparison, compare  # noqa: E402
from model_delivery.measure.metrics import LoadReport  # noqa: E402
from model_delivery.steps.load import LoadInput, run  # noqa: E402
from model_delivery.values.metrics import FIGURES  # noqa: E402
from tests.parts.timing_engine import TimingServer  # noqa: E402
from tests.parts.tiny_model import tiny_model  # noqa: E402

LOOPS: dict[str, dict[str, Any]] = {"8 users": {"users": 8}, "12/s, Poisson": {"rate": Rate("12/s")}}
REPEATS, BOUNDS = (2, 3, 5, 8), (0.0, 0.05, 0.1)
SLOWER = (0.05, 0.1, 0.2)
SMOOTH = 0.3
Vector = dict[str, float]


def measure(out: Path, pairs: int) -> None:
    """Pair after pair, each kind of load in turn; written as it goes."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        model = tiny_model(folder / "model")
        with TimingServer(model, "--ttft", "100", "--itl", "10", "--slots", "6") as server:
            for number in range(pairs):
                for loop, load in LOOPS.items():
                    given = LoadInput(
                        url=server.url,
                        model="m",
                        profile="smoke" if "users" in load else _poisson(),
                        warmup=Duration("0.5s"),
                        duration=Duration("2s"),
                        repeats=3,
                        folder=str(folder / "locust"),
                        **load,
                    )
                    sides = [run(given.model_copy(update={"seed": 6 * number + 3 * side})) for side in (0, 1)]
                    row = {
                        "loop": loop,
                        "busy": os.getloadavg()[0],
                        "sides": [s.model_dump(mode="json") for s in sides],
                    }
                    with out.open("a", encoding="utf-8") as file:
                        file.write(json.dumps(row) + "\n")


def _poisson() -> dict[str, object]:
    return {"prompt_tokens": 32, "output_tokens": 24, "ignore_eos": True, "endpoint": "chat", "arrivals": "poisson"}


def alarms(found: Sequence[Comparison], bound: float) -> bool:
    """Whether the gate with this ``max_regression`` would refuse."""
    return any(c.noise is not None and c.worse > max(c.noise, bound) for c in found)


def wilson(hits: int, tries: int) -> tuple[float, float]:
    """The 95 % interval of a share."""
    z, share = 1.96, hits / tries
    middle, half = share + z * z / 2 / tries, z * math.sqrt(share * (1 - share) / tries + z * z / 4 / tries**2)
    return round(max(0.0, middle - half), 9) / (1 + z * z / tries), (middle + half) / (1 + z * z / tries)


def table(source: Path, tries: int) -> None:
    rows = [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines()]
    loads: dict[str, list[list[LoadReport]]] = {loop: [] for loop in LOOPS}
    for row in rows:
        loads[row["loop"]].append([LoadReport.model_validate(side) for side in row["sides"]])
    busy = [row["busy"] for row in rows]
    print(f"load average {min(busy):.1f} to {max(busy):.1f}\n")
    print("| load | pairs | max_regression | false alarms | 95 % interval |\n|---|--:|--:|--:|--:|")
    for loop, pairs in loads.items():
        found = [compare(new, old, 1e-9) for old, new in pairs]
        for bound in BOUNDS:
            print(_row(loop, len(found), bound, [alarms(one, bound) for one in found]))
    print(f"\nSpread of a run in its test, and of the tests beyond that:\n\n| load | {' | '.join(_names(rows))} |")
    print(f"|---|{'--:|' * len(_names(rows))}")
    for loop, pairs in loads.items():
        inner, outer = _spread(pairs)
        cells = [f"{100 * _deviation(inner, name):.2g} %, {100 * _deviation(outer, name):.2g} %" for name in inner[0]]
        print(f"| {loop} | {' | '.join(cells)} |")
    print(
        "\n| load | repeats | max_regression | pairs | false alarms | 95 % interval | without drift | found: 5 % | 10 % | 20 % slower |"
    )
    print("|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|")
    for loop, pairs in loads.items():
        dice = random.Random(loop)
        for repeats in REPEATS:
            same = list(_simulated(dice, pairs, repeats, 0.0, tries))
            calm = list(_simulated(dice, pairs, repeats, 0.0, tries, drift=False))
            slower = [list(_simulated(dice, pairs, repeats, share, tries // 5)) for share in SLOWER]
            for bound in BOUNDS:
                low, high = wilson(hits := sum(alarms(one, bound) for one in same), tries)
                power = " | ".join(f"{100 * fmean(alarms(one, bound) for one in few):.0f} %" for few in slower)
                print(
                    f"| {loop} | {repeats} | {100 * bound:g} % | {tries} | {100 * hits / tries:.2g} % "
                    f"| {100 * low:.2g} to {100 * high:.2g} % | {100 * fmean(alarms(one, bound) for one in calm):.2g} % | {power} |"
                )


def _row(loop: str, tries: int, bound: float, seen: Sequence[bool]) -> str:
    low, high = wilson(sum(seen), tries)
    return f"| {loop} | {tries} | {100 * bound:g} % | {sum(seen)} | {100 * low:.2g} to {100 * high:.2g} % |"


def _names(rows: Sequence[dict[str, Any]]) -> list[str]:
    pair = [LoadReport.model_validate(side) for side in rows[0]["sides"]]
    return [c.figure.name for c in compare(pair[1], pair[0], 1e-9)]


def _spread(pairs: Sequence[Sequence[LoadReport]]) -> tuple[list[Vector], list[Vector]]:
    """On the logarithms: each run less its test's mean, and each test's mean less that of
    all, shrunk by what the runs alone would make of it.
    """
    names = [c.figure.name for c in compare(pairs[0][1], pairs[0][0], 1e-9)]
    tests = [[{name: math.log(each[name]) for name in names} for each in one.runs] for pair in pairs for one in pair]
    means = [{name: fmean(each[name] for each in test) for name in names} for test in tests]
    runs = len(tests[0])
    grow = math.sqrt(runs / (runs - 1))
    inner = [
        {n: grow * (each[n] - mean[n]) for n in names} for test, mean in zip(tests, means, strict=True) for each in test
    ]
    whole = {name: fmean(mean[name] for mean in means) for name in names}
    outer = [{name: mean[name] - whole[name] for name in names} for mean in means]
    left = {n: max(0.0, _deviation(outer, n) ** 2 - _deviation(inner, n) ** 2 / runs) for n in names}
    shrink = {n: math.sqrt(left[n]) / (_deviation(outer, n) or 1.0) for n in names}
    return inner, [{name: shrink[name] * each[name] for name in names} for each in outer]


def _deviation(vectors: Sequence[Vector], name: str) -> float:
    return math.sqrt(fmean(vector[name] ** 2 for vector in vectors))


def _drawn(dice: random.Random, vectors: Sequence[Vector]) -> Vector:
    """One of them, blurred by a little of the others' spread: no two draws are equal."""
    at, weights = dice.choice(vectors), [dice.gauss(0, SMOOTH / math.sqrt(len(vectors))) for _ in vectors]
    blur = {name: sum(w * v[name] for w, v in zip(weights, vectors, strict=True)) for name in at}
    return {name: (at[name] + blur[name]) / math.sqrt(1 + SMOOTH**2) for name in at}


def _simulated(
    dice: random.Random,
    pairs: Sequence[Sequence[LoadReport]],
    repeats: int,
    slower: float,
    tries: int,
    *,
    drift: bool = True,
) -> Iterator[tuple[Comparison, ...]]:
    inner, outer = _spread(pairs)
    like = pairs[0][0]
    for _ in range(tries):
        sides = []
        for factor in (1.0, 1.0 + slower):
            test = {name: drift * move for name, move in _drawn(dice, outer).items()}
            runs = []
            for _ in range(repeats):
                each = _drawn(dice, inner)
                sign = {name: -1 if FIGURES[name].metric.worse == "below" else 1 for name in each}
                runs.append({n: 100 * math.exp(test[n] + each[n]) * factor ** sign[n] for n in each})
            sides.append(like.model_copy(update={"runs": tuple(runs)}))
        yield compare(sides[1], sides[0], 1e-9)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("what", choices=("measure", "table"))
    arguments.add_argument("file", type=Path)
    arguments.add_argument("--pairs", type=int, default=10, help="of each kind of load")
    arguments.add_argument("--tries", type=int, default=2000, help="simulated pairs of each kind")
    asked = arguments.parse_args()
    if asked.what == "measure":
        measure(asked.file, asked.pairs)
    else:
        table(asked.file, asked.tries)


if __name__ == "__main__":
    main()
