"""`deliver compare` as a user types it: releases, reports, and what is neither."""

from __future__ import annotations

import gzip
import json
from base64 import b64encode
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from click.testing import CliRunner, Result

from model_delivery.base import BadInput, GateFailed, Trouble
from model_delivery.cli.compare import compare
from model_delivery.measure.report import Report, Subject
from model_delivery.places import Place
from model_delivery.run import evidence
from model_delivery.run.record import Ended, Outcome
from tests.parts.ports import free_port
from tests.unit.test_cli import deliver, home, spec
from tests.unit.test_validity import load

__all__ = ["home"]
STEADY = (0.99, 1.0, 1.01)
CURVES = {"ttft": [(float(ms), ms / 200) for ms in range(0, 201, 5)]}
TIMELINE = [{"at": s, "tokens_per_second": 90.0 + s, "in_flight": 4, "errors": 0} for s in range(10)]


def report(ttft: float = 100, rate: float = 50, runs: tuple[float, ...] = STEADY, **more: Any) -> Report:
    figures = [{"ttft_p95": ttft * one, "output_tokens_per_second": rate * one} for one in runs]
    measured = load(runs=figures, curves=CURVES, timeline=TIMELINE, **more)
    args = ("--max-num-seqs", str(int(rate)))
    subject = Subject("small", f"r{ttft:g}", 1, "dark", "local x", "c" * 40, "vllm 0.18", args, 0.0)
    return Report(subject=subject, passed=True, reasons=(), throughput=measured)


def written(folder: Path, one: Report) -> str:
    folder.mkdir(exist_ok=True)
    (folder / "report.json").write_text(one.model_dump_json())
    return str(folder / "report.json")


def asked(*args: str) -> Result:
    return CliRunner().invoke(compare, args)


def refused(*args: str) -> Trouble:
    done = asked(*args)
    assert isinstance(done.exception, Trouble), done.output
    assert done.output == ""
    return done.exception


def test_each_figure_stands_beside_its_change_its_noise_and_what_differs(tmp_path: Path) -> None:
    a = written(tmp_path / "a", report())
    b = written(tmp_path / "b", report(ttft=130, rate=60))
    picture = tmp_path / "both.png"
    done = asked(a, str(tmp_path / "b"), "--picture", str(picture))
    assert done.exit_code == 0, done.output
    rows = {line.split("  ")[0]: line for line in done.output.splitlines()}
    assert "+30 %" in rows["TTFT p95"]
    assert rows["TTFT p95"].rstrip().endswith("worse")
    assert "+20 %" in rows["output rate"]
    assert rows["output rate"].rstrip().endswith("better")
    assert '--max-num-seqs: "50" → "60"' in done.output
    assert picture.read_bytes().startswith(b"\x89PNG")
    said = json.loads(asked(a, b, "--json").output)
    assert [(f["name"], f["words"]) for f in said["figures"]] == [
        ("ttft_p95", "worse"),
        ("output_tokens_per_second", "better"),
    ]
    assert said["figures"][1]["change"] == pytest.approx(0.2)
    assert said["figures"][1]["worse"] == pytest.approx(1 / 1.2 - 1)


@pytest.mark.parametrize(
    ("b", "words"),
    [
        (report(ttft=100.5), "no difference that shows"),
        (report(ttft=200, runs=(1.0,)), "one run shows no noise"),
        (report(ttft=50), "better"),
    ],
)
def test_what_does_not_show_is_not_called_a_difference(tmp_path: Path, b: Report, words: str) -> None:
    done = json.loads(asked(written(tmp_path / "a", report()), written(tmp_path / "b", b), "--json").output)
    assert done["figures"][0]["words"] == words


def test_a_bound_is_judged_as_the_gate_does(tmp_path: Path) -> None:
    a, b = written(tmp_path / "a", report()), written(tmp_path / "b", report(ttft=112))
    assert asked(a, b, "--max-regression", "20%").exit_code == 0
    assert asked(b, a, "--max-regression", "0.01").exit_code == 0, "better"
    done = asked(a, b, "--max-regression", "5%")
    assert done.exit_code == GateFailed.exit_code
    assert "12 % worse, 5 % is allowed" in done.output
    once = written(tmp_path / "once", report(runs=(1.0,)))
    assert refused(a, once, "--max-regression", "5%").findings[0].code == "compare.one-run"
    for wrong in ("-1%", "0", "five", "nan"):
        assert asked(a, b, f"--max-regression={wrong}").exit_code == 2


