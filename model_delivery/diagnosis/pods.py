"""Why a pod is not ready: pure, of the API's own objects. Waiting is for what may yet
come; a Failed names cause and remedy.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from model_delivery.base import Finding, Size
from model_delivery.diagnosis.engine_log import diagnose, last_line
from model_delivery.diagnosis.engine_signs import Sign
from model_delivery.values import ENGINES, Ended, Failed, InProgress, Started, StepState

Object = Mapping[str, Any]
Beside = Mapping[str, Sequence[Object]]  # events (warnings) and, where they may be seen, nodes, by their kind
Pending = InProgress | Failed
STARTS = 3  # of an engine whose own error may pass
PULLING = ("ErrImagePull", "ImagePullBackOff", "ImageInspectError", "RegistryUnavailable")
UNMADE = ("CreateContainerConfigError", "CreateContainerError", "RunContainerError")
DENIED = re.compile(r"unauthorized|authentication required|denied|forbidden|\b40[13]\b", re.IGNORECASE)
MISSING = re.compile(
    r"not found|manifest unknown|name unknown|no such image|\b404\b|no match for platform", re.IGNORECASE
)
BUSY = re.compile(
    r"toomanyrequests|too many requests|\b429\b|\b5\d\d\b|timeout|deadline|refused|reset by peer|EOF|no such host",
    re.IGNORECASE,
)
OWN_LIMIT = re.compile(
    r"exceeds? (?:the |its )?(?:local|total)|exceeds its local ephemeral|usage exceeds|limit of container"
    r"|Container .* exceeded its",
    re.IGNORECASE,
)
NO_CLAIM = re.compile(r'persistentvolumeclaim "([^"]+)" not found')
OOM = "OOMKilled"
HOOK = re.compile(r'failed calling webhook "?([^":]*)')  # its server may come back
REFUSALS = (  # of quota and admission: the first that is found counts
    Sign(
        "pod.quota",
        r"exceeded quota",
        "the namespace's quota is used up",
        "ask for a higher quota, or for less in serving.resources.limits",
    ),
    Sign(
        "pod.security-level",
        r"violates PodSecurity",
        "the namespace's Pod Security level refuses the pod",
        "change what the message names in serving.pod",
    ),
    Sign(
        "pod.no-service-account",
        r"(?is)^(?=.*serviceaccount).*not found",
        "the service account is not there",
        "make it, or correct serving.pod.service_account",
    ),
    Sign(
        "pod.webhook-away",
        HOOK.pattern,
        r"no pod can be made: the webhook \1 does not answer",
        "see whether what serves it runs",
    ),
    Sign(
        "pod.refused",
        r"",
        "the cluster refuses the pod",
        "change what the message names, or ask whoever sets the rule",
    ),
)


def engine(pods: Sequence[Object], beside: Beside, deployment: Object, claim: Object, name: str) -> Pending:
    """Of a release's pods. ``deployment``, ``claim``: their status."""
    failure = condition(deployment, "ReplicaFailure")  # quota and admission speak through it
    if failure.get("status") == "True":
        refused = _refused(failure.get("message", ""))
        return InProgress(f"{refused.what}: {refused.why}") if HOOK.search(refused.why) else Failed(refused)
    if claim.get("phase") == "Lost":
        fix = "restore the volume, or delete the claim: models are fetched again"
        return Failed(Finding("claim.lost", "the claim of the models is lost", "its volume is gone", fix))
    states = [_pod(pod, beside) for pod in living(pods)]
    failed = (state for state in states if isinstance(state, Failed))
    making = InProgress(_last_event(beside, name) or "its pods are being made")
    return (*failed, *states, making)[0]


def step(pods: Sequence[Object], beside: Beside, name: str, *, finished: bool) -> StepState:
    """Of a step's Job: Failed when it cannot start, or was ended from outside."""
    if not pods:
        event = _last_event(beside, name)
        if "forbidden" in event:
            return Failed(_refused(event))
        return Ended() if finished else InProgress(event or "its pod is being made")
    pod = max(pods, key=lambda candidate: str(candidate["metadata"].get("creationTimestamp")))
    if (gone := _evicted(pod)) is not None:
        return Failed(gone, retryable=not OWN_LIMIT.search(gone.why))
    states = {status["name"]: status["state"] for status in _statuses(pod)}
    for container, state in states.items():
        if state.get("terminated", {}).get("reason") == OOM:
            return Failed(Finding("step.out-of-memory", *_oom(f"the step's container {container}", "runner.resources")))
    if finished or pod["status"].get("phase") in ("Succeeded", "Failed"):
        return Ended()
    pending, at_work = _pod(pod, beside), states.get("step", {})
    done = at_work.get("terminated", {}).get("exitCode") == 0
    started = at_work.keys() & {"running", "terminated"} and not done
    return Started() if started and isinstance(pending, InProgress) else pending


