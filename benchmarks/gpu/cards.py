"""Which cards releases get on real GPUs, and what ``deliver status`` says of them: two
releases by shares, a third that has no room; where there are two cards, two releases
that want one each, and one spread over both.

    cards.py --work DIR --out DIR --engine-python PYTHON [--engine-path DIR]

The arguments, and what comes of it, are those of ``run.py``.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parent), str(Path(__file__).parents[1])]

from job import LARGE, SHARES, Service, make_large  # noqa: E402
from machine import deliver  # noqa: E402
from run import Results, arguments, begun  # noqa: E402

TENSOR_PARALLEL = ("--tensor-parallel-size", "2")


def shown(service: Service) -> dict[str, Any]:
    """The cards as --json has them, and as a person sees them."""
    command = [str(Path(sys.executable).with_name("deliver")), "status", service.name]
    environ = service.machine.environ | {"COLUMNS": "160"}
    said = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60, check=True).stdout
    print(said, flush=True)
    rows = deliver(service.machine, "status", service.name, limit=60).value["running"]
    return {"cards": {row["release"]: row["cards"] for row in rows}, "status": said, **service.machine.on_the_cards()}


def delivered(results: Results, service: Service, name: str, share: float, *args: str) -> None:
    with results.step(name, 300) as came:
        came.update(service.up(share, *args, limit=280))
        came.update(shown(service))


def refused(results: Results, service: Service, share: float) -> None:
    with results.step("no room", 90) as came:
        told = deliver(service.machine, "up", str(service.spec(share, "--max-num-seqs", "64")), limit=80, code=3)
        came["error"] = told.value["error"]


def down(results: Results, service: Service, name: str) -> None:
    with results.step(name, 160) as came:
        came.update(service.down())
        came.update(service.machine.on_the_cards())


def main() -> None:
    machine, results = begun(arguments(__doc__ or "").parse_args())
    with results.step("facts", 240) as came:
        came.update(machine.facts())
    with results.step("model", 300):
        make_large(machine)
    service, several = Service(machine, LARGE, results.card), len(machine.cards("index")) > 1
    delivered(results, service, "a share", SHARES["first"])
    delivered(results, service, "a share more", SHARES["second"], "--max-num-seqs", "512")
    refused(results, service, 0.95)
    down(results, service, "shares down")
    if several:
        delivered(results, service, "a card", 0.9)
        delivered(results, service, "another card", 0.9, "--max-num-seqs", "512")
        down(results, service, "cards down")
        delivered(results, service, "over both cards", 0.5, *TENSOR_PARALLEL)
        down(results, service, "all down")
    (machine.out / "done").touch()
    print(results.markdown())
    sys.exit(any("failed" in came for came in results.steps.values()))


if __name__ == "__main__":
    main()
