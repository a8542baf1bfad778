"""What of a pod a look turns on. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from model_delivery.places.cluster.objects import Object
from model_delivery.values import ENGINES

STEP = "step"  # the container of a step's pod: its log is its output, read where it is wanted
COMING_UP = (None, "ContainerCreating", "PodInitializing")  # what a container waits for that may well start


def main(pod: Object) -> str:
    """The container that the pod is for: in one that somebody else made, the first where
    none has a name that we know.
    """
    names = [str(container["name"]) for container in pod["spec"]["containers"]]
    return next((name for name in names if name in (STEP, *ENGINES)), names[0])


def containers(pod: Object) -> list[Object]:
    """The statuses of its containers; none before they are known."""
    return pod["status"].get("containerStatuses") or []


def newest(pods: list[Object]) -> tuple[Object | None, Object]:
    """The newest pod, and the state of its main container."""
    if not pods:
        return None, {}
    pod = max(pods, key=lambda pod: pod["metadata"]["creationTimestamp"])
    if ended(pod) and not containers(pod):
        return pod, {"terminated": {}}
    return pod, _main_status(pod).get("state", {})


def _main_status(pod: Object) -> Object:
    """Empty before it is known."""
    return next((status for status in containers(pod) if status["name"] == main(pod)), {})


def log_query(pod: Object) -> Object | None:
    """Of the engine's log, where the engine is not ready: of the container before, where
    it has just been restarted. None: there is nothing to tell.
    """
    status = _main_status(pod)
    if not status or status["name"] == STEP or status["ready"] or "deletionTimestamp" in pod["metadata"]:
        return None
    if not ({"running", "terminated"} & status["state"].keys() or status.get("lastState")):
        return None
    again = "running" in status["state"] and status.get("restartCount")
    return {"previous": "true"} if again else {}


def ended(pod: Object) -> bool:
    return pod["status"].get("phase") in ("Failed", "Succeeded")


def settled(pod: Object) -> bool:
    """Does it run well, or has it ended well?"""
    ready = [status["ready"] for status in containers(pod)]
    return pod["status"].get("phase") == "Succeeded" or (bool(ready) and all(ready))


def turn(pod: Object) -> Any:
    """What of a pod a wait can turn on. That it is only coming up is told with the next
    look: each one costs requests.
    """
    status = pod["status"]
    known = [(c["name"], c["ready"], at) for c in containers(pod) if (at := _turn(c)) or c["ready"]]
    refused = [condition.get("reason") for condition in unscheduled(pod)]
    phase = status.get("phase") if ended(pod) else None
    return phase, status.get("reason"), known, refused, "deletionTimestamp" in pod["metadata"]


def _turn(container: Mapping[str, Any]) -> Any:
    """That it has ended, that a step's output can be read, or why it does not start."""
    state = container["state"]
    if "terminated" in state:
        return "terminated", container.get("restartCount", 0)
    if "running" in state:
        return "running" if container["name"] == STEP else None
    reason = state.get("waiting", {}).get("reason")
    return None if reason in COMING_UP else reason


def unscheduled(pod: Object) -> list[Object]:
    """The scheduler's conditions that say no."""
    conditions = pod["status"].get("conditions", ())
    return [c for c in conditions if c["type"] == "PodScheduled" and c["status"] == "False"]
