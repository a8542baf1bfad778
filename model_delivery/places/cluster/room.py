"""Can the cluster hold another release beside those that run? Only devices are counted:
CPUs and memory are the scheduler's to judge.
"""

from __future__ import annotations

from collections.abc import Sequence

from model_delivery.base import Finding, NoRoom
from model_delivery.places.cluster.look import Look
from model_delivery.places.cluster.objects import Object, label
from model_delivery.targets.kubernetes.release import devices
from model_delivery.values import Resource


def check(look: Look, resource: Resource, body: Object, live: Object | None) -> None:
    """NoRoom (exit code 3) names the devices that are missing.

    Nothing is refused where nodes or pods may not be seen, or where none has such devices
    yet.
    """
    demand = resource.ref.kind.demand
    asked, there = (demand(manifest) if demand and manifest else {} for manifest in (body, live))
    new = [release for name, release in asked.items() if name not in there and release[1]]
    pods = look.everybodys_pods() if new else None
    if pods is None or not any(label(pod, "delivery") == resource.delivery for pod in pods):
        return
    if resource.release is None:  # it holds every release: those that leave it make room
        pods = [pod for pod in pods if label(pod, "delivery") != resource.delivery or label(pod, "release") in asked]
    for replicas, wanted in new:
        for device, count in wanted.items():
            _fits(look.nodes(), pods, replicas, device, count)


def _fits(nodes: Sequence[Object], pods: list[Object], replicas: int, device: str, count: int) -> None:
    total = sum(allocatable(node, device) for node in nodes)
    free = [_free(node, pods, device) for node in nodes]
    if total and sum(left // count for left in free) < replicas:
        why = f"{count * replicas} × {device} wanted, {sum(free)} of {total} free"
        fix = "use rollout.when_full: recreate (stops the old release first), or add nodes"
        raise NoRoom(Finding("cluster.no-room", "the cluster cannot hold both releases", why, fix))


def allocatable(node: Object, device: str) -> int:
    return int(node["status"].get("allocatable", {}).get(device, 0))


def _free(node: Object, pods: list[Object], device: str) -> int:
    here = (pod["spec"] for pod in pods if pod["spec"].get("nodeName") == node["metadata"]["name"])
    return max(0, allocatable(node, device) - sum(devices(pod["containers"]).get(device, 0) for pod in here))
