"""What an engine in a pod compiled, kept on its claim or its node for its next start.

An init container, which never fails, tries whether it can be used, and only then links it
to where the engine's caches are anyway: a pod that cannot use it starts as without.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

from model_delivery.base import Object
from model_delivery.base.manifests import script
from model_delivery.diagnosis.pod_caches import CONTAINER
from model_delivery.models.manifest import folder_name
from model_delivery.targets.protocol import Asked
from model_delivery.values import Lock, digest

FOLDER, NODE = "model-delivery-cache", "/var/cache/model-delivery"  # on a claim; on a node
MOUNT, WHOLE = "/var/cache/model-delivery", "/mnt/cache"  # the engine's; all of the volume
VOLUME, CLAIM = CONTAINER, "models"


def keep(pod: Object, engine: Object, asked: Asked, lock: Lock) -> None:
    """By ``serving.cache``; the GPU is not known before a pod is placed, and is part of
    vLLM's own names in the folder. Where it is a claim, the pod's volume ``models`` is
    that.
    """
    serving = asked.serving
    if serving.cache == "none":
        return
    code = {"args": serving.args, "env": serving.model_dump(mode="json")["env"], "limits": engine["resources"]}
    folder = f"{asked.name}/{digest([lock.image, folder_name(lock.snapshot), code], 16)}"
    if serving.cache == "node":
        volume = VOLUME
        pod["volumes"].append({"name": volume, "hostPath": {"path": NODE, "type": "DirectoryOrCreate"}})
    else:  # one volume: a pod that names a claim twice never starts (kubernetes/kubernetes#127004)
        volume, folder = CLAIM, f"{FOLDER}/{folder}"
        claim = next(volume for volume in pod["volumes"] if volume["name"] == CLAIM)
        claim["persistentVolumeClaim"].pop("readOnly", None)
    engine["volumeMounts"].append({"name": volume, "mountPath": MOUNT, "subPath": folder})
    pod["initContainers"] = [*pod.get("initContainers", []), _tries(engine, volume, folder)]


def used(pod: Mapping[str, Any]) -> Iterator[str]:
    """The folders on its claim, as seen from there."""
    for container in pod.get("containers", ()):
        folders = (str(mount.get("subPath", "")) for mount in container.get("volumeMounts") or ())
        yield from (folder for folder in folders if folder.startswith(f"{FOLDER}/"))


def left_out(made: Any) -> Any:
    """What is made of a payload, without what keeps a cache."""
    if isinstance(made, dict):
        parts = {key: (one, left_out(one)) for key, one in made.items()}
        return {key: left for key, (one, left) in parts.items() if left or not one}
    return [left_out(one) for one in made if not _ours(one)] if isinstance(made, list) else made


def _ours(one: Any) -> bool:
    return isinstance(one, dict) and (one.get("name") == CONTAINER or one.get("mountPath") == MOUNT)


def _tries(engine: Object, volume: str, folder: str) -> Object:
    """Its folder is made here, as the pod's user: a kubelet would make it for root, or
    could not, and the engine would never start.
    """
    tmp = [one for one in engine["volumeMounts"] if one["name"] == "tmp"]
    made = {key: copy.deepcopy(engine[key]) for key in ("image", "securityContext", "resources")}
    for amounts in made["resources"].values():
        for name in [name for name in amounts if "/" in name]:
            del amounts[name]
    command = ["sh", "-c", script("cache.sh"), CONTAINER, f"{WHOLE}/{folder}", MOUNT]
    mounts = [*tmp, {"name": volume, "mountPath": WHOLE}]
    return {"name": CONTAINER, "command": command, "volumeMounts": mounts, **made}
