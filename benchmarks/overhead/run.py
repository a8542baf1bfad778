"""What Model Delivery and Prefect cost beside the engine and the load test, with the
tests' stand-in engine; prints a table.

    PYTHONPATH=. .venv/bin/python benchmarks/overhead/run.py [--runs 5] [--start 60]
        [--deliveries 200] [--due 50] [--at-once 0] [--postgresql]

(a) an unchanged redeploy; (b) a first delivery whose engine takes ``--start`` seconds and
whose load test is the default one; (c) ``--due`` of ``--deliveries`` deployments have a
schedule for the same minute, and nothing has changed. In (c) each service has a home of
its own, as if on a host of its own: a host binds one CPU at least to each engine.
``--at-once`` is the work pool's limit, 0: none.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import WorkPoolUpdate
from prefect.client.schemas.filters import FlowRunFilter
from prefect.client.schemas.objects import FlowRun

from model_delivery.flows.deliver import deliver
from model_delivery.flows.registration import Wanted, propose, register
from model_delivery.places.host.place import Host
from model_delivery.spec import DeliverySpec, parse_spec
from model_delivery.verbs.status import down
from tests.parts import postgresql
from tests.parts import prefect_server as parts
from tests.parts.ports import own_port
from tests.parts.timing_engine import engine_folder
from tests.parts.tiny_model import tiny_model

COMMAND = str(Path(sys.executable).with_name("deliver"))
ANSWER_SECONDS = 300.0
WARMUP, DURATION = 10, 60


@dataclass
class Bench:
    folder: Path
    server: parts.Server
    client: SyncPrefectClient
    processes: dict[str, psutil.Process]
    memory: dict[str, float] = field(default_factory=dict)

    def home(self, name: str) -> Path:
        return self.folder / "homes" / name

    def spec(self, name: str, *args: str, **more: Any) -> DeliverySpec:
        untested = {"gates": {"smoke": None, "throughput": None}}
        return parse_spec(
            {
                "apiVersion": "model-delivery/v1",
                "name": name,
                "model": {"source": "local", "path": str(self.folder / "model")},
                "serving": {"args": ["--ttft", "50", "--itl", "10", *args], "startup_timeout": "10m"},
                "target": {"kind": "process", "engine": str(self.folder / "engine"), "port": own_port()},
                "rollout": {"strategy": "blue-green", "watch": "0s", "standby": "0s"},
            }
            | untested
            | more
        )

    def registered(self, specs: list[DeliverySpec]) -> list[str]:
        """Their deployments' ids, each with its own home."""
        proposals = propose(specs, Wanted(parts.POOL)).proposals
        for proposal in proposals:
            proposal.fields["job_variables"]["env"]["MODEL_DELIVERY_HOME"] = str(self.home(proposal.name))
        return [register(proposal) for proposal in proposals]

    def ran(self, made: str) -> FlowRun:
        return parts.wait_for(self.client, self.client.create_flow_run_from_deployment(made), 600)

    @contextmanager
    def weighed(self) -> Iterator[None]:
        """The most memory of each process, in MB, for the length of the block."""
        done = threading.Event()

        def weigh() -> None:
            while not done.wait(0.5):
                for name, process in self.processes.items():
                    self.memory[name] = max(self.memory.get(name, 0), process.memory_info().rss / 1e6)

        thread = threading.Thread(target=weigh)
        thread.start()
        yield
        done.set()
        thread.join()


@contextmanager
def bench(on_postgresql: bool) -> Iterator[Bench]:
    with tempfile.TemporaryDirectory() as made, ExitStack() as stack:
        folder, settings = Path(made), {}
        tiny_model(folder / "model")
        engine_folder(folder / "engine")
        if on_postgresql:
            programs = postgresql.programs()
            if programs is None:
                raise SystemExit("Debian's package postgresql is not installed")
            database = stack.enter_context(postgresql.running_postgresql(programs))
            settings["PREFECT_API_DATABASE_CONNECTION_URL"] = database.url
        mortal = stack.enter_context(parts.running_mortal(folder / "prefect", settings))
        worker = stack.enter_context(parts.running_worker(mortal.server, {"PREFECT_WORKER_QUERY_SECONDS": "5"}))
        client = stack.enter_context(parts.client_of(mortal.server))
        parts.wait_for_pool(client)
        found = Bench(folder, mortal.server, client, {"server": mortal.process, "worker": psutil.Process(worker)})
        try:
            yield found
        finally:
            for home in sorted((folder / "homes").glob("*")):
                down(Host(home), home.name)


def row(*cells: object) -> None:
    print("| " + " | ".join(map(str, cells)) + f" | {os.getloadavg()[0]:.1f} |", flush=True)


def unchanged(of: Bench, runs: int) -> None:
    """(a)"""
    spec = of.spec("same", gates={"smoke": {}, "throughput": None})
    (made,) = of.registered([spec])
    of.ran(made)
    found = [of.ran(made) for _ in range(runs)]
    if wrong := [run.state for run in found if "unchanged" not in str(run.state)]:
        raise SystemExit(f"not unchanged: {wrong}")
    own = [run.total_run_time.total_seconds() for run in found]
    whole = [(run.end_time - run.created).total_seconds() for run in found if run.end_time and run.created]
    file = of.folder / "same.json"
    file.write_text(json.dumps(spec.model_dump(mode="json")))
    home = os.environ | {"MODEL_DELIVERY_HOME": str(of.home("same"))}
    words = [COMMAND, "up", str(file)]
    alone = [timed(lambda: subprocess.run(words, env=home, check=True, capture_output=True)) for _ in range(runs)]
    say = lambda seconds: f"{statistics.median(seconds):.1f} s (at most {max(seconds):.1f})"  # noqa: E731
    row("(a) unchanged redeploy: the flow, from Running to Completed", say(own), "≤ 5 s", verdict(max(own) <= 5))
    row("(a) with Prefect's worker, a new process and its imports", say(whole), "", "")
    row("(a) `deliver up` without a server, from start to exit", say(alone), "≤ 5 s", verdict(max(alone) <= 5))


