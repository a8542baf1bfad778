"""A provisioner of volumes that are folders of one node, of the kind ``local``: unlike a
hostPath, they take a pod's fsGroup.

It plays what a storage driver does for a class that waits for its first consumer: when
the scheduler has chosen a node for a claim it makes a volume there, grows it when the
claim asks for more, and removes it after its claim.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

from tests.parts.cluster.control_plane import Cluster

NAME = "test/folders"
CLASS = "folders"
PERIOD = 0.2
PATCH = {"Content-Type": "application/merge-patch+json"}
CHOSEN = "volume.kubernetes.io/selected-node"
Object = Mapping[str, Any]


def storage_class(name: str = CLASS, *, default: bool = False, growing: bool = True) -> dict[str, Any]:
    annotations = {"storageclass.kubernetes.io/is-default-class": "true"} if default else {}
    return {
        "apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": {"name": name, "annotations": annotations},
        "provisioner": NAME, "volumeBindingMode": "WaitForFirstConsumer", "allowVolumeExpansion": growing,
    }  # fmt: skip


class Provisioner:
    """Makes the class ``folders`` (not the default), and serves it and every other class
    of its kind while the block runs.
    """

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.folder = cluster.folder / "volumes"

    def __enter__(self) -> Self:
        self._cluster.apply(storage_class())
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(PERIOD):
            with suppress(
                httpx.HTTPError
            ):  # the API server is down for a test, or another was first: seen again in the next round
                self._serve()

    def _serve(self) -> None:
        ours = {
            one["metadata"]["name"]
            for one in self._cluster.listed("/apis/storage.k8s.io/v1/storageclasses")
            if one["provisioner"] == NAME
        }
        volumes = {one["metadata"]["name"]: one for one in self._cluster.listed("/api/v1/persistentvolumes")}
        for claim in self._cluster.listed("/api/v1/persistentvolumeclaims"):
            if claim["spec"].get("storageClassName") not in ours:
                continue
            bound = volumes.get(claim["spec"].get("volumeName", ""))
            if (
                bound is None
                and claim["metadata"].get("annotations", {}).get(CHOSEN)
                and f"pvc-{claim['metadata']['uid']}" not in volumes
            ):
                self._make(claim)
            elif bound is not None and claim["status"].get("phase") == "Bound":
                self._grow(claim)
        for name, volume in volumes.items():
            if volume["spec"].get("storageClassName") in ours and volume["status"].get("phase") == "Released":
                shutil.rmtree(volume["spec"]["local"]["path"], ignore_errors=True)
                self._cluster.client.delete(f"/api/v1/persistentvolumes/{name}").raise_for_status()

    def _make(self, claim: Object) -> None:
        meta = claim["metadata"]
        folder = self.folder / meta["uid"]
        folder.mkdir(parents=True, exist_ok=True)
        there = [{"key": "kubernetes.io/hostname", "operator": "In", "values": [meta["annotations"][CHOSEN]]}]
        volume = {
            "apiVersion": "v1", "kind": "PersistentVolume",
            "metadata": {"name": f"pvc-{meta['uid']}", "annotations": {"pv.kubernetes.io/provisioned-by": NAME}},
            "spec": {
                "capacity": {"storage": claim["spec"]["resources"]["requests"]["storage"]}, "accessModes": claim["spec"]["accessModes"],
                "claimRef": {"apiVersion": "v1", "kind": "PersistentVolumeClaim", **{k: meta[k] for k in ("name", "namespace", "uid")}},
                "persistentVolumeReclaimPolicy": "Delete", "storageClassName": claim["spec"]["storageClassName"],
                "local": {"path": str(folder)}, "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": there}]}},
            },
        }  # fmt: skip
        self._cluster.client.post("/api/v1/persistentvolumes", json=volume).raise_for_status()

    def _grow(self, claim: Object) -> None:
        asked = claim["spec"]["resources"]["requests"]["storage"]
        if claim["status"].get("capacity", {}).get("storage") == asked:
            return
        capacity = {"capacity": {"storage": asked}}
        meta = claim["metadata"]
        volume = f"/api/v1/persistentvolumes/{claim['spec']['volumeName']}"
        self._cluster.client.patch(volume, json={"spec": capacity}, headers=PATCH).raise_for_status()
        path = f"/api/v1/namespaces/{meta['namespace']}/persistentvolumeclaims/{meta['name']}/status"
        self._cluster.client.patch(path, json={"status": capacity}, headers=PATCH).raise_for_status()


def folder_of(volume: Object) -> Path:
    """Where a volume's files are, of ours and of the controller-manager's own host-path
    provisioner.
    """
    source = volume["spec"].get("local") or volume["spec"]["hostPath"]
    return Path(source["path"])
