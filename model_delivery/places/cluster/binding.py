"""What a cluster gives a resource when it is put: whether it can hold another release
beside those that run, and of a step's Job the nodes near which it must run, and how this
machine reaches the hub.
"""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

from model_delivery.base import Finding, NoRoom, Refused
from model_delivery.models.sources import ENDPOINTS
from model_delivery.places.cluster.client import Client, Forbidden, Status
from model_delivery.places.cluster.look import Look
from model_delivery.places.cluster.objects import Object, label, to_object
from model_delivery.targets.kubernetes.kinds import CONFIG_MAP, HTTP_ROUTE, JOB, POD
from model_delivery.targets.kubernetes.release import devices
from model_delivery.values import Resource

PROXIES = ("HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY")
PASSED_ON = (*ENDPOINTS, *PROXIES, *map(str.lower, PROXIES))
ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
CERTIFICATES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE")
HOSTNAME = "kubernetes.io/hostname"


def bound(resource: Resource, look: Look) -> Object:
    """The manifest. ``bind.near``: only nodes that have these resources, their taints
    tolerated. ``bind.hub``: endpoint, proxy and CA of this environment. ``bind.servers``:
    a release; the step's ``metrics`` are the addresses of its pods. A step without an
    image runs in ours.
    """
    needs, body = resource.spec.get("bind", {}), to_object(resource, look.client.namespace)
    if resource.ref.kind == CONFIG_MAP:
        _bind_input(body["data"], needs, resource.delivery, look)
    elif resource.ref.kind == JOB:
        _bind_pod(body["spec"]["template"]["spec"], needs, look)
    elif resource.ref.kind == HTTP_ROUTE and not look.knows_timeouts:
        for rule in body["spec"]["rules"]:
            rule.pop("timeouts")
    return body


def _bind_input(data: Object, needs: Object, delivery: str, look: Look) -> None:
    if needs.get("servers"):
        metrics = list(look.servers(delivery, needs["servers"]))
        data["input.json"] = json.dumps(json.loads(data["input.json"]) | {"metrics": metrics})
    if needs.get("hub") and (text := _certificates()):
        data["ca.crt"] = text


def _bind_pod(pod: Object, needs: Object, look: Look) -> None:
    step = pod["containers"][0]
    if needs.get("near"):
        _near(pod, needs["near"], look)
    if needs.get("hub"):
        if shown := exposed():
            raise Refused(*shown)
        given = {name: os.environ[name].replace("$", "$$") for name in PASSED_ON if os.environ.get(name)}
        given |= dict.fromkeys(CERTIFICATES, f"{needs['hub']}/ca.crt") if _certificates() else {}
        step["env"] += [{"name": name, "value": value} for name, value in given.items()]
    if step["image"] is None:
        step["image"] = own_image(look.client)


def exposed() -> list[Finding]:
    """What would be passed on to a step's Job, for all who may read it, and holds a user
    or a password.
    """
    why = "the steps' Jobs would show it to whoever may read them"
    fix = "use an address without one: a proxy that needs none, a hub's token in model.token"
    held = [name for name in PASSED_ON if "@" in os.environ.get(name, "")]
    return [Finding("secret.in-environment", f"{name} holds a user or a password", why, fix) for name in held]


def _near(pod: Object, wanted: dict[str, int], look: Look) -> None:
    nodes = [node for node in look.nodes() if all(_allocatable(node, key) >= least for key, least in wanted.items())]
    if not nodes:
        return
    names = sorted(node["metadata"].get("labels", {}).get(HOSTNAME, node["metadata"]["name"]) for node in nodes)
    affinity = pod.setdefault("affinity", {}).setdefault("nodeAffinity", {})
    required = affinity.setdefault("requiredDuringSchedulingIgnoredDuringExecution", {"nodeSelectorTerms": [{}]})
    for term in required["nodeSelectorTerms"]:
        rule = {"key": HOSTNAME, "operator": "In", "values": names}
        term["matchExpressions"] = [*term.get("matchExpressions", ()), rule]
    taints = {(t["key"], t["effect"]) for node in nodes for t in node["spec"].get("taints", ()) if t["key"] in wanted}
    tolerated = [{"key": key, "operator": "Exists", "effect": effect} for key, effect in sorted(taints)]
    pod["tolerations"] = [*pod.get("tolerations", ()), *tolerated]


def _certificates() -> str:
    """The text of the CA file that the environment names; empty when it names none."""
    named = Path(next(filter(None, map(os.environ.get, CERTIFICATES)), ""))
    return named.read_text(encoding="utf-8") if named.is_file() else ""


def own_image(client: Client) -> str | None:
    """The image of the pod that this runs in; None outside of a cluster, or where we may
    not see it.
    """
    if not ACCOUNT.exists():
        return None
    namespace, name = ACCOUNT.read_text(encoding="utf-8").strip(), os.environ.get("HOSTNAME", socket.gethostname())
    try:
        return str(client.call("GET", POD.path(namespace, name))["spec"]["containers"][0]["image"])
    except (Status, Forbidden):
        return None


def check(look: Look, resource: Resource, body: Object, live: Object | None) -> None:
    """NoRoom (exit code 3) names the devices that are missing; CPUs and memory are the
    scheduler's to judge.

    Nothing is refused where nodes or pods may not be seen, or where none has such devices
    yet.
    """
    demand = resource.ref.kind.demand
    asked, there = (demand(manifest) if demand and manifest else {} for manifest in (body, live))
    new = [release for name, release in asked.items() if name not in there and release[1]]
    pods = look.everybodys_pods() if new else None
    if pods is None or not any(label(pod, "delivery") == resource.delivery for pod in pods):
        return
    pods = [pod for pod in pods if label(pod, "release") not in look.leaving]
    if resource.release is None:  # it holds every release: those that leave it make room
        pods = [pod for pod in pods if label(pod, "delivery") != resource.delivery or label(pod, "release") in asked]
    for replicas, wanted in new:
        for device, count in wanted.items():
            _fits(look, pods, replicas, device, count)


def _fits(look: Look, pods: list[Object], replicas: int, device: str, count: int) -> None:
    there = {node["metadata"]["name"]: _allocatable(node, device) for node in look.nodes()}
    free = dict(there)
    for pod in pods:
        if (node := pod["spec"].get("nodeName")) in free:
            free[node] -= devices(pod["spec"]["containers"]).get(device, 0)
    left = [max(0, number) for number in free.values()]
    if any(there.values()) and sum(number // count for number in left) < replicas:
        raise NoRoom(
            Finding(
                "cluster.no-room",
                "the cluster cannot hold both releases",
                f"{count * replicas} × {device} wanted, {sum(left)} of {sum(there.values())} free",
                "use rollout.when_full: recreate (stops the old release first), or add nodes",
            )
        )


def _allocatable(node: Object, device: str) -> int:
    return int(node["status"].get("allocatable", {}).get(device, 0))
