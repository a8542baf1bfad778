"""Why a pod is not ready: pure, of the API's own objects. Waiting is for what may yet
come; a Failed names cause and remedy.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from model_delivery.base import Finding, short
from model_delivery.diagnosis.containers import OOM, STEP, UNMADE, judged, oom
from model_delivery.diagnosis.engine_signs import Sign
from model_delivery.diagnosis.holding import REMEDY, held
from model_delivery.diagnosis.scheduling import unscheduled
from model_delivery.diagnosis.starting import starting
from model_delivery.values import Ended, Failed, InProgress, Started, StepState

Object = Mapping[str, Any]
Beside = Mapping[str, Sequence[Object]]  # events (warnings) and, where they may be seen, nodes, by their kind
Pending = InProgress | Failed
OVERDUE = "DeadlineExceeded"
REJECTED = 5  # pods one after the other that their node refused
OWN_LIMIT = re.compile(
    r"exceeds? (?:the |its )?(?:local|total)|exceeds its local ephemeral|usage exceeds|exceeds the limit"
    r"|limit of container|Container .* exceeded its",
    re.IGNORECASE,
)
NODE_GONE = re.compile(r"shutdown|Terminated|NodeLost|Preempt", re.IGNORECASE)
HOOK = re.compile(r'failed calling webhook "?([^":]*)')  # its server may come back
SETTING_UP = (  # what an event of a pod that is being set up tells, and what helps
    (r"FailedMount.*(?:secret|configmap)", "make what the message names, or correct the spec"),
    (r"FailedCreatePodSandBox.*runtime", "see serving.pod.runtime_class"),
)
QUOTAS = (  # what was asked for beyond it, and what helps
    (r"(?:^|,)(?:count/)?pods=", "ask for a higher quota, or end other pods of the namespace"),
    (r"storage=", "ask for a higher quota, or for less in storage.size"),
    (
        r"^$|(?:^|,)(?:requests\.|limits\.|cpu=|memory=)",
        "ask for a higher quota, or for less in serving.resources.limits (of a step: runner.resources)",
    ),
    (r"", "ask for a higher quota, or delete some of what it counts"),
)
REFUSALS = (  # of quota and admission: the first that is found counts
    Sign("pod.quota", r"exceeded quota", "the namespace's quota is used up", ""),
    Sign(
        "pod.quota-unstated",
        r"failed quota: .*must specify ([^ ]*)",
        r"the namespace's quota wants \1 to be stated",
        "state it in serving.resources.limits (of a step: runner.resources)",
    ),
    Sign(
        "pod.limit-range",
        r"(?:maximum|minimum) (\S+) usage per|is greater than the maximum|max limit to request ratio",
        "the namespace's LimitRange refuses the pod",
        "correct serving.resources.limits (of a step: runner.resources)",
    ),
    Sign(
        "pod.security-level",
        r"violates PodSecurity",
        "the namespace's Pod Security level refuses the pod",
        "change what the message names in serving.pod",
    ),
    Sign(
        "pod.security-context",
        r"security context constraint",
        "no security context constraint lets the pod run",
        "change what the message names in serving.pod, or grant its service account a constraint",
    ),
    Sign(
        "pod.no-service-account",
        r"(?is)^(?=.*serviceaccount).*not found",
        "the service account is not there",
        "make it, or correct serving.pod.service_account",
    ),
    Sign(
        "pod.no-class",
        r"(?:no PriorityClass with name (\S+)|RuntimeClass \"?([^\" ]+)\"? not found)",
        r"the class \1\2 that the pod names is not there",
        "correct serving.pod, or have it made",
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
    own = living(pods)
    states = [_pod(pod, beside) for pod in own if not _rejected(pod)]
    failed = (state for state in states if isinstance(state, Failed))
    making = InProgress(_last_event(beside, name) or "its pods are being made")
    return (*failed, *_rejections(own), *states, making)[0]


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
    if _rejected(pod):
        return Failed(_rejection(pod), retryable=True)
    if (late := _overdue(pod)) is not None:
        return Failed(late)
    states = {status["name"]: status["state"] for status in _statuses(pod)}
    for container, state in states.items():
        if state.get("terminated", {}).get("reason") == OOM:
            return Failed(Finding("step.out-of-memory", *oom(f"the step's container {container}", "runner.resources")))
    at_work, mark = states.get(STEP, {}), str(pod["metadata"].get("uid", ""))
    code = at_work.get("terminated", {}).get("exitCode")
    if finished or pod["status"].get("phase") in ("Succeeded", "Failed"):
        return Ended(mark, code)
    pending, done = _pod(pod, beside), code == 0
    started = at_work.keys() & {"running", "terminated"} and not done
    return Started(mark) if started and isinstance(pending, InProgress) else pending


def pulled(pods: Sequence[Object]) -> bool:
    """Is the image there, whether or not what was called in it can be run?"""
    states = [status["state"] for pod in pods for status in _statuses(pod)]
    begun = {"running", "terminated"}
    return any(begun & state.keys() or state.get("waiting", {}).get("reason") in UNMADE for state in states)


def together(main: StepState, *others: StepState) -> StepState:
    """Of a step's Job and those beside it: its output is read while they go on."""
    failed = [state for state in (main, *others) if isinstance(state, Failed)]
    if failed:
        return failed[0]
    waits = [other.why for other in others if isinstance(other, InProgress)]
    return Started(main.mark, f"the image's pull goes on: {waits[0]}") if isinstance(main, Ended) and waits else main


