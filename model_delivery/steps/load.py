"""The throughput test as a step: Locust runs as a child process (importing it changes
sockets).

A run that cannot be judged is made once more, longer or with more processes; then it is
what it is, and the verdict refuses it by name. So is at once one whose server was
restarted or replaced: another run would hide that.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import yaml
from pydantic import Field, ValidationError

from model_delivery.base import (
    BadInput,
    Duration,
    Finding,
    Part,
    Permanent,
    Progress,
    Rate,
    SecretRef,
    bearer,
    packaged,
    private_folder,
    problems,
    read_secret,
    report,
)
from model_delivery.measure.asking import BaseAddress
from model_delivery.measure.metrics import TALLY, LoadReport, Tally, measured
from model_delivery.measure.profile import Profile, slice_seconds
from model_delivery.measure.validity import CHANGED, bounds, needed, validity
from model_delivery.places.host.binding import free_port
from model_delivery.steps import Step
from model_delivery.values import Slo

if TYPE_CHECKING:
    from model_delivery.steps.pods import Watch

FOLDER = packaged("loadtests")
DEFAULT_USERS = 16
DRAIN_SECONDS = 120
DRAINS = "waiting for the last answers"
LOOK_SECONDS = 1.0
LONGER = 10.0


class LoadInput(Part):
    """``profile``: a name under loadtests/profiles, or a profile's content.

    ``folder`` is where Locust's own output goes. ``metrics``: the base address of each
    server behind ``url`` (none: it is one server). ``slo`` says what is to be judged, and
    so how much must be measured. ``shared``: others' traffic is expected there, as on a
    canary. ``unless_used``: where somebody uses it, it is not loaded.
    """

    url: BaseAddress
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
    metrics: tuple[BaseAddress, ...] = ()
    slo: Slo = Slo()
    shared: bool = False
    unless_used: bool = Field(False, exclude_if=lambda asked: not asked)


def profile(named: str | dict[str, Any], *lasting: Duration) -> Profile:
    """A profile by name or content.

    BadInput names the profiles that there are, what is wrong in it, or which time of
    ``lasting`` is longer than it allows.
    """
    content: Any = named
    if isinstance(named, str):
        files = {path.stem: path for path in sorted((FOLDER / "profiles").glob("*.yaml"))}
        if named not in files:
            known = ", ".join(files)
            why, fix = f"known: {known}; or a FILE.yaml of that form", "correct gates.throughput.profile, or --profile"
            raise BadInput(Finding("load.no-profile", f"there is no load profile {named}", why, fix))
        content = yaml.safe_load(files[named].read_text(encoding="utf-8"))
    try:
        found = Profile.model_validate(content)
    except ValidationError as error:
        fix = "see loadtests/profiles/chat.yaml"
        wrong = (Finding("load.bad-profile", "the load profile is wrong", text, fix) for text in problems(error))
        raise BadInput(*wrong) from None
    if longer := [each for each in lasting if each.seconds > found.max_seconds]:
        what, why = f"a load of {longer[0]} is longer than its profile allows", f"max_seconds is {found.max_seconds:g}"
        raise BadInput(Finding("load.too-long", what, why, "shorten it, or raise max_seconds in a profile of your own"))
    return found


def run(given: LoadInput) -> LoadReport:
    """The load test, made again once where it could not be judged for a reason that is
    not the server's own.

    Permanent when the generator died or asked nothing, or the server is in use and must
    not be.
    """
    asked = profile(given.profile)
    if given.unless_used:
        _must_stand_idle(given)
    first = _test(given, asked, "load")
    if first.validity.judges("error_rate") or first.validity.kind == CHANGED:
        return first
    again = better(given, asked, first)
    why = f"{first.validity.kind}: {first.validity.why}"
    report(Progress("throughput", f"{why}; once more, {again.duration} with {again.processes} process(es)"))
    return _test(again, asked, "again")


def _must_stand_idle(given: LoadInput) -> None:
    """As each server itself says."""
    from model_delivery.steps.pods import Watch

    urls, fix = given.metrics or (given.url,), "load it when nobody uses it"
    told = [pod.before for pod in Watch(urls, bearer(given.api_key)).pods() if pod.before is not None]
    if any(told):
        raise Permanent(Finding("load.in-use", "somebody uses it", f"{sum(told):g} requests run there", fix))
    if len(told) < len(urls):
        why = f"{len(told)} of {len(urls)} engines tell their figures"
        raise Permanent(Finding("load.in-use", "it cannot be seen whether somebody uses it", why, fix))


def better(given: LoadInput, asked: Profile, measured: LoadReport) -> LoadInput:
    """How to measure what ``measured`` could not show: longer, or with more processes
    where there are cores for them.
    """
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
    from model_delivery.steps.pods import Watch  # its libraries take a tenth of a second

    watch, whole, runs = Watch(given.metrics or (given.url,), bearer(given.api_key)), Tally(), list[LoadReport]()
    plan = _plan(given, asked)
    for number in range(given.repeats):
        folder = Path(given.folder).absolute() / f"{name}-{number}"
        tally = _once(given, plan | {"seed": given.seed + number}, folder, watch)
        runs.append(_report(asked, plan, tally, max(tally.seconds, default=0.0)))
        whole.merge(tally)
    if not whole.complete():
        why = f"{whole.counts['sent']} sent, {whole.counts['ended']} ended, {whole.counts['good']} good, "
        why += f"{whole.errors.total()} failed of {whole.counts['requests']}"
        fix = "this is a fault of Model Delivery: report it with locust.log"
        raise Permanent(Finding("load.miscounted", "the load test has lost count of its requests", why, fix))
    load = _report(asked, plan, whole, sum(each.seconds for each in runs), given.repeats)
    if load.requests == 0:
        why = f"no request started within {given.duration}"
        fix = "raise the duration (gates.throughput.duration, --duration), or ask for shorter answers (profile smoke)"
        nothing = Finding("load.nothing-asked", "the load test asked nothing", why, fix, tuple(load.errors))
        raise Permanent(nothing)
    load = load.model_copy(update={"server": watch.pods(), "runs": tuple(each.figures() for each in runs)})
    return load.model_copy(update={"validity": validity(load, given.slo, shared=given.shared)})


def _plan(given: LoadInput, asked: Profile) -> dict[str, Any]:
    return {
        "model": given.model,
        "profile": asked.model_dump(),
        "users": given.users or (None if given.rate else DEFAULT_USERS),
        "rate": given.rate.per_second if given.rate else None,
        "warmup": given.warmup.seconds,
        "duration": min(given.duration.seconds, asked.max_seconds),
        "processes": given.processes,
        "within": bounds(given.slo),
    }


def _report(asked: Profile, plan: dict[str, Any], tally: Tally, seconds: float, repeats: int = 1) -> LoadReport:
    arrivals = "Poisson" if asked.arrivals == "poisson" else "constant"
    load = f"{plan['users']} users" if plan["users"] else f"{plan['rate']:.4g} requests/s, {arrivals}"
    about = {"model": plan["model"], "load": load, "profile": asked.words()}
    return measured(tally, seconds, slice_seconds(plan["duration"]), repeats, bounded=bool(plan["within"]), **about)


def _once(given: LoadInput, plan: dict[str, Any], folder: Path, watch: Watch) -> Tally:
    private_folder(folder)
    (folder / "plan.json").write_text(json.dumps(plan), encoding="utf-8")
    target, log = folder / "tally.json", folder / "locust.log"
    target.unlink(missing_ok=True)
    processes = plan["processes"]
    users = plan["users"] or processes
    options = {"host": given.url, "users": users, "spawn-rate": users, "plan": folder / "plan.json", "tally": target}
    if processes > 1:
        port = free_port()
        options |= {"processes": processes, "master-bind-host": "127.0.0.1"}
        options |= {"master-bind-port": port, "master-port": port}
    command = [
        sys.executable,
        *["-m", "locust", "--headless", "--only-summary", "--skip-log-setup", "-f"],
        str(FOLDER / "user.py"),
    ]
    command += [f"--{name}={value}" for name, value in options.items()]
    environ = os.environ | {"LOCUST_WORKER_ADDITIONAL_WAIT_BEFORE_READY_AFTER_STOP": "0"}
    if given.api_key:
        environ["MODEL_DELIVERY_API_KEY"] = read_secret(given.api_key).reveal()
    _conduct(command, environ, log, plan, watch)
    try:
        return TALLY.validate_json(target.read_bytes())
    except (OSError, ValueError) as error:
        last = tuple(log.read_text(encoding="utf-8", errors="replace").splitlines()[-5:])
        what, why = "the load generator ended without a tally", type(error).__name__
        raise Permanent(Finding("load.no-tally", what, why, f"read {log}", last)) from None


def _conduct(command: list[str], environ: dict[str, str], output: Path, plan: dict[str, Any], watch: Watch) -> None:
    """Run Locust to its end, which is killed here at the latest.

    It keeps our lock, so that nobody starts a second load beside an orphan.
    """
    lock = os.environ.get("MODEL_DELIVERY_LOCK_FD")
    length, start = plan["warmup"] + plan["duration"], time.monotonic()
    with output.open("wb") as log:
        child = subprocess.Popen(
            command,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=(int(lock),) if lock else (),
        )
        try:
            phase = ""
            while child.poll() is None and (spent := time.monotonic() - start) <= length + DRAIN_SECONDS:
                loads = "warm-up" if spent < plan["warmup"] else "measuring"
                before, phase = phase, loads if spent < length else DRAINS
                if (before, phase) != (DRAINS, DRAINS):
                    report(Progress("throughput", phase, done=round(min(spent, length), 1), total=length, unit="s"))
                with suppress(subprocess.TimeoutExpired):
                    child.wait(LOOK_SECONDS)
                watch.look()
        finally:
            _end(child)


def _end(child: subprocess.Popen[bytes]) -> None:
    """Nothing of it stays: Locust's workers are children of its own."""
    with suppress(psutil.NoSuchProcess):
        for worker in psutil.Process(child.pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                worker.kill()
    child.kill()
    child.wait()


STEP = Step("load", LoadInput, LoadReport, run)
