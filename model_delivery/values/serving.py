"""How a model is served, as a spec says it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Annotated, Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, field_validator, model_serializer, model_validator

from model_delivery.base import Duration, Part, SecretRef, Size, Text, Word
from model_delivery.values.engine import VariableName

MOST_GPUS = 1024
MODEL_NAME, LONGEST_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._/:-]*$"), 200
SECRET = re.compile(r"-(token|secret|password|api-key)$")
LATER = (("cache", "none"), ("loader", "default"), ("readahead", False))
OURS = ("--model", "--served-model-name", "--host", "--port", "--api-key")


def option(arg: str) -> str:
    """The name of an engine's argument, as its parser reads it; empty where it is a
    value.
    """
    return arg.partition("=")[0].replace("_", "-") if arg.startswith("--") and len(arg) > len("--") else ""


def is_model_name(name: str) -> bool:
    return bool(MODEL_NAME.fullmatch(name)) and len(name) <= LONGEST_NAME


def means(name: str, names: Iterable[str]) -> bool:
    """Does an engine take the option ``name`` for one of ``names``? Its parser takes any
    beginning of a name that is no other's.
    """
    return bool(name) and any(known.startswith(name) for known in names)


class Storage(Part):
    """A claim in a cluster; on a host a folder (none: the state folder)."""

    claim: Text | None = None
    size: Size | None = None
    storage_class: Text | None = None
    access: Literal["ReadWriteOnce", "ReadWriteMany", "ReadOnlyMany", "ReadWriteOncePod"] = "ReadWriteOnce"
    notebook: bool = False
    path: Text | None = None


class Resources(Part):
    """As Kubernetes writes them: ``nvidia.com/gpu: 1, cpu: 4, memory: 64Gi``."""

    limits: dict[Text, int | float | str] = Field(default_factory=dict)

    @field_validator("limits")
    @classmethod
    def _quantities(cls, limits: dict[str, int | float | str]) -> dict[str, int | float | str]:
        if "memory" in limits:
            Size(str(limits["memory"]))
        for name, count in limits.items():
            if "/" in name and not (isinstance(count, int) and 0 <= count <= MOST_GPUS):
                raise ValueError(f"{name} is a whole number")
        cpu = re.fullmatch(r"([0-9]{1,6}(?:\.[0-9]{1,9})?)m?", str(limits.get("cpu", "1")))
        if not cpu or float(cpu[1]) <= 0:
            raise ValueError("cpu is a number of CPUs, such as 4 or 500m")
        return limits


class Replicas(Part):
    min: int = Field(1, ge=1)
    max: int = Field(1, ge=1)

    @model_validator(mode="after")
    def _ordered(self) -> Replicas:
        if self.max < self.min:
            raise ValueError("max is below min")
        return self


class Where(Part):
    """Where and as whom pods run, as Kubernetes names it (in snake case)."""

    node_selector: dict[str, str] = Field(default_factory=dict)
    tolerations: tuple[dict[str, Any], ...] = ()
    affinity: dict[str, Any] = Field(default_factory=dict)
    image_pull_secrets: tuple[str, ...] = ()
    service_account: str | None = None
    runtime_class: str | None = None
    priority_class: str | None = None
    security_context: dict[str, Any] = Field(default_factory=dict)
    annotations: dict[str, str] = Field(default_factory=dict)


class Pod(Where):
    """What is passed on to the pod templates of a release; what of it is ``Where``, to
    those of the steps too.
    """

    volumes: tuple[dict[str, Any], ...] = ()
    volume_mounts: tuple[dict[str, Any], ...] = ()
    shm: Size | None = None

    @field_validator("volumes", "volume_mounts")
    @classmethod
    def _named(cls, given: tuple[dict[str, Any], ...]) -> tuple[dict[str, Any], ...]:
        if not all(isinstance(one.get("name"), str) for one in given):
            raise ValueError("each has a name")
        return given


ModelName = Annotated[str, Field(pattern=MODEL_NAME.pattern, max_length=LONGEST_NAME)]


class Serving(Part):
    """How the engine serves; ``model_names`` is what clients send, ``chat_template`` a
    template's content, once loaded. ``cache``: where pods keep what the engine compiles.
    ``loader``: how it reads the weights; ``race``: each new release tries all ways of its
    engine, and keeps the fastest of equal answers.
    ``readahead``: pods read the weights into their node's memory while the engine imports
    its libraries.
    """

    model_names: tuple[ModelName, ...] = ()
    args: tuple[Text, ...] = ()
    env: dict[VariableName, Word | SecretRef] = Field(default_factory=dict)
    api_key: SecretRef | None = None
    chat_template: str | None = None
    resources: Resources = Resources()
    replicas: Replicas = Replicas()
    startup_timeout: Duration | None = None
    pod: Pod = Pod()
    cache: Literal["none", "claim", "node"] = "none"
    loader: Literal["default", "race"] = "default"
    readahead: bool = False

    @model_serializer(mode="wrap")
    def _plainly(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """What asks for neither is written as before there were any."""
        made: dict[str, Any] = dump(self)
        return {name: value for name, value in made.items() if (name, value) not in LATER}

    @field_validator("args")
    @classmethod
    def _not_ours(cls, args: tuple[str, ...]) -> tuple[str, ...]:
        names = [name for arg in args if (name := option(arg))]
        if taken := [name for name in names if means(name, OURS)]:
            use = "use model, serving.model_names, target.port and serving.api_key"
            raise ValueError(f"{', '.join(taken)}: set by Model Delivery; {use}")
        if "--config" in names:
            raise ValueError("--config: write its arguments here, where they can be seen and checked")
        if secret := [name for name in names if SECRET.search(name)]:
            raise ValueError(f"{', '.join(secret)}: a secret in an argument is shown; name it in serving.env")
        return args


class Runner(Part):
    """The image that runs our steps in a cluster; ``pod``: where and as whom, if not as
    ``serving.pod`` says.
    """

    image: Text | None = None
    resources: dict[str, Any] = Field(default_factory=dict)
    image_pull_secrets: tuple[str, ...] = ()
    pod: Where | None = None


def by_option(args: Iterable[str]) -> dict[str, str]:
    """The engine's arguments by option, ``--ttft`` → ``50``; words before the first
    stand under ``args``.
    """
    return {name: " ".join(_values(words)) or "given" for name, words in in_options(args).items()}


def _values(words: Iterable[str]) -> Iterator[str]:
    for word in words:
        if value := word.partition("=")[2] if option(word) else word:
            yield value


def in_options(args: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """The words of each option, its name among them; those before the first stand under
    ``args``.
    """
    made, name = dict[str, list[str]](), "args"
    for arg in args:
        name = option(arg) or name
        made.setdefault(name, []).append(arg)
    return {name: tuple(words) for name, words in made.items()}


def max_model_len(args: tuple[str, ...]) -> int | None:
    """What ``--max-model-len`` says among the engine's arguments, None when it says
    nothing (or no plain number).
    """
    words = iter([word for arg in args for word in arg.partition("=")[::2] if word])
    value = next(words, "") if "--max-model-len" in words else ""  # "in" stops behind it
    return int(value) if re.fullmatch("[0-9]{1,12}", value) else None