def _pod(pod: Object, beside: Beside) -> Pending:
    status = pod["status"]
    if (gone := _evicted(pod)) is not None:
        return Failed(gone) if OWN_LIMIT.search(gone.why) else InProgress(f"{gone.what}: {gone.why}")
    scheduled = condition(status, "PodScheduled")
    if scheduled.get("status") == "False":
        return _unscheduled(pod, scheduled, beside)
    for container in (*status.get("initContainerStatuses", ()), *_statuses(pod)):
        if (state := _container(pod, container, beside)) is not None:
            return state
    if status.get("phase") == "Pending":
        return InProgress(_last_event(beside, pod["metadata"]["name"]) or "the pod is being set up (volumes, image)")
    return InProgress(last_line(str(pod.get("log", ""))) or "the engine is starting")


def _container(pod: Object, status: Object, beside: Beside) -> Pending | None:
    """None: nothing is wrong with it."""
    name, waiting = status["name"], status["state"].get("waiting", {})
    ended = status["state"].get("terminated") or status.get("lastState", {}).get("terminated")
    reason, message = waiting.get("reason", ""), waiting.get("message", "")
    if reason in PULLING:
        about = (event for event in beside["Event"] if event["involvedObject"].get("name") == pod["metadata"]["name"])
        return _pull(status, message, [event["message"] for event in about if "pull" in event.get("message", "")])
    if reason == "InvalidImageName":
        what = f"the image's name {status['image']} is not valid"
        return Failed(Finding("image.invalid-name", what, message, "correct target.image"))
    if reason in UNMADE:
        what = f"the container {name} cannot be started"
        fix = "make what the message names, or correct the spec (serving.env, serving.api_key, serving.pod)"
        return Failed(Finding("pod.container-unmade", what, message or reason, fix, (f"reason: {reason}",)))
    if not ended or name not in ENGINES or status.get("ready"):
        return None
    if ended.get("reason") == OOM:
        own: Object = next((spec for spec in pod["spec"]["containers"] if spec["name"] == name), {})
        limit = own.get("resources", {}).get("limits", {}).get("memory", "")
        return Failed(Finding("engine.out-of-memory", *_oom("the engine", "serving.resources.limits.memory", limit)))
    return _crashed(pod, status, ended)


def _crashed(pod: Object, status: Object, ended: Object) -> Pending:
    log, code, starts = pod.get("log") or ended.get("message", ""), ended.get("exitCode"), status.get("restartCount", 0)
    failed = diagnose(log, code, f"pod {pod['metadata']['name']}: exit code {code}, {starts} restarts")
    if failed.retryable and starts < STARTS:
        return InProgress(f"{failed.finding.what}; it is started again")
    return failed


def _pull(status: Object, message: str, messages: Sequence[str]) -> Pending:
    """Not found and not allowed will not pass by waiting; a busy or unreachable registry
    may.
    """
    image, words = status["image"], " ".join([message, *messages])
    line = (message if "rpc error" in message or "fail" in message else (messages[-1] if messages else message))[:400]
    if BUSY.search(words) and not MISSING.search(words):
        return InProgress(f"the registry is busy or away, the pull of {image} is tried again: {line}")
    if DENIED.search(words):
        what = f"the registry does not let the cluster pull {image}"
        fix = (
            "name a pull secret in serving.pod.image_pull_secrets (of a step: runner.image_pull_secrets), or correct it"
        )
        return Failed(Finding("image.denied", what, line, fix))
    if MISSING.search(words):
        fix = "correct target.image (of a step: runner.image), or push the image"
        return Failed(Finding("image.not-found", f"there is no image {image}", line, fix))
    return InProgress(f"the image {image} cannot be pulled yet: {line or status['state']['waiting'].get('reason', '')}")


def _unscheduled(pod: Object, scheduled: Object, beside: Beside) -> Pending:
    message = scheduled.get("message", "")
    if scheduled.get("reason") == "SchedulingGated":
        return InProgress("queued: the pod waits for its queue")
    if claim := NO_CLAIM.search(message):
        fix = "run again: the storage step makes it"
        return Failed(Finding("claim.not-there", f"the claim {claim[1]} is not there", message, fix))
    if "unbound" in message:
        return InProgress(_unbound(pod, message, beside))
    if hopeless := "; ".join(_hopeless(pod, beside["Node"])):
        fix = "ask for less in serving.resources.limits, or add such a node"
        return Failed(Finding("pod.too-large", "no node could ever hold the pod", hopeless, fix, (message,)))
    return InProgress(f"no node has room: {message}")


