"""The throughput test as a step: Locust runs as a child process (importing it changes sockets), its tally is read back.

A run that cannot be judged is made once more, longer or with more processes; then it is what it is, and the verdict refuses it by name.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from model_delivery.base.findings import BadInput, Finding, Permanent
from model_delivery.base.progress import Progress, report
from model_delivery.base.secrets import SecretRef, read_secret
from model_delivery.base.units import Duration, Rate
from model_delivery.measure.metrics import LoadReport, Tally, measured
from model_delivery.measure.profile import Profile
from model_delivery.measure.validity import bounds, needed, validity
from model_delivery.places.host.binding import free_port
from model_delivery.steps import Step
from model_delivery.steps.pods import Watch
from model_delivery.values.gates import Slo

DEFAULT_USERS = 16
DRAIN_SECONDS = 120
LOOK_SECONDS = 1.0
LONGER = 10.0


class LoadInput(BaseModel):
    """``profile``: a name under loadtests/profiles, or a profile's content. ``folder`` is where Locust's own output goes.

    ``metrics``: the base address of each server behind ``url`` (none: it is one server). ``slo`` says what is to be judged, and so how much must be
    measured. ``shared``: others' traffic is expected there, as on a canary.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: str
    api_key: SecretRef | None = None
    model: str
    profile: str | dict[str, Any]
    users: int | None = None
    rate: Rate | None = None
    warmup: Duration
    duration: Duration
    repeats: int = Field(1, ge=1)
    processes: int = Field(1, ge=1)
    seed: int = 1
    folder: str = "."
    metrics: tuple[str, ...] = ()
    slo: Slo = Slo()
    shared: bool = False


def loadtests() -> Path:
    """The folder of the load generator, found without importing it."""
    spec = find_spec("model_delivery.loadtests")
    if spec is None or spec.origin is None:
        raise Permanent(
            Finding(
                "todo",
                "the load generator is not installed",
                "there is no package model_delivery.loadtests",
                "install Model Delivery again",
            )
        )
    return Path(spec.origin).parent


def profile(named: str | dict[str, Any]) -> Profile:
    """A profile by name or content. BadInput names the profiles that there are, or what is wrong in it."""
    content: Any = named
    if isinstance(named, str):
        file = loadtests() / "profiles" / f"{named}.yaml"
        if not file.exists():
            known = ", ".join(sorted(path.stem for path in file.parent.glob("*.yaml")))
            raise BadInput(
                Finding(
                    "todo",
                    f"there is no load profile {named}",
                    f"known: {known}; or a FILE.yaml of that form",
                    "correct gates.throughput.profile",
                )
            )
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    try:
        return Profile.model_validate(content)
    except ValidationError as error:
        found = [
            f"{'.'.join(map(str, e['loc']))}: {e['msg']}".lstrip(": ").removeprefix("Value error, ")
            for e in error.errors()
        ]
        raise BadInput(
            *(Finding("todo", "the load profile is wrong", text, "see loadtests/profiles/chat.yaml") for text in found)
        ) from None


def run(given: LoadInput) -> LoadReport:
    """The load test, made again once where it could not be judged. Permanent when the generator died or asked nothing."""
    asked = profile(given.profile)
    first = _test(given, asked, "load")
    if first.validity.valid:
        return first
    again = better(given, asked, first)
    kind, why = first.validity.kind, first.validity.why
    report(Progress("throughput", f"{kind}: {why}; once more, {again.duration} with {again.processes} process(es)"))
    return _test(again, asked, "again")


def better(given: LoadInput, asked: Profile, measured: LoadReport) -> LoadInput:
    """How to measure what ``measured`` could not show: longer, or with more processes where there are cores for them."""
    changes: dict[str, Any] = {}
    least = needed(given.slo) * given.repeats
    if measured.requests < least:
        factor = min(LONGER, max(2.0, 1.5 * least / max(1, measured.requests)))
        changes["duration"] = Duration(f"{min(asked.max_seconds, given.duration.seconds * factor):.3f}s")
    if measured.validity.kind == "client-limited":
        changes["processes"] = max(given.processes, min(2 * given.processes, os.cpu_count() or 1))
    return given.model_copy(update=changes)


def _test(given: LoadInput, asked: Profile, name: str) -> LoadReport:
    """All repeats, their tallies added up."""
    headers = {"Authorization": f"Bearer {read_secret(given.api_key).reveal()}"} if given.api_key else {}
    watch, whole, runs = Watch(given.metrics or (given.url,), headers), Tally(), []
    plans = [_plan(given, asked, number) for number in range(given.repeats)]
    for number, plan in enumerate(plans):
        tally = _once(given, plan, Path(given.folder).absolute() / f"{name}-{number}", watch)
        runs.append(_report(given, asked, plan, tally, max(tally.seconds, default=0.0)))
        whole.merge(tally)
    together = _report(given, asked, plans[0], whole, sum(one.seconds for one in runs), given.repeats)
    if together.requests == 0:
        why = f"no request started within {given.duration}"
        raise Permanent(
            Finding(
                "todo",
                "the load test asked nothing",
                why,
                "raise gates.throughput.duration, or users",
                tuple(together.errors),
            )
        )
    done = together.model_copy(update={"server": watch.told(), "runs": tuple(one.figures() for one in runs)})
    return done.model_copy(update={"validity": validity(done, given.slo, shared=given.shared)})


