"""Secrets are named, never passed: read where they are needed, and never shown."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from model_delivery.base.durable import read_file
from model_delivery.base.findings import Finding, Refused
from model_delivery.base.part import Part, Text
from model_delivery.base.scrubbing import learn


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
    """A value that no repr, str or format shows, and that findings, progress and reports
    are scrubbed of.
    """

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value
        for line in {value, *value.splitlines()}:
            learn(line)

    def __repr__(self) -> str:
        return "Secret(***)"

    def reveal(self) -> str:
        return self._value


_cluster: ContextVar[Callable[[KubeSecret], Secret] | None] = ContextVar("cluster_secrets", default=None)
LARGEST = 1024 * 1024
FOLDER = "MODEL_DELIVERY_SECRETS"


@contextmanager
def from_cluster(read: Callable[[KubeSecret], Secret]) -> Iterator[None]:
    """Inside, ``read`` looks Kubernetes' secrets up."""
    token = _cluster.set(read)
    try:
        yield
    finally:
        _cluster.reset(token)


def read_secret(ref: SecretRef, *, lines: bool = False) -> Secret:
    """The value that ``ref`` names; a step's pod has it mounted below
    ``$MODEL_DELIVERY_SECRETS``. ``lines``: it may have several, as a file of logins has.

    Refused when it is absent, empty or no text, or only a cluster has it. Names the
    reference, never a value.
    """
    if isinstance(ref, KubeSecret):
        return _of_kubernetes(ref, lines=lines)
    if isinstance(ref, EnvSecret):
        where = f"the environment variable {ref.env}"
        fix = f"set {ref.env} where the run starts (a worker's environment)"
        return secret(os.environb.get(os.fsencode(ref.env), b""), where, fix, lines=lines)
    where, fix = f"the file {ref.file}", "write the secret into it, readable for the user who runs this"
    try:
        return secret(read_file(Path(ref.file), LARGEST, links=True), where, fix, lines=lines)
    except OSError as error:
        why = error.strerror or type(error).__name__
        raise Refused(Finding("secret.not-readable", f"{where} cannot be read", why, fix)) from None


def secret(content: bytes, where: str, fix: str, *, lines: bool = False) -> Secret:
    """``content`` as a secret: text of one line, without the blanks around it. Refused
    when it is none: whoever quotes a header that cannot be sent would quote it.
    """
    if not content.strip():
        raise Refused(Finding("secret.empty", f"{where} holds no secret", "it is not set or empty", fix))
    try:
        value = content.decode().strip()
    except UnicodeDecodeError:
        raise Refused(Finding("secret.not-readable", f"{where} holds no secret", "it is no text", fix)) from None
    if len(content) > LARGEST:
        raise Refused(Finding("secret.too-long", f"{where} holds no secret", "it is larger than 1 MiB", fix))
    found = Secret(value)
    if not (lines or value.isprintable()):
        why = "it has several lines, or a control character: no header can carry it"
        fix = "write the secret alone, on one line"
        raise Refused(Finding("secret.not-one-line", f"{where} holds no secret", why, fix))
    return found


UNSENDABLE = "the key cannot be sent"


def bearer(ref: SecretRef | None) -> dict[str, str]:
    """The header of HTTP that carries it; none without a ``ref``. Refused where it cannot
    be one.
    """
    if ref is None:
        return {}
    value = read_secret(ref).reveal()
    if not value.isascii():
        why = "it has other characters than ASCII's: no header can carry it"
        raise Refused(Finding("secret.not-one-line", UNSENDABLE, why, "use a key of ASCII characters"))
    return {"Authorization": f"Bearer {value}"}


def _of_kubernetes(ref: KubeSecret, *, lines: bool) -> Secret:
    if (folder := os.environ.get(FOLDER)) is not None:
        return read_secret(FileSecret(file=str(Path(folder) / ref.kube.name / ref.kube.key)), lines=lines)
    if (read := _cluster.get()) is not None:
        return read(ref)
    what, fix = f"the secret {ref.kube.name} is Kubernetes'", "use {env: NAME} or {file: PATH}"
    raise Refused(Finding("secret.not-on-a-host", what, "this is a host", fix))
