"""What a cluster binds of a step's Job when it is put: the nodes near which it must run, and how this machine reaches the hub."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from model_delivery.base.findings import Finding
from model_delivery.places.cluster.look import Look
from model_delivery.places.cluster.objects import Object
from model_delivery.values.resources import Resource

PASSED_ON = (
    "HF_ENDPOINT",
    "MODELSCOPE_ENDPOINT",
    "HTTPS_PROXY",
    "HTTP_PROXY",
    "NO_PROXY",
    "https_proxy",
    "http_proxy",
    "no_proxy",
)
CERTIFICATES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE")
HOSTNAME = "kubernetes.io/hostname"


def passwords() -> Iterator[Finding]:
    """What of this environment a step's Job must not show."""
    for name in PASSED_ON:
        if "proxy" in name.lower() and urlsplit(os.environ.get(name, "")).password:
            why, fix = "the fetch Job's spec would show it", "use a proxy without a password in its address"
            yield Finding("secret.proxy-password", f"{name} holds a password", why, fix)


def bound(resource: Resource, body: Object, look: Look) -> Object:
    """``bind.near``: only nodes that have these resources, their taints tolerated. ``bind.hub``: endpoint, proxy and CA of this environment.

    ``bind.servers``: a release; the step's ``metrics`` are the addresses of its pods.
    """
    needs = resource.spec.get("bind", {})
    if needs.get("servers") and body["kind"] == "ConfigMap":
        given = json.loads(body["data"]["input.json"])
        body["data"]["input.json"] = json.dumps(
            given | {"metrics": list(look.servers(resource.delivery, needs["servers"]))}
        )
    if needs.get("near") and body["kind"] == "Job":
        _near(body["spec"]["template"]["spec"], needs["near"], look)
    if needs.get("hub") and body["kind"] == "ConfigMap":
        body["data"] |= {"ca.crt": text} if (text := _certificates()) else {}
    elif needs.get("hub"):
        env = body["spec"]["template"]["spec"]["containers"][0]["env"]
        env += [
            {"name": name, "value": os.environ[name].replace("$", "$$")} for name in PASSED_ON if os.environ.get(name)
        ]
        if _certificates():
            env += [{"name": name, "value": f"{needs['hub']}/ca.crt"} for name in CERTIFICATES]
    return body


def _near(pod: dict[str, Any], wanted: dict[str, int], look: Look) -> None:
    nodes = [
        n
        for n in look.nodes()
        if all(int(n["status"].get("allocatable", {}).get(k, 0)) >= v for k, v in wanted.items())
    ]
    if not nodes:
        return
    names = sorted(n["metadata"].get("labels", {}).get(HOSTNAME, n["metadata"]["name"]) for n in nodes)
    rule = {"key": HOSTNAME, "operator": "In", "values": names}
    required = (
        pod.setdefault("affinity", {})
        .setdefault("nodeAffinity", {})
        .setdefault("requiredDuringSchedulingIgnoredDuringExecution", {"nodeSelectorTerms": [{}]})
    )
    for term in required["nodeSelectorTerms"]:
        term["matchExpressions"] = [*term.get("matchExpressions", ()), rule]
    taints = {(t["key"], t["effect"]) for n in nodes for t in n["spec"].get("taints", ()) if t["key"] in wanted}
    pod["tolerations"] = [
        *pod.get("tolerations", ()),
        *({"key": k, "operator": "Exists", "effect": e} for k, e in sorted(taints)),
    ]


def _certificates() -> str:
    """The text of the CA file that the environment names; empty when it names none."""
    named = next((os.environ[name] for name in CERTIFICATES if os.environ.get(name)), "")
    return Path(named).read_text(encoding="utf-8") if named and Path(named).is_file() else ""
