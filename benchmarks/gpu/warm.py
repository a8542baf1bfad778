"""An engine's start with its weights on the disk alone: read ahead while it imports its
libraries, and not. In turns, each from an empty page cache (root), by the same command.

    warm.py --work DIR --out DIR --engine-python PYTHON [--engine-path DIR] [--rounds 2]
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parent), str(Path(__file__).parents[1])]

from generators import MODEL  # noqa: E402
from job import LARGE, make_large  # noqa: E402
from machine import Machine, get  # noqa: E402
from run import arguments, begun  # noqa: E402

from model_delivery.places.host.warming import warm  # noqa: E402

PORT, LIMIT = 8055, 240.0


def started(machine: Machine, *, ahead: bool) -> dict[str, Any]:
    """Seconds until it is healthy, and what its log says of the weights."""
    model, log = machine.work / LARGE, machine.out / f"warm-{ahead}.log"
    weights = {file.name: file.stat().st_size for file in sorted(model.glob("*.safetensors"))}
    subprocess.run(["sync"], check=True)
    Path("/proc/sys/vm/drop_caches").write_text("1\n", encoding="ascii")
    _libraries_in_the_cache(machine)  # they are not what is measured
    command = [machine.engine_python, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)]
    command += ["--served-model-name", MODEL, "--port", str(PORT), "--host", "127.0.0.1", "--max-model-len", "2048"]
    command += ["--dtype", "bfloat16", "--enforce-eager"]
    began = time.monotonic()
    with log.open("wb") as sink:
        child = subprocess.Popen(
            command, env=machine.engine_environ, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink
        )
        reader = warm(model, weights.items()) if ahead else None
        try:
            _healthy(child, began)
            seconds = round(time.monotonic() - began, 1)
        finally:
            child.terminate()
            child.wait(60)
    if reader:
        reader.join()
    said = log.read_text(errors="replace").splitlines()
    loading = [line.split("] ")[-1] for line in said if "Loading weights took" in line]
    return {"read ahead": ahead, "healthy, s": seconds, "said": loading}


def _libraries_in_the_cache(machine: Machine) -> None:
    subprocess.run(
        [machine.engine_python, "-c", "import torch, transformers, vllm.entrypoints.openai.api_server"],
        env=machine.engine_environ,
        check=True,
        capture_output=True,
    )


def _healthy(child: subprocess.Popen[bytes], began: float) -> None:
    while time.monotonic() < began + LIMIT:
        if child.poll() is not None:
            raise RuntimeError(f"the engine ended with {child.returncode}")
        try:
            get(f"http://127.0.0.1:{PORT}/health")
        except OSError:
            time.sleep(0.2)
        else:
            return
    raise RuntimeError("it did not become healthy")


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("--rounds", type=int, default=2)
    given = parser.parse_args()
    machine, results = begun(given)
    with results.step("model", 300):
        make_large(machine)
    for number in range(given.rounds):
        for ahead in (False, True)[:: -1 if number % 2 else 1]:
            with results.step(f"start {number + 1}, {'read ahead' if ahead else 'not'}", LIMIT + 60) as came:
                came.update(started(machine, ahead=ahead))
    print(results.markdown())
    sys.exit(any("failed" in came for came in results.steps.values()))


if __name__ == "__main__":
    main()
