"""What a real engine's last lines are turned into: every way to fail that was seen has a
name and a remedy.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from model_delivery.diagnosis.engine_log import diagnose

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
    # vLLM 0.32 on the CPU says some of it otherwise; its log warns of an OSError at every
    # start
    "cpu-arch": "does not know the model's architecture",
    "cpu-bad-value": "refuses the argument --max-model-len",
    "cpu-kv-fraction": "invalid literal for int() with base 10: '0.25'",
    "cpu-kv-huge": "too little free memory for the KV cache",
    "cpu-kv-small": "cannot hold one request of full length",
    "cpu-len-over": "--max-model-len 65536 is above the model's 8192",
    "cpu-lfs": "not safetensors",
    "cpu-no-config": "no configuration",
    "cpu-no-folder": "folder does not exist",
    "cpu-no-tokenizer": "tokenizer is missing",
    "cpu-no-weights": "has no weights",
    "cpu-port": "port is taken",
    "cpu-template": "chat template does not exist",
    "cpu-tp2": "--tensor-parallel-size 4 does not divide the model's 9 heads",
    "cpu-unknown-flag": "does not know the argument --max-modle-len",
    "cpu-worker-killed": "one of its processes was killed",
}


@pytest.mark.parametrize("fault", SEEN)
def test_a_failure_is_named_with_a_remedy_and_the_line_that_shows_it(fault: str) -> None:
    found = diagnose((LOGS / f"{fault}.txt").read_text(), 1).finding
    assert SEEN[fault] in found.what
    assert found.fix
    assert 1 <= len(found.evidence) <= 5


def test_every_kept_log_is_expected_to_say_something() -> None:
    bare = {"gemma2-float16", "len-over-model-max", "unknown-architecture"}  # kept without the line that says why
    assert {path.stem for path in LOGS.glob("*.txt")} == {*SEEN, *bare}


def test_the_fix_names_the_length_that_works_and_the_argument_that_was_meant() -> None:
    assert "--max-model-len 768" in diagnose((LOGS / "cpu-kv-small.txt").read_text(), 1).finding.fix
    assert "did you mean --max-model-len?" in diagnose((LOGS / "cpu-unknown-flag.txt").read_text(), 2).finding.fix


def test_a_kill_without_a_word_in_the_log_points_at_the_memory() -> None:
    assert "out of memory" in diagnose("INFO: serving", -9).finding.fix
    assert not diagnose("INFO: serving", -9).retryable


def test_a_core_that_dies_while_serving_may_be_started_again_and_its_last_words_are_shown() -> None:
    log = "(EngineCore pid=7) ERROR 11-23 22:45:55 [core.py:1] KeyError: 'rope'\n(APIServer pid=3) vllm.EngineDeadError: EngineCore encountered an issue."
    assert diagnose(log, 0).finding.evidence[0] == "KeyError: 'rope'"
    assert diagnose(log, 0).retryable


def test_a_log_of_nothing_is_no_crash_of_ours() -> None:
    assert diagnose("", None).finding.what == "the engine ended"


def test_a_taken_port_may_be_tried_again_and_a_misspelt_argument_may_not() -> None:
    assert diagnose((LOGS / "port-in-use.txt").read_text(), 1).retryable
    assert not diagnose((LOGS / "unknown-flag.txt").read_text(), 2).retryable


def test_an_exit_with_zero_is_a_failure() -> None:
    assert "is a failure" in diagnose("INFO: all is well", 0).finding.why


def test_the_cause_of_an_unknown_failure_is_the_cores_own_exception() -> None:
    log = "(EngineCore pid=7) KeyError: 'rope'\n(APIServer pid=3) RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}"
    assert diagnose(log, 1).finding.evidence == ("KeyError: 'rope'",)
