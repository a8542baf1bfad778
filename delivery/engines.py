"""Engines: a folder with an ``engine.toml`` says how a model server is started, when it is ready, and how it stops."""

from __future__ import annotations

import difflib
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import uv
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from delivery.findings import BadInput, Finding, Permanent
from delivery.progress import Progress, report
from delivery.units import Duration, Size

DONE = ".complete"
CPU_INDEX_SECONDS = 3


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Environment(_Part):
    """A Python environment of the engine's own, made from the ``uv.lock`` beside its engine.toml."""

    python: str = "3.11"
    torch_backend: str | None = None
    key: str = ""


class Ready(_Part):
    health: str = "/health"
    timeout: Duration = Duration("300s")


class Stop(_Part):
    """``drain``: what the engine itself gives open streams; ``grace``: on top of it, before SIGKILL."""

    drain: Duration = Duration("30s")
    grace: Duration = Duration("10s")


class Needs(_Part):
    memory: Size = Size("1Gi")


class Engine(_Part):
    """The content of an engine.toml, whole: what a release was started with does not change when the folder does."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    folder: str = ""
    command: tuple[str, ...]
    environment: Environment | None = None
    variables: dict[str, str] = Field(default_factory=dict)
    ready: Ready = Ready()
    stop: Stop = Stop()
    resources: Needs = Needs()

    @property
    def memory_bytes(self) -> int:
        return self.resources.memory.bytes

    def argv(self, environment: Path, model: Path, names: Sequence[str], port: int, args: Sequence[str]) -> list[str]:
        """The command line; ``{names}`` becomes one argument a name, and the user's ``args`` stay as they are."""
        known = {
            "{env}": str(environment),
            "{folder}": self.folder,
            "{model}": str(model),
            "{port}": str(port),
            "{drain}": str(int(self.stop.drain.seconds)),
        }
        line: list[str] = []
        for word in self.command:
            line += list(names) if word == "{names}" else [_filled(word, known)]
        return [*line, *args]

    def environ(self, cpus: Sequence[int]) -> dict[str, str]:
        """Its environment variables; ``{cpus}`` becomes the CPUs that it is bound to, such as ``0,1``."""
        return {name: _filled(value, {"{cpus}": ",".join(map(str, cpus))}) for name, value in self.variables.items()}


def _filled(text: str, known: Mapping[str, str]) -> str:
    for name, value in known.items():
        text = text.replace(name, value)
    return text


def packaged() -> Path:
    """The folder of the engines that come with Model Delivery: beside this package, in a checkout and in a wheel."""
    return Path(__file__).parent.parent / "engines"


def load_engine(name: str) -> Engine:
    """The engine called ``name``, or the one in the folder ``name``. BadInput names the file and what is wrong, or the nearest name."""
    folder = Path(name) if "/" in name else packaged() / name
    file = folder / "engine.toml"
    try:
        text = file.read_text(encoding="utf-8")
        said = tomllib.loads(text)
        if "environment" in said:
            said["environment"]["key"] = _key(folder)
        return Engine.model_validate(said | {"folder": str(folder)})
    except FileNotFoundError as error:
        known = sorted(path.parent.name for path in packaged().glob("*/engine.toml"))
        near = difflib.get_close_matches(name, known, 1)
        why = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}; or a folder with an engine.toml"
        raise BadInput(Finding(f"target.engine: there is no engine {name}", f"{error.filename} does not exist; {why}", "correct target.engine")) from None
    except tomllib.TOMLDecodeError as error:
        raise BadInput(Finding(f"{file}: not valid TOML", str(error), "correct it there")) from None
    except ValidationError as error:
        found = [Finding(f"{file}: {'.'.join(map(str, e['loc']))}: {e['msg']}", "", "correct it there") for e in error.errors(include_url=False)]
        raise BadInput(*found) from None


def environment_folder(engine: Engine, home: Path) -> Path:
    """Where the engine's environment is (or will be); the name says what it was made from."""
    if engine.environment is None:
        return Path(engine.folder)
    return home / "engines" / f"{engine.name}-{engine.environment.key}"


