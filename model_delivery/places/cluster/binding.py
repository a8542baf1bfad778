"""What a cluster gives a resource when it is put: whether it can hold another release
beside those that run, and of a step's Job the nodes near which it must run, and how this
machine reaches the hub.
"""

from __future__ import annotations

import copy
import json
import os
import socket
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from model_delivery.base import Finding, NoRoom, Refused
from model_delivery.diagnosis import holding
from model_delivery.diagnosis.scheduling import number
from model_delivery.models.sources import ENDPOINTS
from model_delivery.places.cluster import claims
from model_delivery.places.cluster.client import Client, Forbidden, Status
from model_delivery.places.cluster.look import Look
from model_delivery.places.cluster.objects import Object, label, to_object
from model_delivery.targets.kubernetes.kinds import CONFIG_MAP, HTTP_ROUTE, JOB, POD
from model_delivery.targets.kubernetes.release import IDENTITY, devices
from model_delivery.values import Resource

PROXIES = ("HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY")
PASSED_ON = (*ENDPOINTS, *PROXIES, *map(str.lower, PROXIES))
ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
CERTIFICATES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE")
HOSTNAME = "kubernetes.io/hostname"
REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"
OURS_BY = "model-delivery/delivery"
OURS = 1000  # the user and group that the manifests name


def bound(resource: Resource, look: Look, live: Object | None = None) -> Object:
    """The manifest. ``bind.near``: only nodes that have these resources, their taints
    tolerated. ``bind.beside``: claims whose node it is to run on. ``bind.hub``: endpoint,
    proxy and CA of this environment. ``bind.servers``: a release; the step's ``metrics``
    are the addresses of its pods; ``bind.replicas``: the step's ``replicas`` are those
    that are ready, by name, where there are several. A step without an image runs in
    ours. What mounts a claim of one node runs where a pod has it. Where the namespace
    gives its pods users, ours have none of their own.
    """
    needs, body = resource.spec.get("bind", {}), to_object(resource, look.client.namespace)
    if resource.ref.kind == CONFIG_MAP:
        _bind_input(body["data"], needs, resource.delivery, look)
    elif resource.ref.kind == JOB:
        _bind_pod(body["spec"]["template"]["spec"], needs, look)
    elif resource.ref.kind == HTTP_ROUTE:
        _bind_route(body["spec"], look)
    elif not needs.get("adopted"):  # which comes back as it was
        _join(body, resource.delivery, live, look)
    _unfix(body, live, look)
    return body


def pod_of(manifest: Object) -> Object:
    """The part of an object that says how its pods are; empty where it makes none."""
    spec = manifest.get("spec") or {}
    pod: Object = spec.get("predictor") or (spec.get("template") or {}).get("spec") or {}
    return pod


def _unfix(body: Object, live: Object | None, look: Look) -> None:
    """What runs as the manifests' user already goes on so."""
    context, there = (pod_of(manifest or {}).get("securityContext") or {} for manifest in (body, live))
    fixed = [name for name in IDENTITY if context.get(name) == OURS and there.get(name) != OURS]
    if fixed and look.gives_users:
        pod_of(body)["securityContext"] = {name: value for name, value in context.items() if name not in fixed}


def _bind_route(spec: Object, look: Look) -> None:
    for rule in () if look.knows_timeouts else spec["rules"]:
        rule.pop("timeouts")


def _bind_input(data: Object, needs: Object, delivery: str, look: Look) -> None:
    more: Object = {}
    if needs.get("servers"):
        more = {"metrics": [server.url for server in look.servers(delivery, needs["servers"])]}
    if needs.get("replicas") and len(ready := look.servers(delivery, needs["replicas"], ready=True)) > 1:
        more = {"replicas": {server.ref.name: server.url for server in ready}}
    if more:
        data["input.json"] = json.dumps(json.loads(data["input.json"]) | more)
    if needs.get("hub") and (text := _certificates()):
        data["ca.crt"] = text


def _bind_pod(pod: Object, needs: Object, look: Look) -> None:
    step = pod["containers"][0]
    held = _holder(needs.get("beside") or _mounted(pod), look) if needs.get("near") is not None else None
    if held or needs.get("near"):
        _near(pod, needs["near"], look, held["spec"]["nodeName"] if held else None)
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