def first(of: Bench, start: int) -> None:
    """(b)"""
    load = {"warmup": f"{WARMUP}s", "duration": f"{DURATION}s", "slo": {"error_rate_max": 0}}
    spec = of.spec("first", "--start-delay", str(1000 * start), gates={"smoke": {}, "throughput": load})
    (made,) = of.registered([spec])
    run = of.ran(made)
    if run.state is None or not run.state.is_completed():
        raise SystemExit(f"the delivery failed: {run.state}")
    tasks = {name: task.total_run_time.total_seconds() for name, task in parts.tasks_of(of.client, run).items()}
    whole = run.total_run_time.total_seconds()
    own = whole - start - WARMUP - DURATION
    share = f"{own:.1f} s of {whole:.1f} s: {100 * own / whole:.1f} %"
    row(
        f"(b) first delivery beyond {start} s of start and {WARMUP} + {DURATION} s of load",
        share,
        "≤ 10 %",
        verdict(own <= 0.1 * whole),
    )
    least = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in sorted(tasks.items(), key=lambda one: -one[1])[:6])
    row("(b) its longest steps", least, "", "")


def due_at_once(of: Bench, deliveries: int, due: int, at_once: int) -> None:
    """(c)"""
    if at_once:
        of.client.update_work_pool(parts.POOL, WorkPoolUpdate(concurrency_limit=at_once))
    specs = [of.spec(f"many-{n:03}") for n in range(deliveries)]
    for spec in specs[:due]:
        os.environ["MODEL_DELIVERY_HOME"] = str(of.home(spec.name))
        deliver.fn(spec)
    spent = timed(lambda: of.registered(specs))
    row(f"(c) {deliveries} deliveries registered, one after another", f"{spent:.0f} s", "", "")
    minute = datetime.now(UTC).replace(second=0, microsecond=0) + timedelta(
        minutes=1 if datetime.now(UTC).second < 20 else 2
    )
    cron = {"cron": f"{minute.minute} {minute.hour} * * *", "timezone": "UTC"}
    of.registered([parse_spec(spec.model_dump(mode="json") | {"schedule": cron}) for spec in specs[:due]])
    with of.weighed():
        ended = all_ended(of, due, minute)
    late = sorted((run.end_time - minute).total_seconds() for run in ended if run.end_time)
    states = sorted({f"{run.state.name}: {str(run.state.message).partition(' ')[0]}" for run in ended if run.state})
    last = f"{late[-1]:.0f} s" if len(late) == due else f"{len(late)} of {due} within {ANSWER_SECONDS:.0f} s"
    limit = f"{at_once} runs at once" if at_once else "no limit of the pool"
    good = len(late) == due and late[-1] <= ANSWER_SECONDS and all("unchanged" in state for state in states)
    row(
        f"(c) {due} of {deliveries} due in one minute, {limit}: the last is answered after",
        last,
        "≤ 300 s",
        verdict(good),
    )
    if late:
        row("(c) half of them, and how they ended", f"{statistics.median(late):.0f} s; {', '.join(states)}", "", "")
    row("(c) memory at most", ", ".join(f"{name} {megabytes:.0f} MB" for name, megabytes in of.memory.items()), "", "")


def all_ended(of: Bench, due: int, minute: datetime) -> list[FlowRun]:
    """The runs that were due then, once all have ended; those that have, when the time is
    over.
    """
    window = FlowRunFilter.model_validate(
        {"expected_start_time": {"after_": minute - timedelta(seconds=1), "before_": minute + timedelta(seconds=59)}}
    )
    deadline = minute + timedelta(seconds=ANSWER_SECONDS)
    while True:
        found = of.client.read_flow_runs(flow_run_filter=window)
        ended = [run for run in found if run.state is not None and run.state.is_final()]
        if len(ended) >= due or datetime.now(UTC) > deadline:
            return ended
        time.sleep(2)


def timed(act: Callable[[], object]) -> float:
    began = time.monotonic()
    act()
    return time.monotonic() - began


def verdict(good: bool) -> str:
    return "held" if good else "**missed**"


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--parts", default="abc", help="which of a, b, c")
    arguments.add_argument("--runs", type=int, default=5)
    arguments.add_argument("--start", type=int, default=60)
    arguments.add_argument("--deliveries", type=int, default=200)
    arguments.add_argument("--due", type=int, default=50)
    arguments.add_argument("--at-once", type=int, default=0)
    arguments.add_argument("--postgresql", action="store_true")
    asked = arguments.parse_args()
    database = "PostgreSQL" if asked.postgresql else "SQLite"
    print(f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, {os.cpu_count()} cores, Prefect's server on {database}\n")
    print("| | measured | bound | | load average |\n|---|---|---|---|--:|")
    with bench(asked.postgresql) as of:
        if "a" in asked.parts:
            unchanged(of, asked.runs)
        if "b" in asked.parts:
            first(of, asked.start)
        if "c" in asked.parts:
            due_at_once(of, asked.deliveries, asked.due, asked.at_once)


if __name__ == "__main__":
    main()
