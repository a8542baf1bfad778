"""The fetch against the hubs' own downloaders and aria2c, on one local hub, in one
run; prints a table.

    python benchmarks/fetch/run.py [--size-mb 2048] [--rate 40] [--latency 30]
        [--runs 3] [--out docs/benchmarks/fetch.md]

Needs Go and aria2c (Debian's package aria2). Every side fetches the same four shards:
on a wire with ``--rate`` MB/s for each stream and ``--latency`` ms for each request,
and on loopback as fast as it goes; is killed with -9 half way and run again; meets a
shard with one flipped bit. Seconds are the median of ``--runs``; CPU and memory are
the whole process's (getrusage).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
SHARDS = 4
PORT = 18311
URL = f"http://127.0.0.1:{PORT}"
PROGRAMS = Path(sys.executable).parent


@dataclass(frozen=True)
class Side:
    name: str
    command: Callable[[Path], list[str]]


@dataclass(frozen=True)
class Spent:
    seconds: float
    cpu: float
    memory_mb: float
    code: int


def make_model(folder: Path, megabytes: int) -> list[str]:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"], "model_type": "llama"}))
    (folder / "tokenizer.json").write_text("{}" + " " * 2_000_000)
    size = megabytes * (1 << 20) // SHARDS
    source = random.Random(1)
    block = source.randbytes(16 << 20)
    for number in range(SHARDS):
        header = json.dumps({"w": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
        with (folder / f"model-{number}.safetensors").open("wb") as out:
            out.write(struct.pack("<Q", len(header)) + header)
            for left in range(size, 0, -len(block)):
                out.write(block[: min(left, len(block))])
    return sorted(path.name for path in folder.iterdir())


def sides(names: list[str], scratch: Path) -> list[Side]:
    listing = scratch / "aria2.txt"
    listing.write_text("".join(f"{URL}/org/model/resolve/main/{name}\n  out={name}\n" for name in names))
    aria2 = ["aria2c", "--quiet", "-c", "-x8", "-s8", "-j4", "--file-allocation=none", "-i", str(listing)]
    return [
        Side("deliver fetch", lambda to: [str(PROGRAMS / "deliver"), "fetch", "huggingface:org/model", str(to)]),
        Side("hf download", lambda to: [str(PROGRAMS / "hf"), "download", "org/model", "--local-dir", str(to)]),
        Side(
            "modelscope download",
            lambda to: [str(PROGRAMS / "modelscope"), "download", "--model", "org/model", "--local_dir", str(to)],
        ),
        Side("aria2c -x8 -s8 -j4", lambda to: [*aria2, "-d", str(to)]),
    ]


def ask(path: str) -> str:
    with urllib.request.urlopen(URL + path, timeout=30) as answer:  # noqa: S310
        return str(answer.read().decode())


def environ(scratch: Path) -> dict[str, str]:
    ours = {
        "HF_ENDPOINT": URL,
        "HF_HOME": str(scratch / "hf"),
        "MODELSCOPE_ENDPOINT": URL,
        "MODELSCOPE_CACHE": str(scratch / "ms"),
    }
    return os.environ | ours | {"MODEL_DELIVERY_HOME": str(scratch / "home"), "HF_HUB_DISABLE_TELEMETRY": "1"}


def run(command: list[str], scratch: Path, stop_when: Callable[[], bool] | None = None) -> Spent:
    began = time.monotonic()
    with (scratch / "log").open("ab") as log:
        child = subprocess.Popen(command, env=environ(scratch), stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        while stop_when is not None and not stop_when() and child.poll() is None:
            time.sleep(0.02)
        if stop_when is not None:
            child.kill()
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    return Spent(time.monotonic() - began, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024, child.returncode)


def fresh(to: Path) -> Path:
    shutil.rmtree(to, ignore_errors=True)
    os.sync()
    return to


def timed(side: Side, scratch: Path, runs: int) -> Spent:
    spent = [run(side.command(fresh(scratch / "to")), scratch) for _ in range(runs)]
    bad = [one.code for one in spent if one.code]
    if bad:
        raise SystemExit(f"{side.name} ended with {bad}: see {scratch / 'log'}")
    return Spent(
        *(statistics.median(values) for values in zip(*((s.seconds, s.cpu, s.memory_mb) for s in spent), strict=True)),
        0,
    )


def again_after_kill(side: Side, scratch: Path, total: int) -> int:
    """Bytes that were sent twice when it is killed half way and run again."""
    ask("/__sent?reset=1")
    run(side.command(fresh(scratch / "to")), scratch, lambda: int(ask("/__sent")) >= total // 2)
    time.sleep(0.5)
    run(side.command(scratch / "to"), scratch)
    return int(ask("/__sent")) - total


def flipped(side: Side, scratch: Path, name: str) -> str:
    done = run(side.command(fresh(scratch / "to")), scratch)
    there = (scratch / "to" / name).exists()
    return f"exit {done.code}, " + ("the wrong file lies there under its name" if there else "the wrong file is gone")


def raw_disk(scratch: Path, total: int) -> float:
    began = time.monotonic()
    command = ["dd", "if=/dev/zero", f"of={scratch / 'dd'}", "bs=1M", f"count={total >> 20}", "conv=fdatasync"]
    subprocess.run(command, check=True, capture_output=True)
    (scratch / "dd").unlink()
    return time.monotonic() - began


def raw_wire(names: list[str]) -> float:
    began = time.monotonic()
    children = [
        subprocess.Popen(["curl", "-s", "-o", os.devnull, f"{URL}/org/model/resolve/main/{name}"]) for name in names
    ]
    for child in children:
        child.wait()
    return time.monotonic() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size-mb", type=int, default=2048)
    parser.add_argument("--rate", type=float, default=40)
    parser.add_argument("--latency", type=float, default=30)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="Where it all lies; default: the temporary folder.")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as text:
        scratch = Path(text)
        names = make_model(scratch / "model", options.size_mb)
        total = sum((scratch / "model" / name).stat().st_size for name in names)
        subprocess.run(["go", "build", "-o", scratch / "server", "."], cwd=Path(__file__).parent / "server", check=True)
        with subprocess.Popen([scratch / "server", f"127.0.0.1:{PORT}", scratch / "model"]) as server:
            try:
                while server.poll() is None:
                    try:
                        ask("/__sent")
                        break
                    except OSError:
                        time.sleep(0.2)
                table = measure(sides(names, scratch), scratch, names, total, options)
            finally:
                server.kill()
    print(table)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(f"# The fetch, measured\n\n{table}\n", encoding="utf-8")


def measure(all_sides: list[Side], scratch: Path, names: list[str], total: int, options: argparse.Namespace) -> str:
    wire = f"/__set?latency={options.latency}&rate={options.rate}"
    head = (
        "",
        f"s ({options.rate:g} MB/s a stream, {options.latency:g} ms)",
        "s (loopback)",
        "CPU s (loopback)",
        "peak MB",
        "MB again after kill -9",
        "one flipped bit",
    )
    rows: list[tuple[str, ...]] = []
    for side in all_sides:
        print(f"… {side.name}", file=sys.stderr, flush=True)
        ask(wire)
        narrow = timed(side, scratch, options.runs)
        again = again_after_kill(side, scratch, total)
        ask("/__set?latency=0&rate=0")
        wide = timed(side, scratch, options.runs)
        ask(f"/__set?latency=0&rate=0&flip={names[2]}")
        verdict = flipped(side, scratch, names[2])
        memory = max(narrow.memory_mb, wide.memory_mb)
        figures = (
            f"{narrow.seconds:.1f}",
            f"{wide.seconds:.1f}",
            f"{wide.cpu:.1f}",
            f"{memory:.0f}",
            f"{again / 1e6:.0f}",
            verdict,
        )
        rows.append((side.name, *figures))
    ask("/__set?latency=0&rate=0")
    raw = [raw_wire(names), raw_disk(scratch, total)]
    lines = [f"| {' | '.join(row)} |" for row in (head, ("---",) * len(head), *rows)]
    facts = f"{total / 1e6:.0f} MB in {SHARDS} shards, median of {options.runs}, {os.cpu_count()} CPUs, {time.strftime('%Y-%m-%d')}. "
    return (
        "\n".join(lines)
        + f"\n\n{facts}The wire alone (curl to nowhere, 4 streams, loopback): {raw[0]:.1f} s; the disk alone (dd, fdatasync): {raw[1]:.1f} s."
    )


if __name__ == "__main__":
    main()