def _pod(pod: Object, beside: Beside) -> Pending:
    status = pod["status"]
    if (gone := _evicted(pod)) is not None:
        return Failed(gone) if OWN_LIMIT.search(gone.why) else InProgress(f"{gone.what}: {gone.why}")
    if (late := _overdue(pod)) is not None:
        return InProgress(f"{late.what}: {late.why}; another is made", late.fix)
    scheduled = condition(status, "PodScheduled")
    if scheduled.get("status") == "False":
        return unscheduled(pod, scheduled, beside)
    if _rejected(pod):
        return InProgress(_rejection(pod).why)
    if status.get("reason") == "NodeLost":
        return InProgress(f"the pod's node does not answer: {status.get('message', '')}", "see the node")
    name = pod["metadata"]["name"]
    events = [event for event in beside["Event"] if event["involvedObject"].get("name") == name]
    for container in (*status.get("initContainerStatuses", ()), *_statuses(pod)):
        if (state := judged(pod, container, events)) is not None:
            return state
    if status.get("phase") == "Pending":
        attached = [event["message"] for event in events if "Multi-Attach" in event.get("message", "")]
        if attached:
            return _elsewhere(pod, attached[-1], beside)
        why = _last_event(beside, name)
        fix = next((fix for pattern, fix in SETTING_UP if re.search(pattern, why)), "")
        return InProgress(why or "the pod is being set up (volumes, image)", fix)
    return starting(str(pod.get("log", "")))


def _elsewhere(pod: Object, message: str, beside: Beside) -> Pending:
    """A volume that another node has: for good, where a pod that lives there has it."""
    by = held(pod, living(beside.get("Pod", ())))
    if not by:
        return InProgress(f"the claim's volume is still on another node: {message}", REMEDY)
    return Failed(Finding("claim.held-elsewhere", by, message, REMEDY))


def _rejected(pod: Object) -> bool:
    """Its node's kubelet refused it, or ended it with the node: no container of it ran to
    an end. Its controller makes another.
    """
    status = pod["status"]
    ran = any(container["state"].get("terminated") for container in _statuses(pod))
    refused = status.get("reason") not in (None, "", OVERDUE)
    return status.get("phase") == "Failed" and refused and not ran and _evicted(pod) is None


def _rejection(pod: Object) -> Finding:
    status, node = pod["status"], pod["spec"].get("nodeName", "its node")
    why = short(f"{status['reason']}: {status.get('message', '')}", 400)
    if NODE_GONE.search(why):
        return Finding("pod.node-gone", f"the pod was ended with {node}", why, "see the node")
    return Finding("pod.rejected", f"{node} refuses the pod that the scheduler sent there", why, "see the node")


def _rejections(pods: Sequence[Object]) -> list[Pending]:
    """Of pods that were refused by their nodes: a failure where it goes on; and nothing,
    where another pod is at work.
    """
    refused = [pod for pod in pods if _rejected(pod)]
    if not refused or (len(refused) < REJECTED and len(refused) < len(pods)):
        return []
    last = max(refused, key=lambda pod: str(pod["metadata"].get("creationTimestamp")))
    finding = _rejection(last)
    if len(refused) < REJECTED or finding.code == "pod.node-gone":
        return [InProgress(f"{finding.what}: {finding.why}; another is made")] if len(refused) == len(pods) else []
    evidence = (f"{len(refused)} pods one after the other",)
    return [Failed(Finding(finding.code, finding.what, finding.why, finding.fix, evidence))]


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


def _overdue(pod: Object) -> Finding | None:
    status = pod["status"]
    if status.get("reason") != OVERDUE:
        return None
    fix = "see who sets its activeDeadlineSeconds: nothing of the spec does"
    return Finding(
        "pod.overdue", f"the pod {pod['metadata']['name']} was ended at its deadline", status.get("message", ""), fix
    )


def _refused(message: str) -> Finding:
    known, match = next((known, match) for known in REFUSALS if (match := re.search(known.pattern, message)))
    return Finding(known.code, match.expand(known.what), message, known.fix or quota_fix(message))


def quota_fix(message: str) -> str:
    """By what of the quota was used up."""
    asked = re.search(r"requested: (.*?), used:", message)
    return next(fix for pattern, fix in QUOTAS if re.search(pattern, asked[1] if asked else ""))


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
    return "" if last is None else short(f"{last.get('reason')}: {last.get('message', '')}", 400)


def _statuses(pod: Object) -> tuple[Object, ...]:
    return tuple(pod["status"].get("containerStatuses", ()))
