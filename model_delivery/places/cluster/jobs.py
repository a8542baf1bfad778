"""What a cluster binds of a step's Job when it is put: the nodes near which it must run,
and how this machine reaches the hub.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from model_delivery.models.sources import ENDPOINTS
from model_delivery.places.cluster.client import Client, Forbidden, Status
from model_delivery.places.cluster.look import Look
from model_delivery.places.cluster.objects import Object
from model_delivery.places.cluster.room import allocatable
from model_delivery.targets.kubernetes.kinds import CONFIG_MAP, JOB, POD
from model_delivery.values import Resource

PASSED_ON = (
    *ENDPOINTS,
    "HTTPS_PROXY",
    "HTTP_PROXY",
    "NO_PROXY",
    "https_proxy",
    "http_proxy",
    "no_proxy",
)
ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
CERTIFICATES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE")
HOSTNAME = "kubernetes.io/hostname"


def bound(resource: Resource, body: Object, look: Look) -> Object:
    """``bind.near``: only nodes that have these resources, their taints tolerated.
    ``bind.hub``: endpoint, proxy and CA of this environment. ``bind.servers``: a release;
    the step's ``metrics`` are the addresses of its pods. A step without an image runs in
    ours.
    """
    needs = resource.spec.get("bind", {})
    if resource.ref.kind == CONFIG_MAP:
        _bind_input(body["data"], needs, resource.delivery, look)
    elif resource.ref.kind == JOB:
        _bind_pod(body["spec"]["template"]["spec"], needs, look)
    return body


def _bind_input(data: Object, needs: Mapping[str, Any], delivery: str, look: Look) -> None:
    if needs.get("servers"):
        metrics = list(look.servers(delivery, needs["servers"]))
        data["input.json"] = json.dumps(json.loads(data["input.json"]) | {"metrics": metrics})
    if needs.get("hub") and (text := _certificates()):
        data["ca.crt"] = text


def _bind_pod(pod: Object, needs: Mapping[str, Any], look: Look) -> None:
    step = pod["containers"][0]
    if needs.get("near"):
        _near(pod, needs["near"], look)
    if needs.get("hub"):
        given = {name: os.environ[name].replace("$", "$$") for name in PASSED_ON if os.environ.get(name)}
        given |= dict.fromkeys(CERTIFICATES, f"{needs['hub']}/ca.crt") if _certificates() else {}
        step["env"] += [{"name": name, "value": value} for name, value in given.items()]
    if step["image"] is None:
        step["image"] = own_image(look.space.client)


def _near(pod: Object, wanted: Mapping[str, int], look: Look) -> None:
    nodes = [node for node in look.nodes() if all(allocatable(node, key) >= least for key, least in wanted.items())]
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
    named = next((os.environ[name] for name in CERTIFICATES if os.environ.get(name)), "")
    return Path(named).read_text(encoding="utf-8") if named and Path(named).is_file() else ""


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
