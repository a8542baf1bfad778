"""What a real engine's last lines are turned into: every way to fail that was seen has a name and a remedy."""

from __future__ import annotations

from pathlib import Path

import pytest

from delivery.diagnosis.engine_log import diagnose, is_retryable

LOGS = Path(__file__).parent / "engine-logs"
SEEN = {
    "bad-chat-template": "chat template does not exist",
    "gpu-busy": "another process holds the GPU's memory",
    "kv-none": "no memory is left for the KV cache",
    "lfs-pointer": "not safetensors",
    "no-config": "no configuration",
    "no-gpu-visible": "sees no GPU",
    "no-weights": "has no weights",
    "port-in-use": "port is taken",
    "removed-flag": "does not know the argument",
    "repo-offline": "looked for a model on a hub",
    "tensor-parallel-2-on-1": "more GPUs than there are",
    "truncated-safetensors": "cut short",
    "unknown-flag": "does not know the argument",
}


@pytest.mark.parametrize("fault", SEEN)
def test_a_failure_is_named_with_a_remedy_and_the_line_that_shows_it(fault: str) -> None:
    found = diagnose((LOGS / f"{fault}.txt").read_text(), 1)
    assert SEEN[fault] in found.what
    assert found.fix
    assert found.evidence


def test_a_taken_port_may_be_tried_again_and_a_misspelt_argument_may_not() -> None:
    assert is_retryable((LOGS / "port-in-use.txt").read_text(), 1)
    assert not is_retryable((LOGS / "unknown-flag.txt").read_text(), 2)


def test_an_exit_with_zero_is_a_failure() -> None:
    assert "is a failure" in diagnose("INFO: all is well", 0).why


def test_the_cause_of_an_unknown_failure_is_the_cores_own_exception() -> None:
    log = "(EngineCore pid=7) KeyError: 'rope'\n(APIServer pid=3) RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}"
    assert diagnose(log, 1).evidence == ("KeyError: 'rope'",)