def _near(pod: Object, wanted: dict[str, int], look: Look, only: str | None) -> None:
    """``only``: the node that has the claim, whatever else it has."""

    def fits(node: Object) -> bool:
        name = node["metadata"]["name"]
        return name == only if only else all(_allocatable(node, key) >= least for key, least in wanted.items())

    nodes = [node for node in look.nodes() if fits(node)]
    if not nodes and not only:
        return
    names = sorted(node["metadata"].get("labels", {}).get(HOSTNAME, node["metadata"]["name"]) for node in nodes)
    affinity = pod.setdefault("affinity", {}).setdefault("nodeAffinity", {})
    required = affinity.setdefault(REQUIRED, {"nodeSelectorTerms": [{}]})
    field, key = ("matchFields", "metadata.name") if only else ("matchExpressions", HOSTNAME)
    for term in required["nodeSelectorTerms"]:
        rule = {"key": key, "operator": "In", "values": [only] if only else names}
        term[field] = [*term.get(field, ()), rule]
    taints = {(t["key"], t["effect"]) for node in nodes for t in node["spec"].get("taints", ()) if t["key"] in wanted}
    tolerated = [{"key": key, "operator": "Exists", "effect": effect} for key, effect in sorted(taints)]
    pod["tolerations"] = [*pod.get("tolerations", ()), *tolerated]


def _holder(mounted: Collection[str], look: Look) -> Mapping[str, Any] | None:
    """The pod that has one of the claims, where that is one of one node."""
    names = claims.on_one_node(look, mounted)
    return holding.holder(names, look.listed(POD)) if names else None


def _mounted(pod: Object) -> list[str]:
    uri = str((pod.get("model") or {}).get("storageUri", ""))
    return [*holding.claims(pod), *([uri.split("/")[2]] if uri.startswith("pvc://") else [])]


def _join(body: Object, delivery: str, live: Object | None, look: Look) -> None:
    """A new release goes where the pods are that have its claim, wherever they go; what
    is there stays as it was made.
    """
    pod = pod_of(body)
    if live:
        terms = [term for term in _joined(pod_of(live)) if OURS_BY in json.dumps(term)]
    else:
        held = _holder(_mounted(pod), look)
        names = sorted({delivery, str(label(held, "delivery"))}) if held and label(held, "role") == "release" else []
        rules = {OURS_BY: names, "model-delivery/role": ["release"]}
        expressions = [{"key": key, "operator": "In", "values": values} for key, values in rules.items()]
        term = {"labelSelector": {"matchExpressions": expressions}, "topologyKey": HOSTNAME}
        terms = [term] if names else []
    if terms:
        pod["affinity"] = copy.deepcopy(pod.get("affinity") or {})
        pod["affinity"].setdefault("podAffinity", {})[REQUIRED] = [*_joined(pod), *terms]


def _joined(pod: Object) -> list[Object]:
    affinity = (pod.get("affinity") or {}).get("podAffinity") or {}
    return list(affinity.get(REQUIRED) or ())


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
    names = claims.on_one_node(look, _mounted(pod_of(body)))
    held = holding.holder(names, (pod for pod in pods if pod["metadata"]["namespace"] == look.client.namespace))
    for replicas, wanted in new:
        for device, count in wanted.items():
            _fits(look, pods, replicas, device, count, held)


def _fits(
    look: Look, pods: list[Object], replicas: int, device: str, count: int, held: Mapping[str, Any] | None
) -> None:
    only = held["spec"]["nodeName"] if held else None
    nodes = {node["metadata"]["name"]: node for node in look.nodes()}
    there = {name: _allocatable(node, device) for name, node in nodes.items() if only in (None, name)}
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
                f"{count * replicas} × {device} wanted, {sum(left)} of {sum(there.values())} free"
                + (f" on {only}, where the pod {held['metadata']['name']} has the claim" if held else ""),
                "use rollout.when_full: recreate (stops the old release first), or add nodes",
            )
        )


def _allocatable(node: Object, device: str) -> int:
    return int(number(node["status"].get("allocatable", {}).get(device, 0)))
