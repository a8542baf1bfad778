"""The phases of a start by its pods: of conditions, container statuses and events, then
of the log.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from model_delivery.diagnosis import pod_caches
from model_delivery.diagnosis.pods import condition, living
from model_delivery.diagnosis.starting import moment_of, passed
from model_delivery.values import ENGINES, Phase, Start

Object = Mapping[str, Any]
LATER = math.inf


def start(pods: Sequence[Object], events: Sequence[Object]) -> Start | None:
    """What all of those that live have come by, and when the last did. None: there is
    none.
    """
    own = [pod for pod in living(pods) if pod["status"].get("phase") != "Failed"]
    starts = [one for pod in own if (one := _start(pod, events))]
    if not starts:
        return None
    every = {phase: [one.reached.get(phase, LATER) for one in starts] for phase in Phase}
    reached = {phase: None if None in at else max(filter(None, at)) for phase, at in every.items() if LATER not in at}
    return Start(min(one.began for one in starts), reached, *pod_caches.told(own))


def _start(pod: Object, events: Sequence[Object]) -> Start | None:
    meta, status = pod["metadata"], pod["status"]
    began = moment_of(meta.get("creationTimestamp"))
    if began is None:
        return None
    reached: dict[Phase, float | None] = {}
    if at := _since(status, "PodScheduled"):
        reached[Phase.SCHEDULED] = at
    statuses = status.get("containerStatuses") or ()
    engine = next((one for one in statuses if one["name"] in ENGINES), statuses[0] if statuses else {})
    if at := _pulled(meta["name"], engine.get("name"), events):
        reached[Phase.PULLED] = at
    if running := engine.get("state", {}).get("running"):
        reached |= {Phase.PROCESS: moment_of(running.get("startedAt")), **passed(str(pod.get("log", "")))}
    if at := _since(status, "Ready"):
        reached[Phase.HEALTHY] = at
    return Start(began, reached)


def _since(status: Object, kind: str) -> float | None:
    told = condition(status, kind)
    return moment_of(told.get("lastTransitionTime")) if told.get("status") == "True" else None


def _pulled(pod: str, container: str | None, events: Sequence[Object]) -> float | None:
    """When the container's image was first there, as the pod's events say."""
    about = {"name": pod, "fieldPath": f"spec.containers{{{container}}}"}
    told = (one for one in events if one.get("reason") == "Pulled" and about.items() <= one["involvedObject"].items())
    at = (moment_of(one.get("firstTimestamp") or one.get("eventTime")) for one in told)
    return min(filter(None, at), default=None)
