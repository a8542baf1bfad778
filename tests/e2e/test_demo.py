"""``scripts/demo`` as a new user runs it, in this checkout: what it prints, what it
leaves.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import psutil
import pytest

from tests.e2e.service_under_test import ROOT

pytestmark = pytest.mark.timeout(1200)
DEMO = ROOT / ".demo"


def test_the_demo_ends_with_a_tested_service_and_leaves_nothing_running() -> None:
    done = subprocess.run(
        [ROOT / "scripts" / "demo"], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=1100
    )
    assert done.returncode == 0, done.stdout + done.stderr
    said = dict(line.split(maxsplit=1) for line in done.stdout.splitlines() if len(line.split(maxsplit=1)) == 2)
    assert "Paris" in said["answer"]
    assert said["endpoint"].startswith("http://127.0.0.1:8000/v1")
    report = Path(said["report"])
    assert report.is_relative_to(DEMO)
    assert json.loads(report.with_name("report.json").read_text())["passed"] is True
    for part in ("output_tokens_per_second_min", "TTFT", "ITL", "TPOT"):
        assert part in done.stdout
    assert said["run"].startswith("http://127.0.0.1:")
    assert "Traceback" not in done.stdout + done.stderr
    assert [
        p.cmdline() for p in psutil.process_iter(["cmdline"]) if str(DEMO) in " ".join(p.info["cmdline"] or ())
    ] == []