@pytest.mark.parametrize(
    ("b", "code", "why"),
    [
        (report(load="8 users"), "compare.other-load", "the load was 4 users, now it is 8 users"),
        (report(profile="rag"), "compare.other-load", "the profile was chat, now it is rag"),
        (report(validity={"kind": "contaminated", "why": "others"}), "compare.not-valid", "contaminated: others"),
        (report().model_copy(update={"throughput": None}), "compare.no-load-test", "no figures"),
        (report().model_copy(update={"report_version": 2}), "compare.unreadable-report", "report_version is 2"),
        (report(ttft=float("inf")), "compare.unreadable-report", ""),
        (report(runs=(1e-300, 1e300)), "compare.bad-figures", ""),
    ],
)
def test_what_cannot_be_compared_is_refused_with_its_reason(tmp_path: Path, b: Report, code: str, why: str) -> None:
    pair = written(tmp_path / "a", report()), written(tmp_path / "b", b)
    for order in (pair, pair[::-1]):
        trouble = refused(*order)
        assert trouble.exit_code == BadInput.exit_code
        assert trouble.findings[0].code == code
    assert why in str(refused(*pair))


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"", "compare.unreadable-report"),
        (b"[" * 100_000, "compare.unreadable-report"),
        (b'{"throughput": "\xff\x00"}', "compare.unreadable-report"),
        (b'{"\\u001b[31m": 1}', "compare.unreadable-report"),
        (report().model_dump_json().encode()[:-200], "compare.unreadable-report"),
        (b" " * (evidence.MOST + 1), "compare.no-report"),
        (None, "compare.no-report"),
    ],
)
def test_a_file_that_is_no_report_is_refused(tmp_path: Path, content: bytes | None, code: str) -> None:
    good, bad = written(tmp_path / "a", report()), tmp_path / "bad.json"
    if content is not None:
        bad.write_bytes(content)
    trouble = refused(good, str(bad))
    assert (trouble.exit_code, trouble.findings[0].code) == (BadInput.exit_code, code)
    assert "bad.json" in trouble.findings[0].what
    assert "\x1b" not in str(trouble)


@pytest.mark.parametrize(
    ("packed", "code"),
    [
        (b64encode(gzip.compress(report().model_dump_json().encode())).decode(), ""),
        (b64encode(gzip.compress(b" " * (evidence.MOST + 1))).decode(), "too large"),
        (b64encode(gzip.compress(b"{}")[:-4]).decode(), "too large"),
        ("bm8gZ3ppcA==", "damaged"),
        ("no base64!", "damaged"),
        (7, "damaged"),
    ],
)
def test_a_clusters_report_is_read_within_bounds(packed: object, code: str) -> None:
    kept = SimpleNamespace(resource=SimpleNamespace(spec={"report.json.gz": packed}))
    place = cast("Place", SimpleNamespace(get=lambda *_: kept))
    tried = Ended("r", 1, Outcome.PROMOTED, "q", 0, 0.0, report=evidence.where("small", "r", 1))
    if code:
        with pytest.raises(OSError, match=code):
            evidence.report_json(place, "small", tried)
    else:
        assert Report.model_validate_json(evidence.report_json(place, "small", tried)) == report()


def test_a_picture_that_cannot_be_written_is_told_first(tmp_path: Path) -> None:
    a = written(tmp_path / "a", report())
    assert asked(a, a, "--picture", str(tmp_path / "x.jpg")).exit_code == 2
    assert asked(a, a, "--picture", f"{a}/x.png").exit_code == 2


def test_an_older_report_without_repeats_is_one_run(tmp_path: Path) -> None:
    old = report()
    assert old.throughput
    old = old.model_copy(update={"throughput": old.throughput.model_copy(update={"runs": ()})})
    done = asked(written(tmp_path / "a", old), written(tmp_path / "b", report()), "--json")
    assert done.exit_code == 0, done.output
    assert {f["words"] for f in json.loads(done.output)["figures"]} == {"one run shows no noise"}


def test_releases_are_named_as_history_names_them(home: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODEL_DELIVERY_HOME", str(home))
    port = free_port()
    file = spec(home.parent, model, port)
    plain = file.read_text()
    releases = []
    try:
        for itl in ("2", "4"):
            file.write_text(f"{plain}serving: {{args: [--ttft, '20', --itl, '{itl}']}}\n")
            done = deliver(home, "up", str(file), "--json")
            assert done.returncode == 0, done.stderr
            releases.append(json.loads(done.stdout)["release"])
        old, new = (f"small@{release}" for release in releases)
        beside = asked(old, "small", "--json")
        assert beside.exit_code == 0, beside.output
        said = json.loads(beside.output)
        assert (said["a"]["named"], said["b"]["named"]) == (old, new), "a bare name is what serves"
        assert '--itl: "2" → "4"' in said["differs"]
        assert {f["words"] for f in said["figures"]} == {"one run shows no noise"}
        kept = home / "deliveries" / "small" / "reports" / f"{releases[0]}-1"
        mixed = asked(str(kept), str(file))
        assert mixed.exit_code == 0, mixed.output
        assert '--itl: "2" → "4"' in mixed.output
        unknown = refused("small@nope", "small")
        assert (unknown.exit_code, unknown.findings[0].code) == (2, "compare.no-release")
        assert releases[0] in str(unknown)
        assert refused("smal", "small").findings[0].code == "record.no-such-delivery"
        (kept / "report.json").write_text("{")
        assert refused(old, new).findings[0].code == "compare.unreadable-report"
        (kept / "report.json").unlink()
        assert refused(old, new).findings[0].code == "compare.no-report"
    finally:
        assert deliver(home, "down", "small").returncode == 0
    assert refused("small", new).findings[0].code == "compare.nothing-serves"
