"""An engine as a value: how a model server is started, when it is ready, and how it stops
(the content of an ``engine.toml``).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, SerializerFunctionWrapHandler, field_validator, model_serializer

from model_delivery.base import Duration, Part, Size, Word, did_you_mean
from model_delivery.base.home import packaged

PLACEHOLDER = re.compile(r"\{[a-z_]+\}")
COMMAND_KNOWS = ("{env}", "{folder}", "{model}", "{names}", "{port}", "{drain}")
VARIABLES_KNOW = ("{cpus}", "{folder}", "{env}")
OLDEST = (0, 18)  # of vLLM: the first that knows --shutdown-timeout
VLLM_CACHES = {
    "VLLM_CACHE_ROOT": "vllm",
    "TORCHINDUCTOR_CACHE_DIR": "inductor",
    "TRITON_CACHE_DIR": "triton",
    "FLASHINFER_WORKSPACE_BASE": "flashinfer",
    "CUDA_CACHE_PATH": "cuda",
}
LATER = ("cache", "sleep", "loaders")
DEFAULT_LOADER = "default"  # the engine's own, without an argument of ours
VARIABLE, SUBFOLDER = r"^[A-Za-z_][A-Za-z0-9_]*$", r"^[a-z0-9][a-z0-9._-]*$"
VariableName = Annotated[str, Field(pattern=VARIABLE)]
LoaderName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,39}$")]
IMAGE = re.compile(r"(?:^|/)vllm(?:-openai|-cpu|-tpu)?[a-z-]*:(?:.*vllm[_-])?(v?\d+\.\d+[\w.]*)")


def old_vllm(version: str) -> str | None:
    """``version``, or the one that a vLLM image's name says, when it is older than what
    can be delivered.
    """
    said = found[1] if (found := IMAGE.search(version)) else version
    numbers = re.match(r"v?(\d+)\.(\d+)", said)
    return said if numbers and tuple(map(int, numbers.groups())) < OLDEST else None


class Environment(Part):
    """A Python environment of the engine's own, made from the ``uv.lock`` beside its
    engine.toml; ``key`` is that lock's digest.

    ``python``: as ``uv venv --python`` takes it. ``torch_backend``: as ``uv pip
    --torch-backend``; used where that index answers.
    """

    python: str = ">=3.11,<3.13"
    torch_backend: str | None = None
    key: str = ""


class Ready(Part):
    health: Annotated[str, Field(pattern="^/")] = "/health"
    timeout: Duration = Duration("300s")


class Stop(Part):
    """``drain``: what the engine itself gives open streams; ``grace``: on top of it,
    before SIGKILL.
    """

    drain: Duration = Duration("30s")
    grace: Duration = Duration("10s")


class Needs(Part):
    memory: Size = Size("1Gi")


class Sleep(Part):
    """How the engine gives its cards back and stays: what it is started with for that,
    and the addresses on its own port that put it to sleep, wake it, and say whether it
    sleeps (``{"is_sleeping": true}``).
    """

    args: tuple[Word, ...] = ()
    variables: dict[VariableName, Word] = Field(default_factory=dict)
    sleep: Annotated[str, Field(pattern="^/")] = "/sleep?level=1&mode=wait"
    wake: Annotated[str, Field(pattern="^/")] = "/wake_up"
    asleep: Annotated[str, Field(pattern="^/")] = "/is_sleeping"


class Loader(Part):
    """Another way than the engine's own of reading the weights: the arguments that choose
    it. ``module``: what it needs of the engine's environment, where that is not sure to
    be there.
    """

    args: tuple[Word, ...] = Field(min_length=1)
    module: Annotated[str, Field(pattern=VARIABLE)] | None = None


class Engine(Part):
    """The content of an engine.toml, whole: what a release was started with does not
    change when the folder does.

    ``folder`` is the name of an engine that comes with Model Delivery (so that a moved
    checkout changes no release), else an absolute path. ``cache``: by variable, the
    folder of what it compiles; None: what vLLM compiles, where it is one.
    """

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    folder: str = ""
    command: tuple[Word, ...] = Field(min_length=1)
    environment: Environment | None = None
    variables: dict[VariableName, Word] = Field(default_factory=dict)
    ready: Ready = Ready()
    stop: Stop = Stop()
    resources: Needs = Needs()
    cache: dict[VariableName, Annotated[str, Field(pattern=SUBFOLDER)]] | None = None
    sleep: Sleep | None = None
    loaders: dict[LoaderName, Loader] | None = None

    @model_serializer(mode="wrap")
    def _plainly(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """What says nothing of these is written as before there were any: its releases
        stay what they are.
        """
        made: dict[str, Any] = dump(self)
        return {name: value for name, value in made.items() if name not in LATER or value is not None}

    @field_validator("command")
    @classmethod
    def _command(cls, words: tuple[str, ...]) -> tuple[str, ...]:
        _only(COMMAND_KNOWS, words)
        if not words[0]:
            raise ValueError("its first word is the program, and is empty")
        if any("{names}" in word and word != "{names}" for word in words):
            raise ValueError("{names} must be an argument of its own: it becomes one argument a name")
        return words

    @field_validator("variables")
    @classmethod
    def _variables(cls, values: dict[str, str]) -> dict[str, str]:
        _only(VARIABLES_KNOW, values.values())
        return values

    @field_validator("loaders")
    @classmethod
    def _others(cls, loaders: dict[str, Loader] | None) -> dict[str, Loader] | None:
        if DEFAULT_LOADER in (loaders or ()):
            raise ValueError(f"{DEFAULT_LOADER} is the engine's own loader, and has no arguments")
        return loaders

    @property
    def caches(self) -> Mapping[str, str]:
        """The folders of what it compiles, by the variable that leads it there."""
        if self.cache is not None:
            return self.cache
        vllm = any(word.startswith("vllm.") or Path(word).name == "vllm" for word in self.command)
        return VLLM_CACHES if vllm else {}

    @property
    def memory_bytes(self) -> int:
        return self.resources.memory.bytes

    @property
    def location(self) -> Path:
        """Its folder on this machine."""
        return packaged("engines") / self.folder

    def argv(self, environment: Path, model: Path, names: Sequence[str], port: int, args: Sequence[str]) -> list[str]:
        """The command line; ``{names}`` becomes one argument a name, and the user's
        ``args`` stay as they are.
        """
        known = {
            "{env}": environment,
            "{folder}": self.location,
            "{model}": model,
            "{port}": port,
            "{drain}": int(self.stop.drain.seconds),
        }
        words = [names if word == "{names}" else [_filled(word, known)] for word in self.command]
        return [*chain.from_iterable(words), *(self.sleep.args if self.sleep else ()), *args]

    def environ(self, cpus: Sequence[int], environment: Path | None = None) -> dict[str, str]:
        """Its environment variables; ``{cpus}`` becomes the CPUs that it is bound to,
        such as ``0,1``.
        """
        known = {"{cpus}": ",".join(map(str, cpus)), "{folder}": self.location, "{env}": environment or ""}
        variables = self.variables | (self.sleep.variables if self.sleep else {})
        return {name: _filled(value, known) for name, value in variables.items()}


def _only(known: Sequence[str], texts: Iterable[str]) -> None:
    for found in PLACEHOLDER.findall(" ".join(texts)):
        if found not in known:
            hint = did_you_mean(found, known) or f"known: {' '.join(known)}"
            raise ValueError(f"{found} is no placeholder; {hint}")


def _filled(text: str, known: Mapping[str, object]) -> str:
    return PLACEHOLDER.sub(lambda found: str(known[found[0]]), text)
