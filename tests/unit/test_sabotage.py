"""The sabotage benchmark's table, and one of its releases played in small."""

from __future__ import annotations

from pathlib import Path

from benchmarks.sabotage.__main__ import begun, row
from benchmarks.sabotage.cases import CASES
from benchmarks.sabotage.lab import Lab


def test_each_sabotage_has_a_name_and_a_reason_of_its_own() -> None:
    assert len({case.name for case in CASES}) == len(CASES) == 24
    reasons = [(case.code, case.words, case.args) for case in CASES if not case.elsewhere]
    assert len(set(reasons)) == len(reasons)
    assert all(case.code and case.words for case in CASES if not case.elsewhere)


def test_a_release_whose_streams_do_not_end_is_refused_for_that_while_the_old_one_serves(tmp_path: Path) -> None:
    lab = Lab(tmp_path, "0s", 0)
    try:
        begun(lab)
        came = row(lab, next(case for case in CASES if case.name == "no [DONE]"))
    finally:
        lab.down()
    assert (came.step, came.code, came.wrong) == ("smoke", "gate.smoke", "")
