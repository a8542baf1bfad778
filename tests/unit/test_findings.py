"""A finding has a code: on the first line for people, in JSON for machines, on one page
for those who look it up.
"""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import pytest

from model_delivery.base import Finding, GateFailed, Refused
from model_delivery.cli.main import unexpected
from model_delivery.cli.printing import bad_news
from model_delivery.diagnosis import machine_signs
from model_delivery.diagnosis.engine_signs import ARGUMENTS, MODEL
from scripts.findings import Entry, Scan, page
from tests.parts.ports import free_port
from tests.unit.test_cli import deliver, home, spec

__all__ = ["home"]


def test_the_code_stands_on_the_first_line_and_in_what_prefect_shows() -> None:
    finding = Finding("gate.ttft-p95", "TTFT p95 is over", "it is 9 ms", "read the report", ("a line",))
    assert str(finding) == "TTFT p95 is over: it is 9 ms [gate.ttft-p95]\n    a line\n  fix: read the report"
    assert str(GateFailed(finding)).startswith("exit code 4: TTFT p95 is over: it is 9 ms [gate.ttft-p95]\n")


@pytest.mark.parametrize(
    ("args", "exit_code", "code"),
    [
        (("up",), 2, "cli.usage"),
        (("up", "deliveries/smollm2.yaml", "--request", "../\x1b[31m"), 2, "release.bad-request"),
        (("no-such-verb",), 2, "cli.usage"),
        (("loadtest", "http://127.0.0.1:9", "--rate", "fast"), 2, "cli.usage"),
        (("loadtest", "http://127.0.0.1:9", "--users", "2", "--rate", "4/s"), 2, "cli.users-and-rate"),
        (("loadtest", "http://127.0.0.1:9"), 1, "load.no-model"),
        (("register", "deliveries/smollm2.yaml"), 3, "prefect.no-address"),
    ],
)
def test_a_failure_is_json_on_standard_output_and_text_on_standard_error(
    home: Path, args: tuple[str, ...], exit_code: int, code: str
) -> None:
    done = deliver(home, *args, "--json")
    told = json.loads(done.stdout)
    assert (done.returncode, told["exit_code"], told["error"]["code"]) == (exit_code, exit_code, code)
    assert told["error"].keys() == {"code", "what", "why", "fix", "evidence"}
    assert told["others"] == []
    assert told["error"]["what"] in done.stderr
    assert f"[{code}]" in done.stderr.splitlines()[0]
    assert told["error"]["why"]
    assert told["error"]["fix"]
    assert deliver(home, *args).stdout == ""


def test_json_that_is_given_a_value_is_an_error_in_json(home: Path) -> None:
    done = deliver(home, "list", "--json=1")
    assert (done.returncode, json.loads(done.stdout)["error"]["code"]) == (2, "cli.usage")


def test_a_state_folder_that_is_none_and_a_fault_of_ours_have_codes_too(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = spec(tmp_path, model, free_port())
    assert json.loads(deliver(file, "plan", str(file), "--json").stdout)["error"]["code"] == "host.no-state-folder"
    monkeypatch.setenv("MODEL_DELIVERY_HOME", str(tmp_path))
    fault = unexpected(KeyError("ours"))
    assert (fault.code, fault.why) == ("cli.fault", "KeyError: 'ours'")
    assert "KeyError" in Path(fault.fix.rpartition(" ")[2]).read_text()


CODE = """
FIX = "see the manual"
SIGNS = (Sign("engine.no-gpu", r"no device", r"it sees no GPU, \\1 wanted", "ask for one"),)


def refuse(port, why):
    what = f"the port {port} is taken" if port else "no port"
    raise Refused(Finding("host.port-taken", what, why, FIX))


def hand_on(sign):
    return Finding(sign.code, sign.what)
"""


def test_codes_meanings_and_remedies_are_read_from_the_code() -> None:
    scan = Scan("x.py", CODE)
    assert scan.wrong == []
    assert scan.entries == [
        Entry("engine.no-gpu", "it sees no GPU, {…} wanted", "ask for one"),
        Entry("host.port-taken", "the port {port} is taken / no port", "see the manual"),
    ]
    assert "| `host.port-taken` | the port {port} is taken / no port | see the manual |" in page(set(scan.entries))


def test_the_page_has_a_row_for_each_cause_and_no_words_of_our_code() -> None:
    text = (Path(__file__).parent.parent.parent / "docs" / "findings.md").read_text()
    assert "<br>" not in text
    assert not set(re.findall(r"\{(_\w+|rstrip|format_message|get|len|map|str|join|[A-Z_]{2,}|\d)\}", text))
    for sign in (*ARGUMENTS, *MODEL, *machine_signs.TELLING, *machine_signs.SIGNS, *machine_signs.LAST):
        assert f"`{sign.code}`" in text


@pytest.mark.parametrize(
    "code", ["'todo'", "'Host.Port'", "'weather.rain'", "f'host.{port}'", "code", "'host.two_words'"]
)
def test_a_code_that_is_none_is_refused_with_its_place(code: str) -> None:
    scan = Scan("x.py", f"\nFinding({code}, 'a', 'b', 'c')")
    assert scan.entries == []
    assert scan.wrong[0].startswith("x.py:2: ")


def test_a_remedy_that_many_findings_share_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    role = "kubectl apply -f role.yaml"
    missing = [Finding("cluster.right-missing", f"we may not get kind{n}", "", role) for n in range(38)]
    other = Finding("secret.no-pull-secret", "the pull secret is not there", "", "make it")
    trouble = Refused(missing[0], other, *missing[1:], missing[3])
    assert bad_news(trouble) == 3
    for text in (capsys.readouterr().err, trouble.text):
        lines = text.splitlines()
        assert text.count(role) == 1
        assert len(lines) == 38 + 1 + 1 + 1, "each said once"
        assert [line.strip() for line in lines[38:]] == [f"fix: {role}", lines[39].strip(), "fix: make it"]


def test_an_api_server_that_nobody_listens_for_is_told_soon_and_once(tmp_path: Path, home: Path) -> None:
    cluster = {"name": "c", "cluster": {"server": f"https://127.0.0.1:{free_port()}", "insecure-skip-tls-verify": True}}
    context = {"name": "c", "context": {"cluster": "c", "user": "u"}}
    user = {"name": "u", "user": {"token": "t"}}
    config = {"clusters": [cluster], "contexts": [context], "users": [user], "current-context": "c"}
    file = tmp_path / "kubeconfig"
    file.write_text(json.dumps({"apiVersion": "v1", "kind": "Config", **config}))
    began = time.monotonic()
    said = deliver(home, "list", "-n", "ns", KUBECONFIG=str(file))
    assert time.monotonic() - began < 20
    assert said.returncode == 1
    first, fix = said.stderr.splitlines()
    assert "cannot be reached" in first
    assert "Connection refused" in first
    assert first.endswith("[cluster.not-reached]")
    assert "kubeconfig" in fix
