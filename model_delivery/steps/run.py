"""``python -m model_delivery.steps.run NAME INPUT_FILE OUTPUT_FILE``: one step as a
process; an output of ``-`` is standard output.

The output is JSON lines: ``{"progress": {…}}`` any number of times, then exactly one of
``{"result": TEXT, "length": characters of TEXT, "sha256": of its UTF-8}`` (TEXT is the
output's JSON) or ``{"findings": [{…}, …], "kind": retryable | permanent | bad-input |
refused | gate}``. The exit code is 0 for a result.

Standard output is anybody's: there each of our lines begins with
``$MODEL_DELIVERY_MARK``, which is the pod's own, and of which nothing that the step asks
or runs is told; the first one comes before anything is asked.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, TextIO

from pydantic import ValidationError

from model_delivery.base import (
    BadInput,
    Finding,
    GateFailed,
    Permanent,
    Progress,
    Refused,
    Retryable,
    Trouble,
    problems,
    report,
    scrub,
    sink,
)
from model_delivery.base.findings import UNKNOWN
from model_delivery.base.home import disk_full
from model_delivery.steps import Step

MARK = "MODEL_DELIVERY_MARK"
STEPS = ("fetch", "verify", "smoke", "load", "gc")
KINDS: dict[str, type[Trouble]] = {
    "retryable": Retryable,
    "bad-input": BadInput,
    "refused": Refused,
    "gate": GateFailed,
    "permanent": Permanent,
}


OTHER_INPUT = re.compile(r"ValidationError: \d+ validation errors? for \w+Input\n(.*)", re.DOTALL)


def find(name: str) -> Step[Any, Any]:
    """The step called ``name``; only its own module is imported. KeyError for another
    name.
    """
    if name not in STEPS:
        raise KeyError(name)
    step: Step[Any, Any] = import_module(f"model_delivery.steps.{name}").STEP
    return step


def say(out: TextIO, line: dict[str, Any], mark: str = "") -> None:
    out.write(mark + json.dumps(line, separators=(",", ":")) + "\n")
    out.flush()


def outcome(name: str, text: str, out: TextIO, mark: str = "") -> int:
    """Run the step on its input's JSON ``text`` and write its lines to ``out``; returns
    the exit code.
    """
    tell = partial(say, out, mark=mark)
    try:
        step = find(name)
        given = _given(step, text)
        with sink(lambda p: tell({"progress": {k: v for k, v in asdict(p).items() if v is not None}})):
            result = step.run(given).model_dump_json()
        result = scrub(result)
        step.output.model_validate_json(result)  # what JSON cannot say (NaN) is told here, not by who reads it
    except Trouble as trouble:
        kind = next(k for k, v in KINDS.items() if isinstance(trouble, v))
        return _failed(tell, kind, trouble)
    except Exception as error:  # the last frame of a child process: whatever it is must reach the parent as a finding
        if full := disk_full(error):
            return _failed(tell, "permanent", Permanent(full))
        sys.stderr.write(json.dumps(scrub(traceback.format_exc())) + "\n")  # one line, whatever the error quotes
        what, why = f"the {name} step broke", f"{type(error).__name__}: {error}"
        fix = "this is a fault of Model Delivery: report it with the step's log"
        return _failed(tell, "permanent", Permanent(Finding("step.broke", what, why, fix)))
    tell(_sealed(result))
    return 0


def _given(step: Step[Any, Any], text: str) -> Any:
    """Permanent where the run is of another version, and asks what is not known here."""
    try:
        return step.input.model_validate_json(text)
    except ValidationError as error:
        raise Permanent(_other_version(step.name, "; ".join(problems(error)[:3]))) from None


def _other_version(name: str, why: str) -> Finding:
    what = f"the image of the steps cannot run the {name} step of this version"
    fix = "build and push the image of this version (Containerfile), name it in runner.image, then `up`"
    return Finding("step.older-image", what, f"it is of another version: {why}", fix)


def _plainly(name: str, ended: Trouble) -> Trouble:
    """An older image tells as its own fault that it does not know a step, or a field."""
    match ended.findings:
        case [Finding(code=code, why=why)] if code in ("step.broke", UNKNOWN):
            if found := OTHER_INPUT.match(why):
                fields = [line for line in found[1].splitlines() if line and not line.startswith(" ")]
                return Permanent(_other_version(name, f"it cannot read {', '.join(fields[:3])}"))
            if why == f"KeyError: {name!r}":
                return Permanent(_other_version(name, "it knows no such step"))
    return ended


def _sealed(text: str) -> dict[str, Any]:
    return {"result": text, "length": len(text), "sha256": hashlib.sha256(text.encode()).hexdigest()}


def _failed(tell: Callable[[dict[str, Any]], None], kind: str, trouble: Trouble) -> int:
    tell({"findings": [f.to_json() for f in trouble.findings], "kind": kind})
    return trouble.exit_code


def read(name: str, lines: Iterable[bytes], mark: str = "") -> str:
    """The other side: the result's JSON text of the step ``name``; progress is passed on.
    Where a line begins with ``mark``, no other counts; an older image knows of none.

    Raises the step's own findings as the Trouble they were, and Retryable when the result
    is missing, cut or changed on the way.
    """
    prefix, marked, ending = mark.encode(), False, None
    for line in lines:
        own = line.startswith(prefix)
        if own and not marked:
            marked, ending = True, None
        if own or not marked:
            ending = ending or _heard(line.removeprefix(prefix))
        if own and ending:
            break
    if isinstance(ending, str):
        return ending
    what, why = f"the {name} step ended without a result", "its process was killed or its output was cut"
    if ending:
        raise _plainly(name, ending)
    raise Retryable(Finding("step.no-result", what, why, "run again; its log says more"))


def _heard(line: bytes) -> str | Trouble | None:
    """How the step ended, if ``line`` says so; progress is passed on. It may be of
    anybody's making.
    """
    with suppress(ValueError, RecursionError, TypeError, LookupError, AttributeError):
        match json.loads(line):
            case {"progress": progress}:
                report(Progress(**progress))
            case {"findings": [_, *_] as findings, "kind": kind}:
                return KINDS[kind](*map(Finding.from_json, findings))
            case {"result": str(text)} as news if news | _sealed(text) == news:
                return text
    return None


def main() -> int:
    name, given, output = sys.argv[1:]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    text = Path(given).read_text(encoding="utf-8")
    if output == "-":
        mark = os.environ.pop(MARK, "")
        with os.fdopen(os.dup(1), "w", encoding="utf-8") as out:
            os.dup2(2, 1)  # what the step runs may write there
            say(out, {"progress": {"step": name, "note": "at work"}}, mark)
            return outcome(name, text, out, mark)
    with Path(output).open("a", encoding="utf-8") as out:
        return outcome(name, text, out)


if __name__ == "__main__":
    sys.exit(main())
