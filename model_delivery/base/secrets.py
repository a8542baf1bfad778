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
    """The value that ``ref`` names; a step's pod has it mounted below
    ``$MODEL_DELIVERY_SECRETS``.

    Refused when it is absent or empty, or only a cluster has it. Names the reference,
    never a value.
    """
    if isinstance(ref, KubeSecret):
        return _of_kubernetes(ref)
    if isinstance(ref, EnvSecret):
        value, where = os.environ.get(ref.env, ""), f"the environment variable {ref.env}"
        fix = f"set {ref.env} where the run starts (a worker's environment)"
    else:
        where, fix = f"the file {ref.file}", "write the secret into it, readable for the user who runs this"
        try:
            value = Path(ref.file).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            what = f"{where} cannot be read"
            raise Refused(Finding("secret.not-readable", what, type(error).__name__, fix)) from error
    if not value.strip():
        raise Refused(Finding("secret.empty", f"{where} holds no secret", "it is not set or empty", fix))
    return Secret(value.strip())


def bearer(ref: SecretRef | None) -> dict[str, str]:
    """The header of HTTP that carries it; none without a ``ref``."""
    return {"Authorization": f"Bearer {read_secret(ref).reveal()}"} if ref else {}


def _of_kubernetes(ref: KubeSecret) -> Secret:
    if (folder := os.environ.get(FOLDER)) is not None:
        return read_secret(FileSecret(file=str(Path(folder) / ref.kube.name / ref.kube.key)))
    if (read := _cluster.get()) is not None:
        return read(ref)
    what, fix = f"the secret {ref.kube.name} is Kubernetes'", "use {env: NAME} or {file: PATH}"
    raise Refused(Finding("secret.not-on-a-host", what, "this is a host", fix))
