"""`deliver loadtest` as a user types it."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import jsonschema
import pytest
from click.testing import CliRunner

from model_delivery.base import Permanent
from model_delivery.cli.loadtest import loadtest
from model_delivery.verbs import loadtest as loads
from tests.parts.timing_engine import TimingServer
from tests.unit.test_cli import deliver, environment, home
from tests.unit.test_compare_cli import report

__all__ = ["environment", "home"]
QUICK = ("--profile", "smoke", "--users", "2", "--duration", "1s", "--warmup", "0s")
DOCS = Path(__file__).parents[2] / "docs"


def test_a_report_is_written_that_its_schema_allows(home: Path, model: Path, tmp_path: Path) -> None:
    with TimingServer(model, "--ttft", "20", "--itl", "2", names=("mine",)) as server:
        done = deliver(
            home,
            "loadtest",
            server.url + "/v1",
            *QUICK,
            "--slo",
            "itl_p50_max=1s",
            "--report",
            str(tmp_path / "r"),
            "--json",
        )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["passed"]
    assert said["figures"]["output_tokens_per_second"] > 0
    written = json.loads((tmp_path / "r" / "report.json").read_text())
    jsonschema.validate(written, json.loads((DOCS / "report.schema.json").read_text()))
    assert written["throughput"]["model"] == "mine"
    page = Path(said["report"]).read_text()
    assert "<svg" in page
    assert "src=" not in page
    assert "href=" not in page.replace("xlink:href=", "")
    assert (tmp_path / "r" / "throughput.png").read_bytes().startswith(b"\x89PNG")
    assert 'model_delivery_ttft_seconds{model="mine",quantile="0.95"}' in (tmp_path / "r" / "metrics.prom").read_text()


def test_a_broken_bound_ends_with_4_and_is_named(home: Path, model: Path, tmp_path: Path) -> None:
    with TimingServer(model, "--ttft", "50", "--itl", "2") as server:
        done = deliver(
            home, "loadtest", server.url, *QUICK, "--slo", "ttft_p50_max=10ms", "--report", str(tmp_path / "r")
        )
    assert done.returncode == 4
    assert "is over the bound of 10 ms" in done.stderr
    assert (tmp_path / "r" / "report.html").exists()


def test_capacity_is_found_with_replicas_for_a_demand(home: Path, model: Path, tmp_path: Path) -> None:
    asked = (
        "--profile",
        "smoke",
        "--duration",
        "2s",
        "--warmup",
        "0s",
        "--slo",
        "ttft_p50_max=60ms",
        "--steps",
        "8",
        "--demand",
        "200/s",
    )
    with TimingServer(model, "--ttft", "20", "--itl", "1", "--slots", "1") as server:
        done = deliver(
            home, "loadtest", server.url, *asked, "--find-capacity", "--report", str(tmp_path / "r"), "--json"
        )
    said = json.loads(done.stdout)["capacity"]
    assert said["rate"] is not None, done.stderr
    assert said["rate"] < 1000 / 43
    assert said["replicas"] >= 9
    assert [point["holds"] for point in said["tried"]] != [True] * len(said["tried"])
    assert "Throughput against load" in (tmp_path / "r" / "report.html").read_text()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--users", "2", "--rate", "4/s"), "exclude each other"),
        (("--rate", "fast"), "is not a rate"),
        (("--duration", "5 sec"), "is not a duration"),
        (("--slo", "ttft_p95_mx=5ms"), "ttft_p95_mx"),
        (("--slo", "ttft_p95_max=5"), "ttft_p95_max"),
        (("--profile", "chatt"), "there is no load profile chatt"),
        (("--max-regression", "0.1"), "needs --baseline"),
        (("--duration", "9" * 400 + "h"), "is not a duration"),
        (("--duration", "9" * 9 + "h"), "is more than 3650d"),
        (("--duration", "999h"), "longer than its profile allows"),
        (("--warmup", "999h"), "longer than its profile allows"),
        (("--metrics-url", "foo"), "metrics.0: not an address"),
        (("--baseline", "/nowhere", "--model", "m", "--users", "1"), "holds no load report"),
    ],
)
def test_a_wrong_argument_ends_with_2_before_anything_is_asked(home: Path, args: tuple[str, ...], message: str) -> None:
    done = deliver(home, "loadtest", "http://127.0.0.1:9", *args)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ({"report_version": 2, "figures_of_2": {}}, "report_version is 2, this version reads 1"),
        (json.loads(report(ttft=float("inf")).model_dump_json()), ""),
        ({}, "subject: is missing"),
        (report().model_copy(update={"throughput": None}).model_dump(mode="json"), "it was no load test"),
        (None, "report.json: No such file or directory"),
    ],
    ids=["newer", "not-finite", "no-report", "no-load-test", "gone"],
)
def test_a_baseline_that_cannot_be_read_ends_with_2_before_anything_is_asked(
    home: Path, tmp_path: Path, content: dict[str, object] | None, why: str
) -> None:
    if content is not None:
        (tmp_path / "report.json").write_text(json.dumps(content))
    done = deliver(home, "loadtest", "http://127.0.0.1:9", "--model", "m", "--baseline", str(tmp_path), "--json")
    assert done.returncode == 2, done.stderr
    error = json.loads(done.stdout)["error"]
    assert error["code"] == "cli.no-report"
    assert f"{tmp_path} holds no load report that this version reads" in error["what"]
    assert why in error["why"]


def test_a_baseline_that_kept_no_runs_is_compared_and_its_noise_is_not_invented(
    home: Path, model: Path, tmp_path: Path
) -> None:
    asked = (*QUICK, "--repeats", "2", "--report")
    with TimingServer(model, "--ttft", "20", "--itl", "2") as server:
        assert deliver(home, "loadtest", server.url, *asked, str(tmp_path / "old")).returncode == 0
        kept = json.loads((tmp_path / "old" / "report.json").read_text())
        del kept["throughput"]["runs"]
        (tmp_path / "old" / "report.json").write_text(json.dumps(kept))
        compared = ("--baseline", str(tmp_path / "old"), "--max-regression", "0.1", "--json")
        done = deliver(home, "loadtest", server.url, *asked, str(tmp_path / "new"), *compared)
    assert done.returncode == 0, done.stderr
    texts = [reason["text"] for reason in json.loads(done.stdout)["reasons"] if "regression" in reason["name"]]
    assert any(text.startswith("too noisy to tell, raise repeats: TTFT p95") for text in texts), texts
    assert all(text.endswith("(one run shows no noise)") for text in texts)


@pytest.mark.parametrize(
    "url", ["foo", "localhost:8000", "http://", "http://127.0.0.1:port", "http://u:s3cret@h", "http://h/v1?key=s3cret"]
)
def test_what_is_no_address_ends_with_2_and_its_password_is_not_told(home: Path, url: str) -> None:
    done = deliver(home, "loadtest", url)
    assert done.returncode == 2, done.stderr
    assert "url: " in done.stderr
    assert "s3cret" not in done.stderr


def test_a_server_that_is_not_there_is_named(home: Path) -> None:
    done = deliver(home, "loadtest", "http://127.0.0.1:9")
    assert done.returncode == 1
    assert "http://127.0.0.1:9/v1/models does not list a model" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_server_that_takes_connections_and_is_silent_is_told_before_the_test(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loads, "FIRST_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        told = CliRunner().invoke(loadtest, [url, "--model", "m"])
    assert isinstance(told.exception, Permanent)
    assert "[load.silent]" in told.exception.text
