"""Why a pod is not ready: pure, of the API's own objects. Waiting is for what may yet come; a Failed names cause and remedy."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from model_delivery.base.findings import Finding
from model_delivery.base.units import Size
from model_delivery.diagnosis.engine_log import diagnose, is_retryable
from model_delivery.values.readiness import Current, Failed, InProgress, Readiness
from model_delivery.values.resources import ENGINES

Object = Mapping[str, Any]
STARTS = 3  # of an engine whose own error may pass
PULLING = ("ErrImagePull", "ImagePullBackOff", "ImageInspectError", "RegistryUnavailable")
DENIED = re.compile(r"unauthorized|authentication required|denied|forbidden|\b40[13]\b", re.IGNORECASE)
MISSING = re.compile(
    r"not found|manifest unknown|name unknown|no such image|\b404\b|no match for platform", re.IGNORECASE
)
BUSY = re.compile(
    r"toomanyrequests|too many requests|\b429\b|\b5\d\d\b|timeout|deadline|refused|reset by peer|EOF|no such host",
    re.IGNORECASE,
)
OWN_LIMIT = re.compile(
    r"exceeds? (?:the |its )?(?:local|total)|exceeds its local ephemeral|usage exceeds|limit of container|Container .* exceeded its",
    re.IGNORECASE,
)
OOM = 137
HOOK = re.compile(r'failed calling webhook "?([^":]*)')  # its server may come back


def engine(
    pods: Sequence[Object],
    events: Sequence[Object],
    nodes: Sequence[Object],
    deployment: Object,
    claim: Object | None,
    name: str,
) -> Readiness:
    """Of a release's pods: its Deployment's status, the events of its namespace (warnings), the nodes where they may be seen, its claim's status."""
    if (refused := _not_created(deployment)) is not None:
        return InProgress(f"{refused.what}: {refused.why}") if HOOK.search(refused.why) else Failed(refused)
    if claim is not None and claim.get("phase") == "Lost":
        return Failed(
            Finding(
                "todo",
                "the claim of the models is lost",
                "its volume is gone",
                "restore the volume, or delete the claim: models are fetched again",
            )
        )
    live = [pod for pod in pods if "deletionTimestamp" not in pod["metadata"]]
    states = [_pod(pod, events, nodes) for pod in live]
    for state in states:
        if isinstance(state, Failed):
            return state
    waiting = [state.why for state in states if isinstance(state, InProgress)]
    return InProgress(waiting[0] if waiting else _last_event(events, name) or "its pods are being made")


def step(
    pods: Sequence[Object], events: Sequence[Object], nodes: Sequence[Object], name: str, *, finished: bool
) -> Readiness:
    """Of a step's Job: Current("ended") or Current("started"), Failed when it cannot start or was ended from outside."""
    if not pods:
        said = _last_event(events, name)
        if "forbidden" in said:
            return Failed(_refused(said))
        return Current("ended") if finished else InProgress(said or "its pod is being made")
    pod = max(pods, key=lambda one: str(one["metadata"].get("creationTimestamp")))
    if (gone := _evicted(pod)) is not None:
        return Failed(gone, retryable=not OWN_LIMIT.search(gone.why))
    statuses = {s["name"]: s for s in pod["status"].get("containerStatuses", ())}
    for status in statuses.values():
        ended = status["state"].get("terminated", {})
        if ended.get("reason") == "OOMKilled":
            return Failed(_oom(f"the step's container {status['name']}", "runner.resources"))
    if finished or pod["status"].get("phase") in ("Succeeded", "Failed"):
        return Current("ended")
    state = _pod(pod, events, nodes)
    if isinstance(state, Failed):
        return state
    mine = statuses.get("step", {}).get("state", {})
    done = mine.get("terminated", {}).get("exitCode") == 0
    return state if done or not mine.keys() & {"running", "terminated"} else Current("started")


def _pod(pod: Object, events: Sequence[Object], nodes: Sequence[Object]) -> Readiness:
    if (gone := _evicted(pod)) is not None:
        return Failed(gone) if OWN_LIMIT.search(gone.why) else InProgress(f"{gone.what}: {gone.why}")
    for condition in pod["status"].get("conditions", ()):
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            return _unscheduled(pod, condition, events, nodes)
    for status in (*pod["status"].get("initContainerStatuses", ()), *pod["status"].get("containerStatuses", ())):
        state = _container(pod, status, events)
        if state is not None:
            return state
    if pod["status"].get("phase") == "Pending":
        return InProgress(_last_event(events, pod["metadata"]["name"]) or "the pod is being set up (volumes, image)")
    return InProgress(_last_line(str(pod.get("log", ""))) or "the engine is starting")


