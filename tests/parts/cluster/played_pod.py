"""What a played pod is made of: its mounted files, its variables and its containers'
words, as they are for a child process.

A child has no mounts, no network and no DNS of its own. So each of its paths below a
mount, each name of a Service and the address ``0.0.0.0`` is rewritten to where the thing
really is, in arguments, variables and mounted text.
"""

from __future__ import annotations

import base64
import os
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.parts.cluster.control_plane import Cluster
from tests.parts.cluster.provisioner import folder_of

Object = Mapping[str, Any]
LAST_WORDS = "/dev/termination-log"
KEPT = ("PATH", "HOME", "PYTHONPATH", "LANG", "VIRTUAL_ENV")


def loopback(address: str) -> str:
    """Where the address of a pod or a Service really is: the same one, in 127/8 (the API
    refuses loopback in an EndpointSlice).
    """
    return re.sub(r"^\d+", "127", address)


@dataclass(frozen=True)
class Container:
    """``waiting``: why it cannot start, in the kubelet's words."""

    command: tuple[str, ...]
    environ: Mapping[str, str]
    waiting: tuple[str, str] | None = None


class Scene:
    """One pod's folder: ``volumes/NAME`` and ``logs/CONTAINER-TRY``."""

    def __init__(self, cluster: Cluster, pod: Object, address: str, folder: Path) -> None:
        self.cluster, self.pod, self.address, self.folder = cluster, pod, address, folder
        self.namespace = pod["metadata"]["namespace"]
        self.names: dict[str, str] = {}
        self._mounted: dict[str, Path] = {}

    def _services(self) -> dict[str, str]:
        listed = self.cluster.client.get("/api/v1/services").raise_for_status().json()["items"]
        return {
            f"{one['metadata']['name']}.{one['metadata']['namespace']}.svc": loopback(one["spec"]["clusterIP"])
            for one in listed
            if one["spec"].get("clusterIP", "None") != "None"
        }

    def container(self, spec: Object, entrypoint: tuple[str, ...]) -> Container:
        """How to start it; a missing Secret or ConfigMap is what keeps it waiting."""
        self.names = self._services()
        try:
            environ = self._environ(spec)
            mounts = {
                one["mountPath"].rstrip("/"): self._volume(one["name"]) / one.get("subPath", "")
                for one in spec.get("volumeMounts", ())
            }
            mounts[LAST_WORDS] = self._words_of(spec["name"])
        except LookupError as missing:
            return Container((), {}, ("CreateContainerConfigError", str(missing.args[0])))
        expanded = [_expand(word, environ) for word in (*spec.get("command", ()), *spec.get("args", ()))]
        everywhere = (word.replace("0.0.0.0", self.address) for word in entrypoint)
        image = (
            () if spec.get("command") else tuple(everywhere)
        )  # the image's own words name this machine's files already
        kept = {name: os.environ[name] for name in KEPT if name in os.environ}
        kept["PATH"] = (
            f"{Path(sys.executable).parent}:{kept.get('PATH', os.defpath)}"  # ``python`` has the project, as in its image
        )
        place = self._placer(mounts)
        return Container(
            (*image, *map(place, expanded)), kept | {name: place(value) for name, value in environ.items()}
        )

    def last_words(self, container: str) -> dict[str, str]:
        """Its termination message, as its status has it."""
        said = self._words_of(container)
        return {"message": said.read_text()} if said.exists() else {}

    def _words_of(self, container: str) -> Path:
        return self.folder / f"termination-{container}"

    def _placer(self, mounts: Mapping[str, Path]) -> Callable[[str], str]:
        """Rewrites text; the mounted files' own text is rewritten here too."""

        def place(text: str) -> str:
            for name, address in self.names.items():
                text = re.sub(rf"\b{re.escape(name)}(\.cluster\.local)?\b", address, text)
            for path, real in sorted(mounts.items(), reverse=True):
                text = re.sub(rf"(?<![\w/.-]){re.escape(path)}(?=/|$|[\s\"',:;])", str(real), text)
            text = re.sub(
                rf"(?<![\w.]){re.escape(self.cluster.subnet)}\.\d+(?=[:/\s\"']|$)",
                lambda found: loopback(found[0]),
                text,
            )
            return text.replace("0.0.0.0", self.address)

        for name, folder in self._mounted.items():
            if self._source(name).keys() & {"configMap", "secret", "projected"}:
                for file in folder.rglob("*"):
                    if file.is_file() and (text := file.read_text()) != place(
                        text
                    ):  # a container that runs already may be reading it
                        file.write_text(place(text))
        return place

    def _source(self, name: str) -> Object:
        found: Object = next(one for one in self.pod["spec"]["volumes"] if one["name"] == name)
        return found

    def _volume(self, name: str) -> Path:
        if name not in self._mounted:
            self._mounted[name] = self._mount(self._source(name), self.folder / "volumes" / name)
        return self._mounted[name]

    def _mount(self, volume: Object, folder: Path) -> Path:
        if claim := volume.get("persistentVolumeClaim"):
            bound = self._read("persistentvolumeclaims", claim["claimName"])
            found = (
                self.cluster.client.get(f"/api/v1/persistentvolumes/{bound['spec']['volumeName']}")
                .raise_for_status()
                .json()
            )
            real = folder_of(found)
            real.mkdir(parents=True, exist_ok=True)
            return real
        if host := volume.get("hostPath"):
            folder = self.cluster.folder / "host" / host["path"].strip("/")
        folder.mkdir(parents=True, exist_ok=True)
        sources = volume["projected"]["sources"] if "projected" in volume else [volume]
        for source in sources:
            for path, content in self._files(source).items():
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                (folder / path).write_bytes(content)
        return folder

    def _files(self, source: Object) -> dict[str, bytes]:
        """Of a ConfigMap or Secret; none of an emptyDir, a token and the rest."""
        if given := source.get("configMap"):
            data = self.config(given["name"])
        elif given := source.get("secret"):
            data = self.secret(given.get("secretName") or given["name"])
        else:
            return {}
        items = given.get("items") or [{"key": key, "path": key} for key in data]
        return {item["path"]: data[item["key"]] for item in items}

    def config(self, name: str) -> dict[str, bytes]:
        found = self._read("configmaps", name)
        text = {key: value.encode() for key, value in found.get("data", {}).items()}
        return text | {key: base64.b64decode(value) for key, value in found.get("binaryData", {}).items()}

    def secret(self, name: str) -> dict[str, bytes]:
        return {key: base64.b64decode(value) for key, value in self._read("secrets", name).get("data", {}).items()}

    def _read(self, kind: str, name: str) -> dict[str, Any]:
        answer = self.cluster.client.get(f"/api/v1/namespaces/{self.namespace}/{kind}/{name}")
        if answer.status_code == 404:
            raise LookupError(f'{kind.removesuffix("s")} "{name}" not found')
        found: dict[str, Any] = answer.raise_for_status().json()
        return found

    def _environ(self, spec: Object) -> dict[str, str]:
        made: dict[str, str] = {}
        for one in spec.get("envFrom", ()):
            given = (
                self.config(one["configMapRef"]["name"])
                if "configMapRef" in one
                else self.secret(one["secretRef"]["name"])
            )
            made.update({one.get("prefix", "") + key: value.decode() for key, value in given.items()})
        for one in spec.get("env", ()):
            value = self._value(one)
            if value is not None:
                made[one["name"]] = _expand(value, made)
        return made

    def _value(self, variable: Object) -> str | None:
        """None: an optional reference to nothing."""
        source = variable.get("valueFrom")
        if not source:
            return str(variable.get("value", ""))
        if field := source.get("fieldRef"):
            facts = {"status.podIP": self.address, "spec.nodeName": self.pod["spec"]["nodeName"]}
            facts |= {f"metadata.{name}": str(self.pod["metadata"][name]) for name in ("name", "namespace", "uid")}
            return str(facts[field["fieldPath"]])
        (kind, key) = next((kind, ref) for kind, ref in source.items() if kind in ("secretKeyRef", "configMapKeyRef"))
        try:
            data = (self.secret if kind == "secretKeyRef" else self.config)(key["name"])
            if key["key"] not in data:
                raise LookupError(
                    f"couldn't find key {key['key']} in {kind.removesuffix('KeyRef')} {self.namespace}/{key['name']}"
                )
        except LookupError:
            if key.get("optional"):
                return None
            raise
        return data[key["key"]].decode()


def _expand(text: str, environ: Mapping[str, str]) -> str:
    """``$(NAME)`` of a known variable; ``$$(NAME)`` is ``$(NAME)``."""
    return re.sub(r"\$\$|\$\((\w[\w.-]*)\)", lambda m: "$" if m[0] == "$$" else environ.get(m[1], m[0]), text)
