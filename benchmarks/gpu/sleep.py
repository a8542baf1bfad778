"""A standby that sleeps, on a real card: beside what serves (by shares of one card,
promoted and rolled back under an open loop), with all of the card for one release at a
time, and over two cards.

    sleep.py --work DIR --out DIR --engine-python PYTHON [--engine-path DIR]
        [--parts beside whole cards]

The arguments, and what comes of it, are those of ``run.py``; a machine may be given its
parts one after the other.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parent), str(Path(__file__).parents[1])]

from generators import traffic  # noqa: E402
from job import LARGE, SHARES, Service, Watcher, address_of, make_large  # noqa: E402
from machine import Machine, Told, deliver  # noqa: E402
from run import Results, arguments, begun  # noqa: E402

SLEEPS = {"standby_mode": "sleep", "when_full": "recreate"}
MEASURED = "6s"
SECOND = ("--max-num-seqs", "512")
FIRST_WRITE = r"^the fetch step: started"  # the step is the effect after the candidate's proposal


def wrote_at(told: Told) -> float:
    """Seconds from the command's start to just after its first write."""
    return next((at for at, line in told.lines if re.search(FIRST_WRITE, line)), 0.0)


def back(service: Service, watcher: Watcher, to: str, limit: float) -> dict[str, Any]:
    """Roll back; when ``to`` first answered at the stable address."""
    began = time.monotonic()
    told = deliver(service.machine, "rollback", service.name, "--to", to, limit=limit)
    came = service.came_to(told)
    time.sleep(0.5)
    first = watcher.first_after(began, address_of(service, to))
    since = round(first - wrote_at(told), 2) if first is not None else None
    return came | {"first token, s": first, "of it since the first write, s": since}


@contextmanager
def watched(service: Service, came: dict[str, Any], rate: float = 0.0) -> Iterator[Watcher]:
    """A client that asks for one token after the other, and an open loop where ``rate``
    is one; what came of both.
    """
    watcher = Watcher(service.url)
    with watcher.watching():
        if rate:
            with traffic(service.machine, service.url, service.model, rate) as load:
                time.sleep(4)
                yield watcher
                time.sleep(2)
                load.stop()
                came["traffic"] = load.counted
        else:
            yield watcher
    gaps = [after - before for (before, _), (after, _) in zip(watcher.seen, watcher.seen[1:], strict=False)]
    came |= {
        "tokens": len(watcher.seen),
        "failed": len(watcher.failed),
        "longest gap, s": round(max(gaps, default=0), 2),
    }


def of_its_first(results: Results, step: str) -> int:
    """The step "… again" beside ``step``: a release's second start, in percent."""
    first, again = (results.steps[name]["phases"]["start"] for name in (step, f"{step} again"))
    return round(100 * again / first)


def beside(machine: Machine, results: Results) -> None:
    service = Service(machine, LARGE, results.card, rollout=SLEEPS, measured=MEASURED, **machine.first_card)
    with results.step("beside: first", 300) as came:
        came.update(service.up(SHARES["first"], limit=290))
        came["cards"] = machine.on_the_cards()
    with (
        results.step("beside: under load", 400) as came,
        watched(service, came, 0.3 if machine.rehearsal else 8.0) as seen,
    ):
        first = results.steps["beside: first"]["release"]
        with results.step("beside: second", 300) as second:
            second.update(service.up(SHARES["second"], *SECOND, limit=290))
            second["cards"] = machine.on_the_cards()
        with results.step("beside: back from sleep", 120) as woken:
            woken.update(back(service, seen, first, 110))
            woken["cards"] = machine.on_the_cards()
    with results.step("beside: second again", 300) as came:
        came.update(service.up(SHARES["second"], *SECOND, limit=290))
        came["of its first start, %"] = of_its_first(results, "beside: second")
    with results.step("beside: first again", 300) as came:
        came.update(service.up(SHARES["first"], limit=290))
        came["of its first start, %"] = of_its_first(results, "beside: first")
    with results.step("beside: down", 120) as came:
        came.update(service.down() | machine.on_the_cards())


def whole(machine: Machine, results: Results) -> None:
    """The spec asks for every CPU too, so that the rehearsal, without a card, has no room
    either.
    """
    share = 0.85
    alone = machine.first_card
    service = Service(machine, LARGE, results.card, rollout=SLEEPS, measured=MEASURED, whole=True, **alone)
    with results.step("whole: first", 300) as came:
        came.update(service.up(share, limit=290))
        came["cards"] = machine.on_the_cards()
    first = results.steps["whole: first"]["release"]
    with results.step("whole: second, the first asleep", 300) as came, watched(service, came):
        came.update(service.up(share, *SECOND, limit=290))
        came["cards"] = machine.on_the_cards()
    with results.step("whole: back from sleep", 120) as came, watched(service, came) as seen:
        came.update(back(service, seen, first, 110))
        came["cards"] = machine.on_the_cards()
    with results.step("whole: refused, the first woken", 300) as came, watched(service, came):
        came.update(service.refused(share, *SECOND, limit=290))
        came["cards"] = machine.on_the_cards()
    with results.step("whole: down", 120) as came:
        came.update(service.down() | machine.on_the_cards())


def cards(machine: Machine, results: Results) -> None:
    """Two cards: a release a card, then one release over both."""
    service = Service(machine, LARGE, results.card, rollout=SLEEPS, measured=MEASURED, gpus=machine.gpus)
    with results.step("cards: one", 300) as came:
        came.update(service.up(0.85, limit=290))
    with (
        results.step("cards: the other, under load", 400) as came,
        watched(service, came, 0.3 if machine.rehearsal else 8.0),
    ):
        came.update(service.up(0.85, *SECOND, limit=290))
        came["cards"] = machine.on_the_cards()
        came["status"] = service.told()
    service.gpus = 2 * machine.gpus
    words = () if machine.rehearsal else ("--tensor-parallel-size", "2")
    with results.step("cards: over both, the one before asleep", 400) as came:
        came.update(service.up(0.85, *words, limit=390))
        came["cards"] = machine.on_the_cards()
        came["status"] = service.told()
    with results.step("cards: back from sleep", 120) as came, watched(service, came) as seen:
        came.update(back(service, seen, results.steps["cards: the other, under load"]["release"], 110))
        came["cards"] = machine.on_the_cards()
    with results.step("cards: down", 120) as came:
        came.update(service.down() | machine.on_the_cards())


PARTS: dict[str, Callable[[Machine, Results], None]] = {"beside": beside, "whole": whole, "cards": cards}


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("--parts", nargs="+", choices=sorted(PARTS), default=list(PARTS))
    given = parser.parse_args()
    machine, results = begun(given)
    with results.step("facts", 240) as came:
        total = [float(line.split()[0]) / 1024 for line in machine.cards("memory.total")]
        came.update(
            {"cards": machine.cards("name,memory.total,driver_version"), "card_total_gib": min(total, default=0)}
        )
        came["cards before"] = machine.on_the_cards()
    with results.step("model", 300):
        make_large(machine)
    for part in given.parts:
        PARTS[part](machine, results)
    (machine.out / "done").touch()
    print(results.markdown())
    sys.exit(any("failed" in came for came in results.steps.values()))


if __name__ == "__main__":
    main()