def _container(pod: Object, status: Object, events: Sequence[Object]) -> Readiness | None:
    """None: nothing is wrong with it."""
    waiting, ended = (
        status["state"].get("waiting", {}),
        status["state"].get("terminated") or status.get("lastState", {}).get("terminated"),
    )
    reason, message = waiting.get("reason", ""), waiting.get("message", "")
    if reason in PULLING:
        return _pull(
            status, message, [e["message"] for e in events if _about(e, pod) and "pull" in e.get("message", "")]
        )
    if reason == "InvalidImageName":
        return Failed(
            Finding("todo", f"the image's name {status['image']} is not valid", message, "correct target.image")
        )
    if reason in ("CreateContainerConfigError", "CreateContainerError", "RunContainerError"):
        fix = "make what the message names, or correct the spec (serving.env, serving.api_key, serving.pod)"
        return Failed(
            Finding(
                "todo",
                f"the container {status['name']} cannot be started",
                message or reason,
                fix,
                (f"reason: {reason}",),
            )
        )
    if not ended or status["name"] not in ENGINES or status.get("ready"):
        return None
    if ended.get("reason") == "OOMKilled":
        limits = [
            one.get("resources", {}).get("limits", {}).get("memory")
            for one in pod["spec"]["containers"]
            if one["name"] == status["name"]
        ]
        return Failed(_oom("the engine", "serving.resources.limits.memory", *filter(None, limits)))
    return _crashed(pod, status, ended)


def _crashed(pod: Object, status: Object, ended: Object) -> Readiness:
    log, code, starts = str(pod.get("log", "")), ended.get("exitCode"), int(status.get("restartCount", 0))
    log = log or str(ended.get("message", ""))
    found = diagnose(log, code)
    seen = f"pod {pod['metadata']['name']}: exit code {code}, {starts} restarts"
    told = Finding("todo", found.what, found.why, found.fix, (*found.evidence, seen))
    if is_retryable(log, code) and starts < STARTS:
        return InProgress(f"{found.what}; it is started again")
    return Failed(told, retryable=is_retryable(log, code))


def _pull(status: Object, message: str, told: Sequence[str]) -> Readiness:
    """Not found and not allowed will not pass by waiting; a busy or unreachable registry may."""
    image, said = status["image"], " ".join([message, *told])
    line = (message if "rpc error" in message or "fail" in message else (told[-1] if told else message))[:400]
    if BUSY.search(said) and not MISSING.search(said):
        return InProgress(f"the registry is busy or away, the pull of {image} is tried again: {line}")
    if DENIED.search(said):
        fix = (
            "name a pull secret in serving.pod.image_pull_secrets (of a step: runner.image_pull_secrets), or correct it"
        )
        return Failed(Finding("todo", f"the registry does not let the cluster pull {image}", line, fix))
    if MISSING.search(said):
        return Failed(
            Finding(
                "todo",
                f"there is no image {image}",
                line,
                "correct target.image (of a step: runner.image), or push the image",
            )
        )
    return InProgress(f"the image {image} cannot be pulled yet: {line or status['state']['waiting'].get('reason', '')}")


def _unscheduled(pod: Object, condition: Object, events: Sequence[Object], nodes: Sequence[Object]) -> Readiness:
    reason, message = condition.get("reason", ""), condition.get("message", "")
    if reason == "SchedulingGated":
        return InProgress("queued: the pod waits for its queue")
    claim = re.search(r'persistentvolumeclaim "([^"]+)" not found', message)
    if claim:
        return Failed(
            Finding("todo", f"the claim {claim[1]} is not there", message, "run again: the storage step makes it")
        )
    trouble = [
        e["message"]
        for e in events
        if e.get("reason") == "ProvisioningFailed" and e["involvedObject"]["kind"] == "PersistentVolumeClaim"
    ]
    if trouble and "unbound" in message:
        return InProgress(f"the claim cannot be bound: {trouble[-1][:300]}")
    if "unbound" in message:
        claims = [
            v["persistentVolumeClaim"]["claimName"]
            for v in pod["spec"].get("volumes", ())
            if "persistentVolumeClaim" in v
        ]
        return InProgress(
            f"the claim {', '.join(claims)} is not bound yet (does its class's provisioner run?): {message}"
        )
    hopeless = [text for text in (_never(pod, nodes, name) for name in _requests(pod)) if text]
    if hopeless:
        fix = "ask for less in serving.resources.limits, or add such a node"
        return Failed(Finding("todo", "no node could ever hold the pod", "; ".join(hopeless), fix, (message,)))
    return InProgress(f"no node has room: {message}")