def _plan(given: LoadInput, asked: Profile, number: int) -> dict[str, Any]:
    return {
        "model": given.model,
        "profile": asked.model_dump(),
        "users": given.users or (None if given.rate else DEFAULT_USERS),
        "rate": given.rate.per_second if given.rate else None,
        "warmup": given.warmup.seconds,
        "duration": min(given.duration.seconds, asked.max_seconds),
        "seed": given.seed + number,
        "processes": given.processes,
        "within": bounds(given.slo),
    }


def _report(
    given: LoadInput, asked: Profile, plan: dict[str, Any], tally: Tally, seconds: float, repeats: int = 1
) -> LoadReport:
    load = (
        f"{plan['users']} users"
        if plan["users"]
        else f"{plan['rate']:.4g} requests/s, {'Poisson' if asked.arrivals == 'poisson' else 'constant'}"
    )
    step = max(1.0, -(-plan["duration"] // 120))
    return measured(
        tally,
        model=given.model,
        load=load,
        profile=asked.said(),
        seconds=seconds,
        step=step,
        repeats=repeats,
        bounded=bool(plan["within"]),
    )


def _once(given: LoadInput, plan: dict[str, Any], folder: Path, watch: Watch) -> Tally:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "plan.json").write_text(json.dumps(plan), encoding="utf-8")
    target = folder / "tally.json"
    target.unlink(missing_ok=True)
    users = str(plan["users"] or plan["processes"])
    command = [
        sys.executable,
        "-m",
        "locust",
        "-f",
        str(loadtests() / "user.py"),
        "--headless",
        "--only-summary",
        "--skip-log-setup",
    ]
    command += [
        "--host",
        given.url,
        "--users",
        users,
        "--spawn-rate",
        users,
        "--plan",
        str(folder / "plan.json"),
        "--tally",
        str(target),
    ]
    if plan["processes"] > 1:
        port = str(free_port())
        command += [
            "--processes",
            str(plan["processes"]),
            "--master-bind-host",
            "127.0.0.1",
            "--master-bind-port",
            port,
            "--master-port",
            port,
        ]
    environ = os.environ | {"LOCUST_WORKER_ADDITIONAL_WAIT_BEFORE_READY_AFTER_STOP": "0"}
    if given.api_key:
        environ["MODEL_DELIVERY_API_KEY"] = read_secret(given.api_key).reveal()
    _conduct(command, environ, folder, plan, watch)
    try:
        return Tally(json.loads(target.read_bytes()))
    except (OSError, ValueError) as error:
        last = tuple((folder / "locust.log").read_text(encoding="utf-8", errors="replace").splitlines()[-5:])
        raise Permanent(
            Finding(
                "todo",
                "the load generator ended without a tally",
                type(error).__name__,
                f"read {folder / 'locust.log'}",
                last,
            )
        ) from None


def _conduct(command: list[str], environ: dict[str, str], folder: Path, plan: dict[str, Any], watch: Watch) -> None:
    """Run Locust to its end, which is killed here at the latest; it keeps our lock, so that nobody starts a second load beside an orphan."""
    lock = os.environ.get("MODEL_DELIVERY_LOCK_FD")
    length = plan["warmup"] + plan["duration"]
    start = time.monotonic()
    with (folder / "locust.log").open("wb") as log:
        child = subprocess.Popen(
            command,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=(int(lock),) if lock else (),
        )
        try:
            while child.poll() is None:
                spent = time.monotonic() - start
                if spent > length + DRAIN_SECONDS:
                    break
                phase = "warm-up" if spent < plan["warmup"] else "measuring" if spent < length else "draining"
                report(Progress("throughput", phase, done=round(min(spent, length), 1), total=length, unit="s"))
                _wait(child, LOOK_SECONDS)
                watch.look()
        finally:
            _end(child)


def _end(child: subprocess.Popen[bytes]) -> None:
    """Nothing of it stays: Locust's workers are children of its own."""
    with suppress(psutil.NoSuchProcess):
        for one in psutil.Process(child.pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                one.kill()
    child.kill()
    child.wait()


def _wait(child: subprocess.Popen[bytes], seconds: float) -> None:
    try:
        child.wait(seconds)
    except subprocess.TimeoutExpired:
        return


STEP = Step("load", LoadInput, LoadReport, run)
