"""What an engine in a pod compiled, kept on its claim or its node for its next start.

An init container tries whether it can be written, and only then links it to where the
engine's caches are anyway: a pod that cannot use it starts as without.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

from model_delivery.base import Object
from model_delivery.models.manifest import folder_name
from model_delivery.targets.protocol import Asked
from model_delivery.values import Lock, digest

FOLDER, NODE = "model-delivery-cache", "/var/cache/model-delivery"  # on a claim; on a node
MOUNT, VOLUME, CLAIM = "/var/cache/model-delivery", "cache", "models"
LINKED = {"vllm": "/tmp/cache/vllm", "triton": "/tmp/.triton", "flashinfer": "/tmp/.cache/flashinfer"}  # noqa: S108
TRY = """wrote() { mkdir -p "$1" && dd if=/dev/zero of="$1/.probe" bs=65536 count=16 2>/dev/null && rm "$1/.probe"; }
try() { wrote "$1" || { rm -f "$1/.probe"; false; }; }
link() { mkdir -p "${2%/*}" && ln -s "$1" "$2"; }
unused="[engine.cache-unusable] the engine starts without its cache: it cannot be written, or is full"
"""


def keep(pod: Object, engine: Object, asked: Asked, lock: Lock) -> None:
    """By ``serving.cache``; the GPU is not known before a pod is placed, and is part of
    vLLM's own names in the folder.
    """
    serving = asked.serving
    if serving.cache == "none":
        return
    code = {"args": serving.args, "env": serving.model_dump(mode="json")["env"], "limits": engine["resources"]}
    key = digest([lock.image, folder_name(lock.snapshot), code], 16)
    mount = {"name": CLAIM, "mountPath": MOUNT, "subPath": f"{FOLDER}/{asked.name}/{key}"}
    if serving.cache == "node":
        where = {"path": f"{NODE}/{asked.name}/{key}", "type": "DirectoryOrCreate"}
        pod["volumes"].append({"name": VOLUME, "hostPath": where})
        mount = {"name": VOLUME, "mountPath": MOUNT}
    else:  # one volume: a pod that names a claim twice never starts (kubernetes/kubernetes#127004)
        claim = next(volume for volume in pod["volumes"] if volume["name"] == CLAIM)
        del claim["persistentVolumeClaim"]["readOnly"]
    engine["volumeMounts"].append(mount)
    pod["initContainers"] = [*pod.get("initContainers", []), _tries(engine, mount)]


def used(pod: Mapping[str, Any]) -> Iterator[str]:
    """The folders on its claim, as seen from there."""
    for container in pod.get("containers", ()):
        folders = (str(mount.get("subPath", "")) for mount in container.get("volumeMounts") or ())
        yield from (folder for folder in folders if folder.startswith(f"{FOLDER}/"))


def _tries(engine: Object, mount: Object) -> Object:
    links = " && ".join(f"link {MOUNT}/{name} {path}" for name, path in LINKED.items())
    tried = " && ".join(f"try {MOUNT}/{name}" for name in LINKED)
    tmp = [one for one in engine["volumeMounts"] if one["name"] == "tmp"]
    made = {key: copy.deepcopy(engine[key]) for key in ("image", "securityContext", "resources")}
    for amounts in made["resources"].values():
        for name in [name for name in amounts if "/" in name]:
            del amounts[name]
    script = f'{TRY}if {tried}; then {links}; else echo "$unused"; fi\n'
    return {"name": "cache", "command": ["sh", "-c", script], "volumeMounts": [*tmp, dict(mount)], **made}
