"""What is wrong with one container of a pod: the engine's or step's own, one that runs
before it, one beside it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from model_delivery.base import Finding, short
from model_delivery.diagnosis.engine_log import diagnose
from model_delivery.diagnosis.engine_signs import Sign
from model_delivery.diagnosis.images import PULLING, unpulled
from model_delivery.diagnosis.machine_signs import WRONG_PLATFORM
from model_delivery.values import ENGINES, Failed, InProgress

Object = Mapping[str, Any]
STARTS = 3  # of a container whose own error may pass
STEP, PROOF = "step", "image"  # the second one's work is that its image is pulled
UNMADE = ("CreateContainerConfigError", "CreateContainerError", "RunContainerError", "StartError")
OOM = "OOMKilled"
KILLED = (0, 137, 143)  # how a container ends that a probe's failure has ended
PROBE = re.compile(r"failed (startup|liveness) probe")
UNSTARTED = (  # the first that is found counts
    Sign(
        "pod.driver-too-old",
        r"unsatisfied condition: (cuda[^,]*)",
        r"the node's GPU driver is too old for the image: it wants \1",
        "update the driver, or name an image for an older CUDA in target.image",
    ),
    Sign(
        "pod.no-such-command",
        r'exec: "([^"]*)": (?:executable file not found|stat .*no such file)',
        r"the image has no command \1",
        "correct target.image (of a step: runner.image)",
    ),
    Sign(
        "image.no-user",
        r"runAsNonRoot and image (?:will run as root|has non-numeric user)",
        "the image would run as root, or says by no number as whom",
        "name one in serving.pod.security_context (runAsUser; of a step: runner.pod.security_context)",
    ),
    WRONG_PLATFORM,
)
SECRET = re.compile(r'secret "|configmap "|non-existent (?:secret|config)|couldn\'t find key', re.IGNORECASE)


def judged(pod: Object, status: Object, events: Sequence[Object]) -> InProgress | Failed | None:
    """``status``: the container's; ``events``: the pod's. None: nothing is wrong with
    it.
    """
    waiting, ended = status["state"].get("waiting", {}), _ended(status)
    reason = waiting.get("reason", "")
    if reason in PULLING:
        pulls = [e["message"] for e in events if "pull" in e.get("message", "") and e.get("reason") != "Pulled"]
        return unpulled(status, waiting, pulls)
    if reason == "InvalidImageName":
        what = f"the image's name {status['image']} is not valid"
        return Failed(Finding("image.invalid-name", what, waiting.get("message", ""), "correct target.image"))
    if status["name"] == PROOF and ended.get("reason") == "StartError":
        return None  # an image without that command: it was pulled
    if reason in UNMADE or ended.get("reason") in UNMADE:
        return _unmade(status["name"], waiting if reason in UNMADE else ended)
    if not ended or status.get("ready") or _done(status, ended):
        return None
    if ended.get("reason") == OOM:
        return Failed(Finding("engine.out-of-memory", *_oom_of(pod, status["name"])))
    if status["name"] in ENGINES:
        return _crashed(pod, status, ended, events)
    return _other_crashed(status, ended)


def _ended(status: Object) -> Object:
    """How it ended last; of one that runs, how it did before."""
    ended: Object = status["state"].get("terminated") or status.get("lastState", {}).get("terminated") or {}
    return ended


def _done(status: Object, ended: Object) -> bool:
    """A step's part, or one before the engine, that has done its work."""
    return status["name"] not in ENGINES and (ended.get("exitCode") == 0 or "running" in status["state"])


def _unmade(name: str, told: Object) -> Failed:
    message, reason = told.get("message", ""), told.get("reason", "")
    evidence = (f"container {name}: {reason}",)
    for sign in UNSTARTED:
        if match := re.search(sign.pattern, message):
            return Failed(Finding(sign.code, match.expand(sign.what), short(message, 400), sign.fix, evidence))
    fix = "make what the message names, or correct the spec (serving.env, serving.api_key, serving.pod)"
    what = f"the container {name} cannot be started"
    fix = fix if SECRET.search(message) else "see what the message names"
    return Failed(Finding("pod.container-unmade", what, short(message, 400) or reason, fix, evidence))


def _oom_of(pod: Object, name: str) -> tuple[str, str, str]:
    if name == STEP:
        return oom(f"the step's container {name}", "runner.resources")
    own: Object = next((spec for spec in pod["spec"]["containers"] if spec["name"] == name), {})
    limit = own.get("resources", {}).get("limits", {}).get("memory", "")
    if name in ENGINES:
        return oom("the engine", "serving.resources.limits.memory", limit)
    what, why, _ = oom(f"the container {name}", "", limit)
    return what, why, f"raise the memory limit of {name}, where it is set"


def oom(what: str, where: str, limit: str = "") -> tuple[str, str, str]:
    """What, why and fix. ``limit``: as the pod has it, which may be another's (a
    LimitRange's, a default of KServe's) where the spec has none.
    """
    why = f"{OOM}, exit code 137" + (f"; its limit is {limit}" if limit else "")
    fix = f"raise {where}, or use a smaller model, dtype or --max-model-len"
    return f"{what} was killed: it used more memory than its limit", why, fix


def _crashed(pod: Object, status: Object, ended: Object, events: Sequence[Object]) -> InProgress | Failed:
    log, code, starts = pod.get("log") or ended.get("message", ""), ended.get("exitCode"), status.get("restartCount", 0)
    if code in KILLED and (probe := _probe(events)) is not None:
        return probe
    failed = diagnose(log, code, f"pod {pod['metadata']['name']}: exit code {code}, {starts} restarts")
    if failed.retryable and starts < STARTS:
        return InProgress(f"{failed.finding.what}; it is started again")
    return failed


def _probe(events: Sequence[Object]) -> Failed | None:
    """The kubelet ended it itself, because a probe failed, or its hook."""
    if hooks := [event["message"] for event in events if event.get("reason") == "FailedPostStartHook"]:
        what, fix = "the engine was killed: its hook could not be run", "leave out serving.readahead, which needs sh"
        return Failed(Finding("engine.hook-failed", what, hooks[-1], fix))
    killing = [match[1] for event in events if (match := PROBE.search(event.get("message", "")))]
    if not killing:
        return None
    why = next((e["message"] for e in reversed(events) if e.get("reason") == "Unhealthy"), "")
    if killing[-1] == "startup":
        what, fix = "the engine was killed: it was not healthy in time", "raise serving.startup_timeout"
    else:
        what, fix = "the engine was killed: it had stopped answering its liveness probe", "read `deliver logs`"
    return Failed(Finding("engine.probe-failed", what, why, fix))


def _other_crashed(status: Object, ended: Object) -> InProgress | Failed:
    name, starts = status["name"], status.get("restartCount", 0)
    what = f"the container {name} ends again and again" if starts else f"the container {name} has ended"
    told = ended.get("message") or ended.get("reason") or "it says nothing"
    why = f"exit code {ended.get('exitCode')}, {starts} restarts: {short(str(told), -300)}"
    fix = f"read its log (kubectl logs, container {name}); it is none of the spec's own"
    if starts < STARTS:
        return InProgress(f"{what}: {why}", fix)
    return Failed(Finding("pod.container-crashed", what, why, fix))
