"""Measures load generators against a server that knows the truth; writes one table
(docs/benchmarks/loadtest.md).

``benchmarks/loadtest/run.py [--streams 16,64,256] [--only NAME,…] [--parts
accuracy,errors,arrivals,capacity] [--out FILE]``. Each peer gets an environment of its
own under .cache/peers/. Load goes to loopback only. The machine should have nothing else
to do: the load average is written beside each row.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent), str(Path(__file__).parents[1])]

from peers import ENVIRON, PEERS, TOKENS, Load, Peer, Reported, spread  # noqa: E402
from processes import watched  # noqa: E402

from tests.parts.timing_engine import TimingServer  # noqa: E402
from tests.parts.tiny_model import tiny_model  # noqa: E402

CACHE = ROOT / ".cache" / "peers"
TTFT, ITL = 200, 20
LIMIT = 170


@dataclass
class Run:
    """One run of one peer: what it reports, what the server sent, and the CPU seconds of
    the peer from its first request on.
    """

    reported: Reported
    truth: dict[str, Any]
    cpu: float
    load: float

    def error(self, key: str, percentile: str) -> float | None:
        """Reported less true, in ms."""
        values = (
            [s["ttft_ns"] for s in self.truth["streams"]]
            if key == "ttft"
            else [g for s in self.truth["streams"] for g in s["gaps_ns"] or ()]
        )
        told, true = (
            getattr(self.reported, key).get(percentile),
            spread([value / 1e6 for value in values]).get(percentile),
        )
        return None if told is None or true is None else told - true

    def rate(self) -> float:
        """Tokens per second that the server sent, from the first request to the last
        token.
        """
        streams = self.truth["streams"]
        span = max(s["start_ns"] + s["total_ns"] for s in streams) - min(s["start_ns"] for s in streams)
        return float(1e9 * self.truth["tokens"] / span)


def environment(peer: Peer) -> Path:
    """The Python of the peer's own environment, made on first use."""
    folder = CACHE / peer.name.replace(" ", "-").lower()
    python = folder / "bin" / "python"
    done = folder / "installed"
    if not done.exists():
        import uv

        overrides = CACHE / "overrides.txt"
        CACHE.mkdir(parents=True, exist_ok=True)
        overrides.write_text("\n".join(peer.overrides), encoding="utf-8")
        subprocess.run([uv.find_uv_bin(), "venv", "-q", "--clear", "--python", sys.executable, folder], check=True)
        subprocess.run(
            [uv.find_uv_bin(), "pip", "install", "-q", "--python", python, "--overrides", overrides, *peer.packages],
            check=True,
        )
        done.touch()
    return python


def tokenizer() -> Path:
    folder = CACHE / "tokenizer"
    if not (folder / "config.json").exists():
        python = environment(next(peer for peer in PEERS if peer.name == "vllm bench serve"))
        subprocess.run(
            [python, Path(__file__).with_name("tokenizer.py"), folder, ROOT / "loadtests" / "words.txt"], check=True
        )
    return folder


def measure(peer: Peer, server: TimingServer, load: Load, cores: set[int] | None = None) -> Run:
    """Run the peer once. Its CPU before the first request (imports, its own preparations)
    is not counted.
    """
    folder = CACHE / "runs" / f"{peer.name.replace(' ', '-')}-{load.streams}-{load.requests}"
    subprocess.run(["rm", "-rf", folder], check=True)
    folder.mkdir(parents=True)
    python = environment(peer) if peer.packages else Path(sys.executable)
    command, environ = peer.command(load, folder, python, tokenizer())
    server.reset()
    with (folder / "log").open("wb") as log:
        env = os.environ | ENVIRON | environ
        child = subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=folder)
        if cores:
            os.sched_setaffinity(child.pid, cores)
        cpu = watched(child, server.busy, LIMIT)
    if child.returncode:
        raise RuntimeError(
            f"{peer.name} ended with {child.returncode}: {(folder / 'log').read_text(errors='replace')[-400:]}"
        )
    return Run(peer.read(folder), server.truth(), cpu, os.getloadavg()[0])


def shown(value: float | None, form: str = "+.2f") -> str:
    return "–" if value is None else format(value, form)


