"""The throughput test as a step: Locust runs as a child process (importing it changes sockets), its report is read back."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict

from delivery.findings import BadInput, Finding, Permanent
from delivery.metrics import LoadReport
from delivery.progress import Progress, report
from delivery.secrets import read_secret
from delivery.spec import SecretRef
from delivery.steps import Step
from delivery.units import Duration, Rate

DEFAULT_USERS = 16
DRAIN_SECONDS = 120


class LoadInput(BaseModel):
    """``profile``: a name under loadtests/profiles, or a profile's content. ``folder`` is where Locust's own output goes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: str
    api_key: SecretRef | None = None
    model: str
    profile: str | dict[str, Any]
    users: int | None = None
    rate: Rate | None = None
    warmup: Duration
    duration: Duration
    repeats: int = 1
    seed: int = 1
    folder: str = "."


def loadtests() -> Path:
    """The folder of the load generator, found without importing it."""
    spec = find_spec("loadtests")
    if spec is None or spec.origin is None:
        raise Permanent(Finding("the load generator is not installed", "there is no package loadtests", "install Model Delivery again"))
    return Path(spec.origin).parent


def profile(named: str | dict[str, Any]) -> dict[str, Any]:
    """A profile's content. BadInput names the profiles that there are, or the field that is missing."""
    if isinstance(named, str):
        file = loadtests() / "profiles" / f"{named}.yaml"
        if not file.exists():
            known = ", ".join(sorted(path.stem for path in file.parent.glob("*.yaml")))
            raise BadInput(
                Finding(
                    f"there is no load profile {named}", f"known: {known}; or a FILE.yaml of that form", "correct gates.throughput.profile"
                )
            )
        return dict(yaml.safe_load(file.read_text(encoding="utf-8")))
    content = dict(named)
    missing = [
        key for key in ("prompt_tokens", "output_tokens") if key not in content and not (key == "prompt_tokens" and "prompts" in content)
    ]
    if missing:
        raise BadInput(Finding(f"the load profile has no {' and no '.join(missing)}", "", "see loadtests/profiles/chat.yaml"))
    return content


def run(given: LoadInput) -> LoadReport:
    """One load test (of ``repeats``, the one with the median TTFT). Permanent when the generator died or asked nothing."""
    runs = [_once(given, number) for number in range(given.repeats)]
    ranked = sorted(runs, key=lambda one: one.latencies["ttft"].p95 if "ttft" in one.latencies else float("inf"))
    return ranked[len(ranked) // 2]


def _once(given: LoadInput, number: int) -> LoadReport:
    folder = Path(given.folder).absolute() / f"load-{number}"
    folder.mkdir(parents=True, exist_ok=True)
    users = given.users or (None if given.rate else DEFAULT_USERS)
    plan = {
        "model": given.model,
        "profile": profile(given.profile),
        "users": users,
        "rate": given.rate.per_second if given.rate else None,
        "warmup": given.warmup.seconds,
        "duration": given.duration.seconds,
        "seed": given.seed + number,
    }
    (folder / "plan.json").write_text(json.dumps(plan), encoding="utf-8")
    target = folder / "report.json"
    target.unlink(missing_ok=True)
    count = str(users or 1)
    command = [sys.executable, "-m", "locust", "-f", str(loadtests() / "user.py"), "--headless", "--only-summary", "--skip-log-setup"]
    command += ["--host", given.url, "--users", count, "--spawn-rate", count]
    environ = os.environ | {
        "MODEL_DELIVERY_PLAN": str(folder / "plan.json"),
        "MODEL_DELIVERY_REPORT": str(target),
        "LOCUST_WORKER_ADDITIONAL_WAIT_BEFORE_READY_AFTER_STOP": "0",
    }
    if given.api_key:
        environ["MODEL_DELIVERY_API_KEY"] = read_secret(given.api_key).reveal()
    _conduct(command, environ, folder, given)
    try:
        measured = LoadReport.model_validate_json(target.read_bytes())
    except (OSError, ValueError) as error:
        last = tuple((folder / "locust.log").read_text(encoding="utf-8", errors="replace").splitlines()[-5:])
        raise Permanent(
            Finding("the load generator ended without a report", type(error).__name__, f"read {folder / 'locust.log'}", last)
        ) from None
    if measured.requests == 0:
        why = f"no request started within {given.duration}"
        raise Permanent(Finding("the load test asked nothing", why, "raise gates.throughput.duration, or users", tuple(measured.errors)))
    return measured


def _conduct(command: list[str], environ: dict[str, str], folder: Path, given: LoadInput) -> None:
    """Run Locust to its end, which is killed here at the latest; it keeps our lock, so that nobody starts a second load beside an orphan."""
    lock = os.environ.get("MODEL_DELIVERY_LOCK_FD")
    length = given.warmup.seconds + given.duration.seconds
    start = time.monotonic()
    with (folder / "locust.log").open("wb") as log:
        child = subprocess.Popen(
            command, env=environ, stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=(int(lock),) if lock else ()
        )
        try:
            while child.poll() is None:
                spent = time.monotonic() - start
                if spent > length + DRAIN_SECONDS:
                    break
                phase = "warm-up" if spent < given.warmup.seconds else "measuring" if spent < length else "draining"
                report(Progress("throughput", phase, done=round(min(spent, length), 1), total=length, unit="s"))
                _wait(child, 1.0)
        finally:
            child.kill()
            child.wait()


def _wait(child: subprocess.Popen[bytes], seconds: float) -> None:
    try:
        child.wait(seconds)
    except subprocess.TimeoutExpired:
        return


STEP = Step("load", LoadInput, LoadReport, run)