def _never(pod: Object, nodes: Sequence[Object], name: str) -> str:
    """Why no node there is could hold the pod, even when empty. A device that no node has may come with another node: not judged."""
    wanted = _requests(pod)[name]
    most = max((_number(node["status"].get("allocatable", {}).get(name, "0")) for node in nodes), default=0.0)
    return f"{name}: {wanted:g} wanted, the largest node has {most:g}" if most and wanted > most else ""


def _requests(pod: Object) -> dict[str, float]:
    asked: dict[str, float] = {}
    for container in pod["spec"]["containers"]:
        for name, quantity in container.get("resources", {}).get("requests", {}).items():
            asked[name] = asked.get(name, 0.0) + _number(quantity)
    return asked


def _number(quantity: str) -> float:
    text = str(quantity)
    return (
        float(text[:-1]) / 1000
        if text.endswith("m")
        else float(Size(text).bytes)
        if not text.replace(".", "", 1).isdigit()
        else float(text)
    )


def _evicted(pod: Object) -> Finding | None:
    status = pod["status"]
    disrupted: Object = next(
        (c for c in status.get("conditions", ()) if c["type"] == "DisruptionTarget" and c["status"] == "True"), {}
    )
    if status.get("reason") != "Evicted" and not disrupted:
        return None
    why = status.get("message") or disrupted.get("message") or disrupted.get("reason", "")
    fix = "raise the limit that the message names, or make room on the node; another pod is started in its place"
    return Finding("todo", f"the pod {pod['metadata']['name']} was evicted", why, fix)


def _oom(what: str, where: str, limit: str = "") -> Finding:
    """``limit``: as the pod has it, which may be another's (a LimitRange's, a default of KServe's) where the spec has none."""
    fix = f"raise {where}, or use a smaller model, dtype or --max-model-len"
    return Finding(
        "todo",
        f"{what} was killed: it used more memory than its limit",
        f"OOMKilled, exit code {OOM}" + (f"; its limit is {limit}" if limit else ""),
        fix,
    )


def _not_created(deployment: Object) -> Finding | None:
    """Quota and admission speak through the Deployment's condition ReplicaFailure."""
    for condition in deployment.get("conditions", ()):
        if condition["type"] == "ReplicaFailure" and condition["status"] == "True":
            return _refused(condition.get("message", ""))
    return None


def _refused(message: str) -> Finding:
    if "exceeded quota" in message:
        return Finding(
            "todo",
            "the namespace's quota is used up",
            message,
            "ask for a higher quota, or for less in serving.resources.limits",
        )
    if "violates PodSecurity" in message:
        return Finding(
            "todo",
            "the namespace's Pod Security level refuses the pod",
            message,
            "change what the message names in serving.pod",
        )
    if "serviceaccount" in message.lower() and "not found" in message:
        return Finding(
            "todo", "the service account is not there", message, "make it, or correct serving.pod.service_account"
        )
    if hook := HOOK.search(message):
        return Finding(
            "todo",
            f"no pod can be made: the webhook {hook[1]} does not answer",
            message,
            "see whether what serves it runs",
        )
    return Finding(
        "todo", "the cluster refuses the pod", message, "change what the message names, or ask whoever sets the rule"
    )


def is_ready(pod: Object) -> bool:
    return any(c["type"] == "Ready" and c["status"] == "True" for c in pod["status"].get("conditions", ()))


def _about(event: Object, pod: Object) -> bool:
    return bool(event["involvedObject"].get("name") == pod["metadata"]["name"])


def _last_event(events: Iterable[Object], name: str) -> str:
    mine = [e for e in events if str(e["involvedObject"].get("name", "")).startswith(name)]
    last = max(mine, key=lambda e: str(e.get("lastTimestamp") or e.get("eventTime") or ""), default=None)
    return "" if last is None else f"{last.get('reason')}: {last.get('message', '')}"[:400]


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1][-160:] if lines else ""
