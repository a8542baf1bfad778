"""Why a pod has no node, in the scheduler's own words."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from model_delivery.base import Finding, short
from model_delivery.diagnosis.holding import REMEDY, held
from model_delivery.values import Failed, InProgress

Object = Mapping[str, Any]
NO_CLAIM = re.compile(r'persistentvolumeclaim "([^"]+)" not found')
NO_CLASS = re.compile(r"no persistent volumes available for this claim and no storage class is set")
QUANTITY = re.compile(r"([+-]?[0-9]*\.?[0-9]+)(?:[eE]([+-]?[0-9]+)|(n|u|m|k|[KMGTPE]i?))?")
POWERS = {"n": -9, "u": -6, "m": -3, "k": 3, "K": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}
ELSEWHERE = (  # nodes that will not do for another reason than room, and what of the spec decides it
    (r"untolerated taint", "nodes have taints that the pod does not tolerate", "serving.pod.tolerations"),
    (r"node affinity/selector", "nodes are not selected", "serving.pod.node_selector or serving.pod.affinity"),
    (r"volume node affinity", "the claim's volume cannot be reached from nodes", "storage.claim"),
    (r"pod affinity rules", "the claim can be mounted on one node at a time", "rollout.strategy: recreate"),
    (r"ReadWriteOncePod", "the claim is for one pod at a time, and another has it", "rollout.strategy: recreate"),
    (r"max volume count", "nodes hold as many volumes as they can", ""),
    (r"free ports", "the port is taken on nodes", ""),
)


def unscheduled(pod: Object, scheduled: Object, beside: Mapping[str, Sequence[Object]]) -> InProgress | Failed:
    """``scheduled``: the pod's condition PodScheduled."""
    message = scheduled.get("message", "")
    if scheduled.get("reason") == "SchedulingGated":
        return InProgress("queued: the pod waits for its queue")
    if claim := NO_CLAIM.search(message):
        fix = "run again: the storage step makes it"
        return Failed(Finding("claim.not-there", f"the claim {claim[1]} is not there", message, fix))
    if "unbound" in message:
        return _unbound(pod, message, beside["Event"])
    if hopeless := "; ".join(_hopeless(pod, beside["Node"])):
        fix = "ask for less in serving.resources.limits, or add such a node"
        return Failed(Finding("pod.too-large", "no node could ever hold the pod", hopeless, fix, (message,)))
    found = [(why, field) for pattern, why, field in ELSEWHERE if re.search(pattern, message)]
    if re.search(r"pod affinity rules|node affinity/selector", message) and (by := held(pod, beside.get("Pod", ()))):
        return InProgress(f"{by}, and there is no room there: {message}", REMEDY)
    whys = "; ".join(why for why, _ in found) or "no node has room"
    fields = ", ".join(field for _, field in found if field)
    return InProgress(f"{whys}: {message}", f"see {fields}, or add a node that fits" if fields else "add such a node")


def _unbound(pod: Object, message: str, events: Sequence[Object]) -> InProgress:
    """Why its claim is not bound. The event that no class is set is a Normal one."""
    about = [event for event in events if event["involvedObject"]["kind"] == "PersistentVolumeClaim"]
    failed = [short(event["message"], 300) for event in about if event.get("reason") == "ProvisioningFailed"]
    if failed:
        return InProgress(f"the claim cannot be bound: {failed[-1]}", "correct storage.storage_class")
    if classless := [event["message"] for event in about if NO_CLASS.search(event.get("message", ""))]:
        return InProgress(
            f"the claim cannot be bound: {short(classless[-1], 300)}", "name one in storage.storage_class"
        )
    volumes = (volume.get("persistentVolumeClaim") for volume in pod["spec"].get("volumes", ()))
    names = ", ".join(claim["claimName"] for claim in volumes if claim is not None)
    why = f"the claim {names} is not bound yet (does its class's provisioner run?): {message}"
    return InProgress(why, "see `kubectl describe pvc`")


def _hopeless(pod: Object, nodes: Sequence[Object]) -> Iterator[str]:
    """Why no node there is could hold the pod, even when empty. A device that no node has
    may come with another node: not judged.
    """
    asked: defaultdict[str, float] = defaultdict(float)
    for container in pod["spec"]["containers"]:
        for name, quantity in container.get("resources", {}).get("requests", {}).items():
            asked[name] += number(quantity)
    for name, wanted in asked.items():
        most = max((number(node["status"].get("allocatable", {}).get(name, "0")) for node in nodes), default=0.0)
        if 0 < most < wanted:
            yield f"{name}: {wanted:g} wanted, the largest node has {most:g}"


def number(quantity: str | float) -> float:
    """Of a quantity in any of the API's forms: ``1e11``, ``500m``, ``2Ei``, ``1u``; 0
    where it is none.
    """
    match = QUANTITY.fullmatch(str(quantity))
    if match is None:
        return 0.0
    digits, exponent, unit = match.groups()
    if unit and unit.endswith("i"):
        return float(digits) * 1024.0 ** (POWERS[unit[0]] // 3)
    return float(f"{digits}e{exponent or POWERS.get(unit or '', 0)}")
