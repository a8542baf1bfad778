"""The whole main job on this machine: a real Prefect server and worker, real vLLM on the CPU, a real small chat model.

Everything it makes is under .demo/ (and the offline model under .cache/). It ends with exit code 0 only after a passed verdict.
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
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import UUID

import httpx
import psutil
from huggingface_hub.constants import ENDPOINT as HUB
from rich.console import Console
from rich.markdown import Markdown

from delivery import service
from delivery.engines import load_engine, make_environment
from delivery.findings import Trouble
from delivery.places.host import Host
from delivery.progress import Progress, sink
from scripts import local_prefect
from scripts.following import follow, last_verdict, wait_for_pool

ROOT = Path(__file__).parent.parent
DEMO = ROOT / ".demo"
STATE = DEMO / "state"
PIDS = DEMO / "pids.json"
NAME = "smollm2"
HUB_SECONDS = 3.0
QUESTION = "What is the capital of France?"
BEGAN = time.monotonic()


class Failed(Exception):
    """The demo cannot go on; the message says why."""


def say(text: str) -> None:
    print(f"[{time.monotonic() - BEGAN:4.0f} s] {text}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/demo", description=__doc__)
    parser.add_argument("--keep", action="store_true", help="leave service, worker and server up, and return")
    parser.add_argument("--stop", action="store_true", help="stop what --keep left up")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    os.environ["MODEL_DELIVERY_HOME"] = str(STATE)
    stop_prefect()
    if options.stop:
        stop_service()
        return 0
    keep = False
    try:
        server = deliver_it()
        keep = options.keep
        if keep:
            say(f"left up: {server.ui} and the service; stop both with scripts/demo --stop")
        elif sys.stdin.isatty() and sys.stdout.isatty():
            say("up until Ctrl-C")
            signal.pause()
    except KeyboardInterrupt:
        say("interrupted")
        return 0 if keep_verdict() else 130
    except (Failed, Trouble, RuntimeError) as error:
        say(f"FAILED: {error}")
        return 1
    finally:
        if not keep:
            stop_prefect()
            stop_service()
    return 0
