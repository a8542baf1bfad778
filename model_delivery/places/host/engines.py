"""Engines on this host: a folder with an ``engine.toml`` is read, and its Python
environment is made.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import time
import tomllib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from subprocess import DEVNULL, PIPE, Popen, TimeoutExpired

import uv
from pydantic import ValidationError

from model_delivery.base import (
    BadInput,
    Finding,
    Permanent,
    Progress,
    Retryable,
    did_you_mean,
    problems,
    proven,
    read_file,
    report,
)
from model_delivery.base.home import packaged
from model_delivery.places.host.processes import locked
from model_delivery.values import Engine, Environment, old_vllm

DONE = ".complete"
PROBE_SECONDS = 3
MAKING_SECONDS = 3 * 3600
STORES = ("/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/ca-bundle.pem")
SYSTEM_CERTS = ("UV_SYSTEM_CERTS", "UV_NATIVE_TLS")  # now, and of old: uv trusts authorities of its own else
GPU_LIBRARIES = ("nvidia-", "cuda-", "triton")
LOCKED = re.compile(r'name = "vllm"\nversion = "([^"]+)"')
NETWORK = re.compile(
    r"timed? ?out|dns error|error sending request|connection (reset|refused|closed)|status (429|50[0-4])", re.IGNORECASE
)


def load_engine(name: str) -> Engine:
    """The engine called ``name``, or the one in the folder ``name`` (it has a slash).
    BadInput names file and key, or the nearest name.
    """
    folder = Path(name).absolute() if "/" in name else packaged("engines") / name
    file, fix = folder / "engine.toml", "correct it there"
    if not file.is_file():
        raise BadInput(_no_engine(name, file))
    try:
        content = tomllib.loads(_text(file))
        if isinstance(content.get("environment"), dict):
            content["environment"]["key"] = _key(folder)
        engine = Engine.model_validate(content | {"folder": str(folder) if "/" in name else name})
        if engine.environment and "--shutdown-timeout" in engine.command:
            _not_too_old(folder / "uv.lock")
        return engine
    except FileNotFoundError as error:
        raise BadInput(
            Finding(
                "engine.no-lock",
                f"{file}: [environment] needs a pyproject.toml and a uv.lock beside it",
                f"{error.filename} does not exist",
                "make it with `uv lock`, or remove [environment]",
            )
        ) from None
    except OSError as error:
        what = f"{error.filename or file} cannot be read"
        raise BadInput(Finding("engine.not-readable", what, error.strerror or "", "name a readable folder")) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadInput(Finding("engine.not-toml", f"{file}: not valid TOML", str(error), fix)) from None
    except ValidationError as error:
        wrong = (Finding("engine.invalid", f"{file}: {problem}", "", fix) for problem in problems(error))
        raise BadInput(*wrong) from None


def _text(file: Path) -> str:
    return read_file(file, links=True).decode()


def _no_engine(name: str, file: Path) -> Finding:
    known = sorted(path.parent.name for path in packaged("engines").glob("*/engine.toml"))
    why = did_you_mean(name, known) or f"known: {', '.join(known)}; or a folder with an engine.toml"
    return Finding(
        "engine.not-found",
        f"target.engine: there is no engine {name}",
        f"{file} does not exist; {why}",
        "correct target.engine",
    )


def _not_too_old(lock: Path) -> None:
    found = LOCKED.search(_text(lock))
    if found and old_vllm(found[1]):
        what, why = f"{lock}: vLLM {found[1]} is too old", "it does not know the --shutdown-timeout of its command"
        raise BadInput(Finding("engine.too-old", what, why, "lock vLLM 0.18 or newer"))


def environment_folder(engine: Engine, home: Path) -> Path:
    """Where the engine's environment is (or will be); the name says what it was made
    from.
    """
    if engine.environment is None:
        return engine.location
    return proven(home / "engines" / f"{engine.name}-{engine.environment.key}", home / "engines")


def is_made(engine: Engine, home: Path) -> bool:
    """Is its environment there, whole? (It may need none.)"""
    return engine.environment is None or (environment_folder(engine, home) / DONE).exists()


def has_module(engine: Engine, home: Path, module: str) -> bool:
    """Is a module of this name in its environment?"""
    return any(environment_folder(engine, home).glob(f"lib/python3*/site-packages/{module}*"))


def make_environment(engine: Engine, home: Path) -> Path:
    """Make the environment unless it is there; one maker at a time, and a killed one's
    half is made again.

    Retryable when an index does not answer, Permanent when uv cannot otherwise.
    """
    folder, made = environment_folder(engine, home), engine.environment
    if made is None or is_made(engine, home):
        return folder
    waiting = Progress("environment", "waiting for another run that makes it")
    with locked(folder.with_suffix(".lock"), waiting, MAKING_SECONDS) as lock:
        if is_made(engine, home):
            return folder
        if _key(engine.location) != made.key:
            raise Permanent(
                Finding(
                    "engine.other-lock",
                    f"the environment of {engine.name} cannot be made",
                    f"{engine.location} holds another lock than the release was made with, and its environment "
                    "was never made here",
                    "deliver again, or put the folder back",
                )
            )
        if folder.exists():
            shutil.rmtree(folder)
        _Maker(engine, made, folder, lock).make()
        (folder / DONE).touch()
    return folder


def _key(folder: Path) -> str:
    """The digest of all that an environment is made from."""
    content = b"".join(read_file(folder / file, links=True) for file in ("pyproject.toml", "uv.lock"))
    return hashlib.sha256(content).hexdigest()[:12]


@dataclass(frozen=True)
class _Maker:
    """``lock`` is inherited by every child: after a kill -9 of this process the next
    maker waits until uv has ended, too.
    """

    engine: Engine
    made: Environment
    folder: Path
    lock: int

    def make(self) -> None:
        self._uv("venv", "--python", self.made.python, str(self.folder), timeout=120)
        self._install(self._torch(self.made.torch_backend) if self.made.torch_backend else [])
        self._compile()

    def _torch(self, backend: str) -> list[str]:
        """Install torch from PyTorch's own index for ``backend``, which saves gigabytes.
        The packages that it brings; none where the index does not answer.
        """
        packages = tomllib.loads(_text(self.engine.location / "uv.lock"))["package"]
        (version,) = (package["version"] for package in packages if package["name"] == "torch")
        options = ("--no-deps", "--python", self._python, "--torch-backend", backend, f"torch=={version}")
        try:
            self._uv("pip", "install", "--dry-run", *options, timeout=PROBE_SECONDS, retries=0)
        except (Permanent, Retryable):
            note = f"PyTorch's {backend} index does not answer: its larger build is used"
            report(Progress("environment", note))
            return []
        self._uv("pip", "install", *options, timeout=3600)
        return [name for package in packages if (name := package["name"]).startswith(GPU_LIBRARIES) or name == "torch"]

    def _install(self, without: list[str]) -> None:
        """The locked versions, each file checked against the lock's hash, by way of
        whatever index uv is configured for.
        """
        options = ["--project", str(self.engine.location), *(f"--no-emit-package={name}" for name in without)]
        wanted = self.folder / "requirements.txt"
        wanted.write_text(self._uv("export", "--frozen", "--no-emit-project", *options, timeout=120), encoding="utf-8")
        self._uv("pip", "install", "--python", self._python, "--no-deps", "-r", str(wanted), timeout=3600)

    def _compile(self) -> None:
        """Else each of vLLM's processes compiles for itself at every start. Files in a
        newer syntax are skipped, and that is fine.
        """
        options = ["-q", "-j", "0", "--invalidation-mode", "unchecked-hash", str(self.folder / "lib")]
        self._run("compiling its bytecode", [self._python, "-m", "compileall", *options], 1200)

    @property
    def _python(self) -> str:
        return str(self.folder / "bin" / "python")

    def _uv(self, *args: str, timeout: float, retries: int = 3) -> str:
        argv = [uv.find_uv_bin(), *args, "--quiet"]
        code, output, errors = self._run(f"uv {' '.join(args[:2])}", argv, timeout, retries)
        if code == 0:
            return output
        kind = Retryable if NETWORK.search(errors) else Permanent
        raise kind(
            Finding(
                "engine.no-environment",
                f"the environment of {self.engine.name} could not be made",
                f"uv {args[0]} failed",
                "see what uv says, then run again",
                tuple(line for line in errors.splitlines() if line.strip())[:5],
            )
        )

    def _run(self, note: str, argv: list[str], timeout: float, retries: int = 3) -> tuple[int, str, str]:
        """Exit code, stdout and stderr. Retryable after ``timeout`` seconds; progress
        every two.
        """
        environ = {name: value for name, value in os.environ.items() if name not in ("VIRTUAL_ENV", "PYTHONPATH")}
        environ |= {"UV_PYTHON_DOWNLOADS": "never", "UV_HTTP_RETRIES": str(retries), "UV_NO_PROGRESS": "1"}
        environ = dict.fromkeys(SYSTEM_CERTS if any(map(os.path.exists, STORES)) else (), "1") | environ
        started = time.monotonic()
        with Popen(
            argv,
            env=environ,
            stdin=DEVNULL,
            stdout=PIPE,
            stderr=PIPE,
            pass_fds=(self.lock,),
            encoding="utf-8",
            errors="replace",
        ) as child:
            try:
                while (passed := time.monotonic() - started) < timeout:
                    report(Progress("environment", f"{self.engine.name}: {note}", done=round(passed, 1), unit="s"))
                    with suppress(TimeoutExpired):
                        output, errors = child.communicate(timeout=min(2, timeout - passed))
                        return child.returncode, output, errors
            finally:
                child.kill()
        raise Retryable(
            Finding(
                "engine.no-index",
                f"{note} took longer than {timeout:g} s",
                "an index may not answer",
                "look at the network, then run again",
            )
        )
