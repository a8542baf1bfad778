"""Runs in a process of their own, which kill themselves with SIGKILL before or after any
effect: forked from a clean server, since the test has threads.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Any, Literal

from model_delivery.base import Trouble
from model_delivery.values import Ref

Event = tuple[str, str, str]
MODULES = [
    "model_delivery.flows.deliver",
    "model_delivery.flows.rollback",
    "model_delivery.verbs.adopt",
    "model_delivery.places.cluster.place",
    "model_delivery.targets.deployment",
    "model_delivery.targets.kserve",
    "model_delivery.targets.t9k",
    "tests.cluster.control.killed",
]
PASSED = ("KUBECONFIG", "HF_ENDPOINT", "MODEL_DELIVERY_HOME", "PATH", "SSL_CERT_FILE")


@dataclass(frozen=True)
class Result:
    """``code`` None: killed. ``events``: the effects that it began or finished."""

    code: int | None
    said: Any
    events: tuple[Event, ...]


def run(
    flow: Literal["deliver", "rollback", "adopt"],
    arguments: dict[str, Any],
    kill_at: int | Event | None = None,
    occurrence: int = 1,
) -> Result:
    """``arguments`` are the flow's, as JSON; at its effect ``kill_at`` the run kills
    itself: its number (before and after count apart), or what it is.

    An ``Event`` is ("before" or "after", "put" or "delete", a pattern of ``KIND/NAME``);
    ``occurrence``: at which one of several.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(MODULES)
    read, write = os.pipe()
    environ = {name: os.environ[name] for name in PASSED if name in os.environ}
    with os.fdopen(read, "rb") as pipe, os.fdopen(write, "wb") as end:
        child = context.Process(
            target=_act, args=(flow, json.dumps(arguments), kill_at, occurrence, environ, _Handed(end.fileno()))
        )
        child.start()
        end.close()
        lines = [json.loads(line) for line in pipe.read().splitlines()]
        child.join()
    events = tuple((e[0], e[1], e[2]) for e in lines if isinstance(e, list))
    said = next((line for line in lines if isinstance(line, dict)), None)
    code = child.exitcode
    return Result(None if code == -signal.SIGKILL else code, said, events)


class _Handed:
    """A descriptor that is duplicated for the child."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __reduce__(self) -> Any:
        from multiprocessing.reduction import DupFd

        return _opened, (DupFd(self.number),)


def _opened(handed: Any) -> int:
    return int(handed.detach())


def _act(
    flow: str, arguments: str, kill_at: int | Event | None, occurrence: int, environ: dict[str, str], write: int
) -> None:
    from model_delivery.places.guarded import observed

    os.environ.update(environ)
    count = met = 0

    def observer(when: Literal["before", "after"], verb: str, ref: Ref) -> None:
        nonlocal count, met
        os.write(write, json.dumps([when, verb, str(ref)]).encode() + b"\n")
        met += isinstance(kill_at, tuple) and (when, verb) == kill_at[:2] and fnmatch(str(ref), kill_at[2])
        if count == kill_at or met == occurrence:
            os.kill(os.getpid(), signal.SIGKILL)
        count += 1

    given = json.loads(arguments)
    try:
        with observed(observer):
            said = _do(flow, given)
        code = 0
    except Trouble as trouble:
        said, code = {"trouble": trouble.text}, trouble.exit_code
    except BaseException as error:
        said, code = {"error": repr(error)}, 99
    os.write(write, json.dumps(said).encode() + b"\n")
    os._exit(code)


def _do(flow: str, given: dict[str, Any]) -> Any:
    from model_delivery.flows.deliver import deliver
    from model_delivery.flows.rollback import rollback
    from model_delivery.places.opening import Location
    from model_delivery.spec import parse_spec
    from model_delivery.verbs import adopt as adopting

    if flow == "rollback":
        return rollback.fn(given["name"], given["to"], where=Location.model_validate(given["where"]))
    spec = parse_spec(given["spec"])
    if flow == "deliver":
        return deliver.fn(spec)
    place = Location.of(spec.target.key()).open()
    found = adopting.look(place, spec, given["named"])
    adopting.take(place, spec, found)
    return {"release": found.release}