def accuracy(peers: list[Peer], streams: list[int], model: Path) -> list[str]:
    lines = [
        "| | streams | TTFT error p50 / p95 / p99 (ms) | ITL error p95 (ms) | CPU per 1,000 tokens (ms) | load average |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    with TimingServer(model, "--ttft", str(TTFT), "--itl", str(ITL)) as server:
        for peer in peers:
            for count in streams:
                row = f"| {peer.name} | {count} | "
                try:
                    run = measure(peer, server, Load(server.url, 4 * count, count))
                    ttft = " / ".join(shown(run.error("ttft", p)) for p in ("p50", "p95", "p99"))
                    cpu = 1e6 * run.cpu / max(1, run.truth["tokens"])
                    lines.append(f"{row}{ttft} | {shown(run.error('itl', 'p95'))} | {cpu:.1f} | {run.load:.1f} |")
                except (RuntimeError, OSError, LookupError, ValueError) as error:
                    lines.append(f"{row}failed: {str(error)[:120]} | | | |")
                print(lines[-1], flush=True)
    return lines


def errors(peers: list[Peer], model: Path) -> list[str]:
    lines = ["| | reported good | reported failed |", "|---|--:|--:|"]
    for peer in peers:
        args = ("--ttft", "20", "--itl", "5", "--fault", "stream-error", "--fault-every", "4", "--faults", "10")
        with TimingServer(model, *args) as server:
            try:
                run = measure(peer, server, Load(server.url, 48, 16))
                lines.append(f"| {peer.name} | {run.reported.good} | {run.reported.failed} |")
            except (RuntimeError, OSError, LookupError, ValueError) as error:
                lines.append(f"| {peer.name} | failed: {str(error)[:120]} | |")
        print(lines[-1], flush=True)
    return lines


def arrivals(peers: list[Peer], model: Path, rate: float, number: int) -> list[str]:
    lines = ["| | arrivals | CV of the gaps | rate/s |", "|---|--:|--:|--:|"]
    with TimingServer(model, "--ttft", "5", "--itl", "1") as server:
        for peer in (peer for peer in peers if peer.open_loop):
            try:
                run = measure(peer, server, Load(server.url, number, 256, rate=rate, tokens=2))
                starts = sorted(s["start_ns"] for s in run.truth["streams"])
                gaps = [b - a for a, b in pairwise(starts)]
                cv = statistics.pstdev(gaps) / statistics.fmean(gaps)
                lines.append(f"| {peer.name} | {len(starts):,} | {cv:.3f} | {1e9 / statistics.fmean(gaps):.1f} |")
            except (RuntimeError, OSError, LookupError, ValueError) as error:
                lines.append(f"| {peer.name} | failed: {str(error)[:120]} | | |")
            print(lines[-1], flush=True)
    return lines


def capacity(peers: list[Peer], model: Path) -> list[str]:
    """More and more streams, server on one core, client on another, until ITL p95 is off
    by more than 1 ms or TTFT p95 by more than 5.
    """
    lines = [
        "| | streams | tokens/s | TTFT error p95 (ms) | ITL error p95 (ms) | CPU per 1,000 tokens (ms) | undistorted |",
        "|---|--:|--:|--:|--:|--:|---|",
    ]
    with TimingServer(model, "--ttft", str(TTFT), "--itl", str(ITL)) as server:
        if server.process is not None:
            os.sched_setaffinity(server.process.pid, {0})
        for peer in peers:
            for count in (128, 256, 512, 1024, 1536):
                try:
                    run = measure(peer, server, Load(server.url, 3 * count, count), cores={1})
                except (RuntimeError, OSError, LookupError, ValueError) as error:
                    lines.append(f"| {peer.name} | {count} | failed: {str(error)[:120]} | | | | |")
                    break
                ttft, itl = run.error("ttft", "p95"), run.error("itl", "p95")
                good = ttft is not None and itl is not None and abs(ttft) <= 5 and abs(itl) <= 1
                figures = (
                    f"{run.rate():,.0f} | {shown(ttft)} | {shown(itl)} | {1e6 * run.cpu / run.truth['tokens']:.1f}"
                )
                lines.append(f"| {peer.name} | {count} | {figures} | {'yes' if good else 'no'} |")
                print(lines[-1], flush=True)
                if not good:
                    break
    return lines


def scaling(model: Path) -> list[str]:
    """This harness with more and more processes (a core each): does what it reads
    undistorted grow with them?
    """
    ours = next(peer for peer in PEERS if not peer.packages)
    lines = ["| processes | streams | tokens/s | TTFT error p95 (ms) | ITL error p95 (ms) |", "|--:|--:|--:|--:|--:|"]
    with TimingServer(model, "--ttft", str(TTFT), "--itl", str(ITL)) as server:
        for processes in (1, 2, 4, 8):
            if 2 * processes > (os.cpu_count() or 1):
                break
            run = measure(ours, server, Load(server.url, 3 * 512 * processes, 512 * processes, processes=processes))
            figures = f"{run.rate():,.0f} | {shown(run.error('ttft', 'p95'))} | {shown(run.error('itl', 'p95'))}"
            lines.append(f"| {processes} | {512 * processes} | {figures} |")
            print(lines[-1], flush=True)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", default="16,64,256")
    parser.add_argument("--only", default="", help="Names of peers, separated by commas.")
    parser.add_argument("--parts", default="accuracy,errors,arrivals,capacity")
    parser.add_argument("--capacity-only", default="this harness", help="Peers whose capacity is searched.")
    parser.add_argument("--rate", type=float, default=150)
    parser.add_argument("--arrivals", type=int, default=10_500)
    parser.add_argument("--out", type=Path, default=CACHE / "loadtest.md")
    given = parser.parse_args()
    peers = [peer for peer in PEERS if not given.only or peer.name in given.only.split(",")]
    model = tiny_model(CACHE / "model") if not (CACHE / "model").exists() else CACHE / "model"
    parts = {
        "accuracy": ("Accuracy and cost", lambda: accuracy(peers, [int(n) for n in given.streams.split(",")], model)),
        "errors": ("10 of 48 streams carry an error", lambda: errors(peers, model)),
        "arrivals": (
            f"Poisson arrivals at {given.rate:g}/s (true CV 1.00)",
            lambda: arrivals(peers, model, given.rate, given.arrivals),
        ),
        "scaling": ("With more processes", lambda: scaling(model)),
        "capacity": (
            "Undistorted on one core",
            lambda: capacity([p for p in peers if p.name in given.capacity_only.split(",")], model),
        ),
    }
    at = datetime.now(tz=UTC).strftime("%Y-%m-%d %H:%M UTC")
    with given.out.open("w", encoding="utf-8") as out:
        out.write(f"TTFT {TTFT} ms, ITL {ITL} ms, {TOKENS} tokens; {os.cpu_count()} cores; {at}.\n")
        for name in given.parts.split(","):
            title, part = parts[name]
            out.write(f"\n## {title}\n\n" + "\n".join(part()) + "\n")
            out.flush()
    notes = {peer.name: peer.note for peer in peers if peer.note}
    print(json.dumps(notes, indent=1))


if __name__ == "__main__":
    main()
