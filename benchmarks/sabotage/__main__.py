"""Is every bad release refused, for its own reason, while the old one serves; and is a
good one let through?

Run from the project's root: ``.venv/bin/python -m benchmarks.sabotage
[--only NAME …] [--unchanged N]``. Target ``process`` on this host, the real `deliver`,
the stand-in engine of known timing (tests/parts/timing).
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.sabotage.cases import CASES, Case
from benchmarks.sabotage.lab import Came, Lab

HEAD = ("sabotage", "refused at step", "code", "reason in words", "seconds", "old release's requests good/all", "as it should be")  # fmt: skip
TRIES = 3
NOISE = "it is client-limited"


@dataclass(frozen=True)
class Row:
    case: Case
    step: str
    code: str
    words: str
    seconds: float
    asked: str
    wrong: str

    @property
    def cells(self) -> tuple[str, ...]:
        return (
            self.case.name,
            self.step,
            self.code,
            self.words,
            f"{self.seconds:.0f}",
            self.asked,
            self.wrong or "yes",
        )


def main() -> int:
    names = [case.name for case in CASES]
    arguments = argparse.ArgumentParser(prog="python -m benchmarks.sabotage", description=__doc__)
    arguments.add_argument("--only", nargs="+", choices=names, metavar="NAME", help=", ".join(names).replace("%", "%%"))
    arguments.add_argument("--unchanged", type=int, default=0, metavar="N", help="good releases that differ in nothing")
    arguments.add_argument("--no-sabotage", action="store_true", help="the unchanged ones alone")
    arguments.add_argument("--duration", default="2s", help="of each load")
    arguments.add_argument("--repeats", type=int, default=3, help="of it; 20 %% of 5 ms are seen with 3")
    asked = arguments.parse_args()
    chosen = [case for case in CASES if not asked.no_sabotage and (not asked.only or case.name in asked.only)]
    with tempfile.TemporaryDirectory() as folder:
        lab = Lab(Path(folder), asked.duration, asked.repeats)
        print(f"{time.strftime('%Y-%m-%d %H:%M')}, {platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; "
              f"load tests of {asked.repeats} × {asked.duration}\n")  # fmt: skip
        try:
            begun(lab)
            well = sabotaged(lab, chosen) if chosen else True
            return 0 if (unchanged(lab, asked.unchanged) if asked.unchanged else True) and well else 1
        finally:
            lab.down()


def begun(lab: Lab) -> None:
    """The good release. RuntimeError where even that is refused."""
    for _ in range(TRIES):
        if (came := lab.up(lab.spec())).result == "promoted":
            return
    raise RuntimeError(f"the good release is refused: {came.findings}")


def sabotaged(lab: Lab, cases: list[Case]) -> bool:
    say(HEAD)
    say(["---"] * len(HEAD))
    rows = []
    for case in cases:
        rows.append(row(lab, case))
        say(rows[-1].cells)
    here = [each for each in rows if not each.case.elsewhere]
    print(f"\n{sum(not each.wrong for each in here)} of {len(here)} as they should be")
    return not any(each.wrong for each in here)


def row(lab: Lab, case: Case) -> Row:
    """Played again where the load generator could not keep its times."""
    if case.elsewhere:
        return Row(case, "–", "–", f"not played: {case.elsewhere}", 0, "–", "not played")
    tried, noisy = 0, True
    while noisy and tried < TRIES:
        tried += 1
        before = lab.engines()
        with lab.asking() as asked:
            came = lab.play(case)
        noisy = any(NOISE in finding["what"] for finding in came.findings)
    step, code, words = told(case, came)
    wrong = "; ".join(
        why
        for why, so in (
            (f"wanted {case.code} at {case.step}: {case.words}", (step, code) != (case.step, case.code)),
            ("the old release did not serve all along", case.serves and asked.good != asked.came.total()),
            ("the old release is another process", case.serves and lab.engines()[:1] != before[:1]),
            ("something remains", len(lab.engines()) != 1),
        )
        if so
    )
    words += f" ({case.then})" if case.then and not wrong else ""
    words += f" [played {tried} times: the machine was busy]" if tried > 1 else ""
    return Row(case, step, code, words, came.seconds, asked.told, wrong)


def told(case: Case, came: Came) -> tuple[str, str, str]:
    """Step, code and words of the finding that the case is about, else of the first."""
    if not came.findings:
        lines = [line for line in came.lines if case.words and case.words in line]
        return ("answers" if lines else "none"), came.result, lines[0] if lines else ""
    texts = {id(finding): f"{finding['what']}: {finding['why']}" for finding in came.findings}
    fits = [f for f in came.findings if f["code"] == case.code and case.words in texts[id(f)]]
    finding = (fits or came.findings)[0]
    gate = finding["why"].removeprefix("gate ") if finding["why"].startswith("gate ") else ""
    watched = "watch" if "watched" in finding["code"] else ""
    words = finding["what"] if gate else texts[id(finding)]
    return gate or watched or "–", finding["code"] if fits else f"{finding['code']} (!)", words


def unchanged(lab: Lab, number: int) -> bool:
    """At most one in fifty is refused; what the machine's other work spoiled is counted
    apart.
    """
    refused, busy = list[str](), 0
    with lab.asking() as asked:
        for at in range(1, number + 1):
            came = lab.up(lab.spec())
            noisy = any(NOISE in finding["what"] for finding in came.findings)
            busy += noisy
            if came.result != "promoted" and not noisy:
                refused += [finding["what"] for finding in came.findings if finding["code"] != "gate.refused"]
                print(f"unchanged {at}: {came.findings}", flush=True)
    print(f"\nunchanged: {number} delivered, {len(refused)} refusals, {busy} not judged (the machine was busy); "
          f"requests through the stable address {asked.told}")  # fmt: skip
    for why in refused:
        print(f"- {why}")
    return len(refused) <= max(1, number // 50)


def say(cells: tuple[str, ...] | list[str]) -> None:
    print("| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |", flush=True)


if __name__ == "__main__":
    sys.exit(main())
