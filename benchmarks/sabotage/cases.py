"""The sabotaged releases: what each does, and for what it must be refused."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

SLOW, SMOKE, LOAD = ("--ttft", "20", "--itl", "6"), "smoke", "throughput"
MARKED = "ĠTheĠcapitalĠofĠFranceĠisĠParis."


@dataclass(frozen=True)
class Case:
    """``args``: the engine's, beside the good ones (the last of a kind counts). ``code``
    and ``words``: of a finding of the refusal at ``step``.

    ``during``: what is done to the engine, and when. ``serves``: whether the old release
    has the traffic all along, so that no answer may fail. ``then``: what else must hold.
    ``elsewhere``: the test that plays it, where one host cannot.
    """

    name: str
    code: str = ""
    words: str = ""
    args: tuple[str, ...] = ()
    step: str = SMOKE
    during: str = ""
    serves: bool = True
    then: str = ""
    elsewhere: str = ""
    spec: dict[str, Any] = field(default_factory=dict)


def load(name: str, code: str, words: str, *args: str, **more: Any) -> Case:
    return Case(name, code, words, args, LOAD, **more)


def smoke(name: str, words: str, *args: str, **more: Any) -> Case:
    return Case(name, "gate.smoke", words, args, SMOKE, **more)


CASES = (
    load("slow by 20 %", "gate.regression", "regressed: TPOT p95", *SLOW),
    load("slow first token", "gate.ttft-p95", "over the bound of 60 ms", "--ttft", "90"),
    load("stalls", "gate.e2e-p95", "over the bound of 400 ms", "--stall", "400"),
    load("2 % errors", "gate.error-rate", "status 503", "--fault", "status", "--fault-every", "50"),
    load("errors in the stream", "gate.error-rate", "error in the stream", "--stream-error", "--fault-every", "20"),
    smoke("no [DONE]", "the stream had no [DONE]", "--fault", "no-done"),
    smoke("empty outputs", "the stream had zero tokens", "--fault", "empty"),
    load(
        "outputs cut short", "gate.error-rate", "short of the asked length", "--fault", "short", "--fault-every", "20"
    ),
    smoke("wrong weights under the right name", "'Paris' is not in 'I do not know.'", "--wrong-answer"),
    smoke("no chat template", "you must provide a chat template", "--no-chat-template"),
    smoke("broken tokenizer", "the tokenizer's own marks, not in text", "--says", MARKED),
    smoke("garbage from a bad dtype", "'Paris' is not in '!!!!", "--says", "!!!!!!!!"),
    smoke(
        "truncated context",
        "the server says 256, asked was 512",
        *("--max-model-len", "512", "--cut-context", "256"),
    ),
    smoke("wrong served name", "not served; served: another", "--renamed", "another"),
    Case("dies after Ready (exit 0)", "engine.ended", "it ended with exit code 0", ("--die-after", "60"), "–"),
    smoke(
        "ignores SIGTERM", "'Paris' is not in", "--wrong-answer", "--ignore-sigterm", then="stopped, nothing remains"
    ),
    Case("one bad replica of two", elsewhere="tests/cluster/control/test_replicas.py"),
    smoke("health without generation", "timeout after", "--wedge-after", "0"),
    smoke("no key asked for", "without the key it gives an answer", "--no-auth", spec={"api_key": True}),
    load("restarted during the test", "gate.not-valid", "was restarted during the test", "--restart-after", "60"),
    load("another's traffic", "gate.not-valid", "were ours", during="traffic"),
    load("wedged during the gate", "gate.error-rate", "timeout", "--wedge-after", "60"),
    Case(
        "wedged during watch",
        "gate.silent-while-watched",
        "it did not answer within",
        step="watch",
        during="wedge while watched",
        serves=False,
        spec={"watch": "40s"},
    ),
    Case(
        "wedged an hour later",
        "healed",
        "gives no token",
        step="answers",
        during="wedge once promoted",
        serves=False,
    ),
)