def make_environment(engine: Engine, home: Path) -> Path:
    """Make the environment unless it is there; one maker at a time, and a killed one's half is made again. Permanent when uv cannot."""
    folder = environment_folder(engine, home)
    if engine.environment is None or (folder / DONE).exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (folder / DONE).exists():
            return folder
        if _key(Path(engine.folder)) != engine.environment.key:
            why = f"{engine.folder} holds another lock than the release was made with, and its environment was never made here"
            raise Permanent(Finding(f"the environment of {engine.name} cannot be made", why, "deliver again, or put the folder back"))
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        _sync(engine.environment, Path(engine.folder), folder)
        report(Progress("environment", f"{engine.name}: compiling its bytecode"))
        _compile(folder)
        (folder / DONE).touch()
    return folder


def _key(folder: Path) -> str:
    """The digest of all that an environment is made from."""
    return hashlib.sha256(b"".join((folder / file).read_bytes() for file in ("pyproject.toml", "uv.lock"))).hexdigest()[:12]


def _sync(made: Environment, source: Path, folder: Path) -> None:
    project = folder / "project"
    project.mkdir()
    for file in ("pyproject.toml", "uv.lock"):
        shutil.copy(source / file, project / file)
    _uv("venv", "--quiet", "--python", made.python, "--allow-existing", str(folder), timeout=120)
    target = ["--python", str(folder / "bin" / "python")]
    wanted = project / "requirements.txt"
    wanted.write_text(_uv("export", "--quiet", "--locked", "--no-hashes", "--no-emit-project", "--project", str(project), timeout=120), encoding="utf-8")
    if made.torch_backend and _torch_first(made, wanted, target):
        return
    report(Progress("environment", "installing (a few minutes; once)"))
    _uv("pip", "install", "--quiet", *target, "--no-deps", "-r", str(wanted), timeout=3600)


def _torch_first(made: Environment, wanted: Path, target: list[str]) -> bool:
    """Install with PyTorch's own index for ``torch_backend``, which saves gigabytes; False where it does not answer."""
    lean = wanted.with_name("lean.txt")
    lines = [line for line in wanted.read_text(encoding="utf-8").splitlines() if not line.startswith(("nvidia-", "triton", "torch=="))]
    lean.write_text("\n".join(lines), encoding="utf-8")
    torch = next(line.split()[0] for line in wanted.read_text(encoding="utf-8").splitlines() if line.startswith("torch=="))
    options = ["--quiet", *target, "--no-deps", "--torch-backend", str(made.torch_backend)]
    try:
        _uv("pip", "install", "--dry-run", *options, torch, timeout=CPU_INDEX_SECONDS)
    except Permanent:
        report(Progress("environment", "PyTorch's CPU index does not answer: its larger build is used"))
        return False
    _uv("pip", "install", *options, torch, timeout=3600)
    _uv("pip", "install", "--quiet", *target, "--no-deps", "-r", str(lean), timeout=3600)
    return True


def _uv(*args: str, timeout: float) -> str:
    environ: dict[str, Any] = {**os.environ, "UV_PYTHON_DOWNLOADS": "never", "UV_HTTP_RETRIES": "2", "UV_NO_PROGRESS": "1"}
    environ.pop("VIRTUAL_ENV", None)
    try:
        done = subprocess.run([uv.find_uv_bin(), *args], env=environ, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout, check=False)
    except subprocess.TimeoutExpired:
        raise Permanent(Finding(f"uv {args[0]} took longer than {timeout:g} s", "its index may not answer", "look at the network, then run again")) from None
    if done.returncode != 0:
        last = tuple(done.stderr.strip().splitlines()[-5:])
        raise Permanent(Finding(f"uv {args[0]} failed", "the engine's environment could not be made", "look at its words below, then run again", last))
    return done.stdout


def _compile(folder: Path) -> None:
    """vLLM's processes would each compile for themselves at every start. Files in a newer syntax are skipped, and that is fine."""
    (site,) = folder.glob("lib/python*/site-packages")
    command = [str(folder / "bin" / "python"), "-m", "compileall", "-q", "-j", "0", "--invalidation-mode", "unchecked-hash", str(site)]
    subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False, cwd=sys.prefix)
