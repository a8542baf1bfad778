"""Secrets are named, never passed: read where they are needed, and never shown."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from model_delivery.base.findings import Finding, Refused
from model_delivery.base.part import Part, Text


class EnvSecret(Part):
    """The value of an environment variable, read where it is needed."""

    env: Text


class FileSecret(Part):
    """The content of a file, read where it is needed."""

    file: Text


class KubeKey(Part):
    name: Text
    key: Text


class KubeSecret(Part):
    """A key of a Kubernetes Secret."""

    kube: KubeKey


SecretRef = EnvSecret | FileSecret | KubeSecret


class Secret:
    """A value that no repr, str or format shows."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def __repr__(self) -> str:
        return "Secret(***)"

    def reveal(self) -> str:
        return self._value


_cluster: ContextVar[Callable[[KubeSecret], Secret] | None] = ContextVar("cluster_secrets", default=None)
FOLDER = "MODEL_DELIVERY_SECRETS"


@contextmanager
def from_cluster(read: Callable[[KubeSecret], Secret]) -> Iterator[None]:
    """Inside, ``read`` looks Kubernetes' secrets up."""
    token = _cluster.set(read)
    try:
        yield
    finally:
        _cluster.reset(token)


def read_secret(ref: SecretRef) -> Secret:
    """The value that ``ref`` names. Refused when it is absent or empty, or only a cluster has it; a step's pod has it mounted below ``$MODEL_DELIVERY_SECRETS``. Names the reference, never a value."""
    value = where = fix = ""
    match ref:
        case EnvSecret(env=name):
            value, where, fix = (
                os.environ.get(name, ""),
                f"the environment variable {name}",
                f"set {name} where the run starts (a worker's environment)",
            )
        case FileSecret(file=path):
            where, fix = f"the file {path}", "write the secret into it, readable for the user who runs this"
            try:
                value = Path(path).read_text(encoding="utf-8").strip()
            except (OSError, UnicodeDecodeError) as error:
                raise Refused(Finding("todo", f"{where} cannot be read", type(error).__name__, fix)) from error
        case KubeSecret() if (folder := os.environ.get(FOLDER)) is not None:
            return read_secret(FileSecret(file=str(Path(folder) / ref.kube.name / ref.kube.key)))
        case KubeSecret() if (read := _cluster.get()) is not None:
            return read(ref)
        case KubeSecret():
            raise Refused(
                Finding(
                    "todo",
                    f"the secret {ref.kube.name} is Kubernetes'",
                    "this is a host",
                    "use {env: NAME} or {file: PATH}",
                )
            )
    if not value.strip():
        raise Refused(Finding("todo", f"{where} holds no secret", "it is not set or empty", fix))
    return Secret(value.strip())
