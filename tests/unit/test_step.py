"""A step outside of a run is a plain call."""

from __future__ import annotations

import subprocess
import sys

PLAIN_CALL = """
import sys
from model_delivery.base import Progress, report, sink
from model_delivery.tasks import artifacts
from model_delivery.tasks.step import run_id, step

heard = []

@step("double")
def double(number: int) -> int:
    report(Progress("double"))
    return 2 * number

with sink(heard.append), artifacts.progress_sink():
    assert double(number=21) == 42
artifacts.publish_plan("# plan")
artifacts.publish_picture(b"", "nothing")
assert run_id() is None
assert heard == [Progress("double")], heard
print(sorted(name for name in sys.modules if name.split(".")[0] == "prefect"))
"""


def test_a_plain_call_imports_no_prefect_and_leaves_the_listener_alone() -> None:
    said = subprocess.run([sys.executable, "-c", PLAIN_CALL], capture_output=True, text=True, check=False, timeout=60)
    assert (said.stdout.strip(), said.stderr) == ("[]", "")
