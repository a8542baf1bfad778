"""Who has a claim that one node at a time can mount."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

Object = Mapping[str, Any]
REMEDY = "use rollout.strategy: recreate, or a claim that many nodes can mount (storage.access: ReadWriteMany)"


def claims(pod: Object) -> list[str]:
    """By their names, those that a pod's ``spec`` mounts."""
    mounted = (volume.get("persistentVolumeClaim") for volume in pod.get("volumes") or ())
    return [claim["claimName"] for claim in mounted if claim is not None]


def holder(names: Iterable[str], pods: Iterable[Object]) -> Object | None:
    """Of the ``pods``, the one that mounts one of the claims on its node."""
    wanted = set(names)
    at = [pod for pod in pods if pod["spec"].get("nodeName") and wanted & set(claims(pod["spec"]))]
    return next((pod for pod in at if pod["status"].get("phase") == "Running"), None)


def held(pod: Object, pods: Iterable[Object]) -> str:
    """What keeps ``pod`` from its claim, where it is another of the ``pods``."""
    one = holder(claims(pod["spec"]), (other for other in pods if other is not pod))
    if one is None or one["spec"]["nodeName"] == pod["spec"].get("nodeName"):
        return ""
    both = ", ".join(sorted({*claims(pod["spec"])} & {*claims(one["spec"])}))
    return f"the claim {both} is held on {one['spec']['nodeName']} by the pod {one['metadata']['name']}"