def _unbound(pod: Object, message: str, beside: Beside) -> str:
    """Why its claim is not bound."""
    failed = (event for event in beside["Event"] if event.get("reason") == "ProvisioningFailed")
    messages = [event["message"] for event in failed if event["involvedObject"]["kind"] == "PersistentVolumeClaim"]
    if messages:
        return f"the claim cannot be bound: {messages[-1][:300]}"
    volumes = (volume.get("persistentVolumeClaim") for volume in pod["spec"].get("volumes", ()))
    names = ", ".join(claim["claimName"] for claim in volumes if claim is not None)
    return f"the claim {names} is not bound yet (does its class's provisioner run?): {message}"


def _hopeless(pod: Object, nodes: Sequence[Object]) -> Iterator[str]:
    """Why no node there is could hold the pod, even when empty. A device that no node has
    may come with another node: not judged.
    """
    asked: defaultdict[str, float] = defaultdict(float)
    for container in pod["spec"]["containers"]:
        for name, quantity in container.get("resources", {}).get("requests", {}).items():
            asked[name] += _number(quantity)
    for name, wanted in asked.items():
        most = max((_number(node["status"].get("allocatable", {}).get(name, "0")) for node in nodes), default=0.0)
        if 0 < most < wanted:
            yield f"{name}: {wanted:g} wanted, the largest node has {most:g}"


def _number(quantity: str) -> float:
    text = str(quantity)
    if text.endswith("m"):
        return float(text[:-1]) / 1000
    return float(text if text.replace(".", "", 1).isdigit() else Size(text).bytes)


def _evicted(pod: Object) -> Finding | None:
    status = pod["status"]
    disrupted = condition(status, "DisruptionTarget")
    if status.get("reason") != "Evicted" and disrupted.get("status") != "True":
        return None
    return Finding(
        "pod.evicted",
        f"the pod {pod['metadata']['name']} was evicted",
        status.get("message") or disrupted.get("message") or disrupted.get("reason", ""),
        "raise the limit that the message names, or make room on the node; another pod is started in its place",
    )


def _oom(what: str, where: str, limit: str = "") -> tuple[str, str, str]:
    """What, why and fix. ``limit``: as the pod has it, which may be another's (a
    LimitRange's, a default of KServe's) where the spec has none.
    """
    why = f"{OOM}, exit code 137" + (f"; its limit is {limit}" if limit else "")
    fix = f"raise {where}, or use a smaller model, dtype or --max-model-len"
    return f"{what} was killed: it used more memory than its limit", why, fix


def _refused(message: str) -> Finding:
    known, match = next((known, match) for known in REFUSALS if (match := re.search(known.pattern, message)))
    return Finding(known.code, match.expand(known.what), message, known.fix)


def condition(status: Object, kind: str) -> Object:
    """Of an object's status; empty where it has none of that type."""
    return next((found for found in status.get("conditions") or () if found["type"] == kind), {})


def reason_of(told: Object) -> str:
    """``reason: message``, as far as they are given."""
    return ": ".join(str(told[key]) for key in ("reason", "message") if told.get(key))


def not_made(messages: Sequence[str]) -> Object:
    """A Deployment's status that says so; of the messages, where there are any, the
    last.
    """
    return {"conditions": [{"type": "ReplicaFailure", "status": "True", "message": messages[-1]}]} if messages else {}


def is_ready(pod: Object) -> bool:
    return bool(condition(pod["status"], "Ready").get("status") == "True")


def living(pods: Iterable[Object]) -> list[Object]:
    return [pod for pod in pods if "deletionTimestamp" not in pod["metadata"]]


def events_of(events: Iterable[Object], name: str) -> list[Object]:
    """Of what is called ``name``, or begins so."""
    return [event for event in events if str(event["involvedObject"].get("name", "")).startswith(name)]


def _last_event(beside: Beside, name: str) -> str:
    def when(event: Object) -> str:
        return str(event.get("lastTimestamp") or event.get("eventTime") or "")

    last = max(events_of(beside["Event"], name), key=when, default=None)
    return "" if last is None else f"{last.get('reason')}: {last.get('message', '')}"[:400]


def _statuses(pod: Object) -> tuple[Object, ...]:
    return tuple(pod["status"].get("containerStatuses", ()))
