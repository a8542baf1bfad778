"""Can the cluster hold another release beside those that run? Only devices are counted: CPUs and memory are the scheduler's to judge."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from model_delivery.base.findings import Finding, NoRoom
from model_delivery.places.cluster.look import Look
from model_delivery.places.cluster.objects import Object
from model_delivery.values.resources import Resource


def check(look: Look, resource: Resource, body: Object, live: Object | None) -> None:
    """NoRoom (exit code 3) names the devices that are missing. Nothing is refused where nodes or pods may not be seen, or where none has such devices yet."""
    wanted = [(replicas, device, count) for replicas, asked in _new(body, live) for device, count in asked.items()]
    if not wanted:
        return
    pods = look.everybodys_pods()
    nodes = look.nodes()
    if pods is None or not any(_label(pod, "delivery") == resource.delivery for pod in pods):
        return
    if body["kind"] == "MLService":  # releases that leave it make room
        stay = {one["name"] for one in body["spec"]["releases"]}
        pods = [pod for pod in pods if _label(pod, "delivery") != resource.delivery or _label(pod, "release") in stay]
    for replicas, device, count in wanted:
        free = sum(_free(node, pods, device) // count for node in nodes)
        if any(_allocatable(node, device) for node in nodes) and free < replicas:
            total = sum(_allocatable(node, device) for node in nodes)
            left = sum(_free(node, pods, device) for node in nodes)
            why = f"{count * replicas} × {device} wanted, {left} of {total} free"
            fix = "use rollout.when_full: recreate (stops the old release first), or add nodes"
            raise NoRoom(Finding("todo", "the cluster cannot hold both releases", why, fix))


def _new(body: Object, live: Object | None) -> Iterator[tuple[int, dict[str, int]]]:
    """Replicas and devices of each release that ``body`` would add to what is live."""
    match body["kind"]:
        case "Deployment" if live is None:
            yield body["spec"]["replicas"], devices(body["spec"]["template"]["spec"])
        case "InferenceService" if live is None:
            predictor = body["spec"]["predictor"]
            yield (
                int(predictor.get("minReplicas", 1)),
                devices({"containers": [predictor["model"]] if "model" in predictor else predictor["containers"]}),
            )
        case "MLService":
            known = {one["name"] for one in live["spec"]["releases"]} if live else set()
            for one in body["spec"]["releases"]:
                if one["name"] not in known:
                    yield (
                        int(one["predictor"].get("minReplicas", 1)),
                        devices({"containers": one["predictor"].get("containersResources", ())}),
                    )


def _label(pod: Mapping[str, Any], name: str) -> str | None:
    said: str | None = (pod["metadata"].get("labels") or {}).get(f"model-delivery/{name}")
    return said


def devices(pod: Mapping[str, Any]) -> dict[str, int]:
    """The extended resources (``vendor/device``) that a pod asks for."""
    asked: dict[str, int] = {}
    for container in pod["containers"]:
        for name, count in container.get("resources", {}).get("limits", {}).items():
            if "/" in name:
                asked[name] = asked.get(name, 0) + int(count)
    return asked


def _allocatable(node: Mapping[str, Any], device: str) -> int:
    return int(node["status"].get("allocatable", {}).get(device, 0))


def _free(node: Mapping[str, Any], pods: list[Object], device: str) -> int:
    here = (p for p in pods if p["spec"].get("nodeName") == node["metadata"]["name"])
    return max(0, _allocatable(node, device) - sum(devices(p["spec"]).get(device, 0) for p in here))
