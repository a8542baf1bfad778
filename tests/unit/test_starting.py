"""How far an engine's start is: what people read while they wait is no line of a
library's.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from model_delivery.base import Permanent, sink
from model_delivery.diagnosis.starting import starting
from model_delivery.run.wait import until
from model_delivery.values import InProgress, World
from tests.protocol.simulated import Clock, Place

CORE = "(EngineCore pid=3809) INFO 11-23 15:40:11 [core.py:116] "
START = (
    "Triton is installed, but doesn't include CPU backend. Disabling Triton.",
    "(APIServer pid=1) INFO 11-27 17:31:00 [api_utils.py:286] non-default args: {'host': '127.0.0.1'}",
    "(APIServer pid=1) WARNING 11-27 17:31:00 [vllm.py:1703] Enforce eager set, disabling torch.compile, CUDAGraphs",
    f"{CORE}Initializing a V1 LLM engine (v0.26.0) with config: model='/models/m'",
    f"{CORE}Loading model from scratch...",
    "\rLoading safetensors checkpoint shards:  50% Completed | 3/6 [00:00<00:00,  7.53it/s]\r",
    f"{CORE}Model loading took 12.56 GiB and 1.474144 seconds",
    f"{CORE}Dynamo bytecode transform time: 1.97 s",
    f"{CORE}Available KV cache memory: 100.2 GiB",
    "Capturing CUDA graphs (decode, FULL):  57%|█████▋    | 4/7 [00:00<00:00, 9.1it/s]",
    f"{CORE}Graph capturing finished in 2 secs, took 0.5 GiB",
    f"{CORE}init engine (profile, create kv cache, warmup model) took 44.37 s (compilation: 20.58 s)",
    "(APIServer pid=1) INFO 11-27 17:31:21 [entry.py:140] Starting vLLM server on http://127.0.0.1:58309",
)
SAID = (
    "",
    "its configuration is read",
    "its configuration is read",
    "its core begins",
    "the weights are loaded",
    "the weights are loaded, file 3 of 6",
    "the weights are in memory",
    "the model is compiled",
    "memory is laid out",
    "CUDA graphs are captured, 4 of 7",
    "its kernels are warmed up",
    "its core is ready",
    "its server opens the port",
)


@pytest.mark.parametrize(("lines", "said"), [(n + 1, said) for n, said in enumerate(SAID)])
def test_its_last_milestone_is_told_and_nothing_else(lines: int, said: str) -> None:
    assert starting("\n".join(START[:lines])).why == f"the engine is starting{said and ': ' + said}"


def test_a_deadline_shows_the_last_line_of_the_log() -> None:
    with pytest.raises(Permanent) as late:
        waiting(lambda _: starting(START[0]))
    [finding] = late.value.findings
    assert finding.why == "last seen: the engine is starting"
    assert finding.evidence == (f"its log ends with: {START[0]}",)


def test_a_long_wait_says_again_what_it_waits_for_and_how_long_it_may() -> None:
    told: list[str] = []
    with sink(lambda news: told.append(news.line())), pytest.raises(Permanent):
        waiting(lambda _: InProgress("no node"))
    assert told == [f"r1: no node, {seconds} of at most 100 s" for seconds in (0, 20, 40, 60, 80, 100)]


def waiting(judge: Callable[[World], InProgress]) -> None:
    clock = Clock()
    place = Place(clock, True, 2, lambda _: False, lambda: None, lambda _: True)
    until(place, "chat", judge, what="r1", timeout=100, clock=clock)
