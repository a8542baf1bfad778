"""Specs as nobody should write them: cut, garbled, and right in form with wrong values.

Each is refused as bad input, or is a spec: it says the same when it is written and read
again, and what is made of it can be rendered.
"""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml

from model_delivery.base import BadInput, Trouble, packaged
from model_delivery.spec import DeliverySpec, load_spec, parse_spec
from model_delivery.verbs.plan import render
from tests.fuzz.seeded import Dice, play, shares

DEADLINE = 10.0
DELIVERIES = packaged("").parent / "deliveries"
RICH = """\
apiVersion: model-delivery/v1
name: rich
model:
  source: huggingface
  repo: org/model
  revision: "main"
  include: ["*.json", "*.safetensors"]
  token: {kube: {name: hf-token, key: token}}
  fallback: [{source: modelscope, repo: org/model, revision: "master"}]
  pins: {model.safetensors: "0000000000000000000000000000000000000000000000000000000000000000"}
  allow: [pickle]
storage: {claim: models, size: 100Gi, storage_class: fast, access: ReadWriteMany, notebook: false}
serving:
  model_names: [rich, org/model]
  args: ["--max-model-len", "1024"]
  env: {A: b, C: {kube: {name: s, key: k}}}
  api_key: {kube: {name: s, key: k}}
  chat_template: template.jinja
  resources: {limits: {nvidia.com/gpu: 1, cpu: 500m, memory: 64Gi}}
  replicas: {min: 1, max: 2}
  startup_timeout: 10m
  pod:
    node_selector: {gpu: h200}
    tolerations: [{key: gpu, operator: Exists}]
    image_pull_secrets: [registry]
    security_context: {runAsUser: 1000}
    volumes: [{name: v, emptyDir: {}}]
    volume_mounts: [{name: v, mountPath: /v}]
    shm: 8Gi
    annotations: {a: b}
target: {kind: KIND}
runner: {image: "registry.example/model-delivery:1", resources: {limits: {cpu: 1}}}
gates:
  smoke: {prompt: "What is the capital of France?", expect: Paris, max_tokens: 64}
  throughput:
    {profile: profile.yaml, users: 16, warmup: 10s, duration: 60s, repeats: 2, max_regression: 0.1,
     slo: {error_rate_max: 0, ttft_p95_max: 500ms, itl_p95_max: 50ms, output_tokens_per_second_min: 400}}
rollout: {strategy: canary, steps: [10, 50], soak: 60s, watch: 10m, when_full: refuse, standby: 30m, keep: 3}
schedule: {cron: "0 3 * * *", timezone: UTC}
concurrency: wait
"""
TARGETS = (
    '{kind: t9k, namespace: demo, image: "vllm/vllm-openai:v0.33.0", queue: q}',
    '{kind: deployment, namespace: demo, image: "vllm/vllm-openai:v0.33.0", gateway: infra/gateway}',
    '{kind: kserve, namespace: demo, image: "vllm/vllm-openai:v0.33.0", gateway: infra/gateway}',
)
SOUND = [
    *(file.read_text(encoding="utf-8") for file in sorted(DELIVERIES.glob("*.yaml"))),
    *(RICH.replace("{kind: KIND}", target) for target in TARGETS),
]
BESIDE = {
    "profile.yaml": "prompt_tokens: 64\noutput_tokens: 64\nprompts: prompts.txt\ntimeout: 30\n",
    "prompts.txt": 'plain\n{"prompt": "p", "output_tokens": 3}\n{"messages": [{"role": "user", "content": "c"}]}\n',
    "template.jinja": "{% for m in messages %}{{ m.content }}{% endfor %}",
}
WORDS = (
    *("010", "0x1F", "0b1", "1_000", "4:30", "1:30:00", "1e400", "-1", "0", "1.5", ".inf", "-.inf", ".nan", "-0", "1e3"),
    *("9" * 400, "9" * 5000, f"{'9' * 400}Gi", "9" * 400 + "s", "1e999Gi", "-5s", "0s", "1ns", "1h30m", "500m", "²", "٣"),
    *("yes", "no", "on", "null", "~", "true", "=", "<<", "2020-01-01", "2001-12-14t21:59:43.10-05:00", '""', '" "', '"\\n"'),
    *("[]", "{}", "[[]]", "{a: b}", "[null]", "{null: null}", "{[a]: b}", "{1: 2}", "{true: false}", "[1, a]", "{env: A}"),
    *("!!binary aGk=", "!!set {a}", "!!omap [a: b]", "!!python/object:os.system {}", "!x y", "&a [*a]", "*a", "&b b"),
    *('"\\0"', '"\\ud800"', '"\\U0010ffff"', '"\\u202e"', '"\\x1b[31m"', '"[red]"', '"[/]"', '"{{x}}"', '"$(id)"', '"`id`"'),
    *("/dev/zero", "/dev/stdin", "/proc/self/mem", "/", "..", "../../etc/passwd", "~root", "~nobody-there/x", "x" * 300),
    *("template.jinja", "profile.yaml", "absent.yaml", "prompts.txt", "é" * 100, "a b", "A", "-", "--model=x", "a=b", "\t"),
    *('"0 25 * * *"', '"* * * * * *"', '"0 0 30 2 *"', '"@daily"', "PST", "UTC", "Mars/Olympus", "org/model/x", "a@b", "%2e%2e"),
    *("process", "t9k", "kserve", "deployment", "local", "git", "modelscope", "huggingface", "s3", "file:///etc", "http://u:p@h/"),
)  # fmt: skip
PIECES = ("\0", "\t", "\r", "\x85", "\u2028", "\ufeff", "---\n", "...\n", "%YAML 9.9\n", "- ", ": ", "? ", "{", "]", "'", '"', "#", "&a ", "*a", "!", "|", ">", "\\", "é")  # fmt: skip


def holders(here: Any) -> Iterator[tuple[Any, Any]]:
    """Every mapping and list below, with each of its keys."""
    items = here.items() if isinstance(here, dict) else enumerate(here) if isinstance(here, list) else ()
    for key, value in list(items):
        yield here, key
        yield from holders(value)


def changed(dice: Dice, text: str) -> str:
    """Right in form; some values, keys or fields are others."""
    tree, raw = yaml.safe_load(text), list[str]()
    for _ in range(dice.choice((1, 1, 1, 1, 2, 4))):
        if not (places := list(holders(tree))):
            break
        values = [holder[key] for holder, key in places]
        holder, key = dice.choice(places)
        raw.append(dice.choice(WORDS))
        match dice.randrange(8):
            case 0:
                del holder[key]
            case 1 if isinstance(holder, dict):
                holder[f"@{len(raw) - 1}@"] = holder.pop(key)
            case 2:
                holder[key] = [holder[key]]
            case 3:
                holder[key] = copy.deepcopy(dice.choice(values))
            case _:
                holder[key] = f"@{len(raw) - 1}@"
    return _with(yaml.safe_dump(tree, sort_keys=False, allow_unicode=True, width=10_000), raw)


def _with(text: str, raw: list[str]) -> str:
    for number, word in enumerate(raw):
        text = text.replace(f"'@{number}@'", word)
    return text


def garbled(dice: Dice, text: str) -> bytes:
    """Cut, with lines out of order, foreign pieces, other bytes."""
    for _ in range(dice.choice((1, 1, 2, 8))):
        at, to = sorted(dice.randrange(len(text) + 1) for _ in range(2))
        lines = text.splitlines(keepends=True)
        match dice.randrange(7):
            case 0:
                text = text[:at]
            case 1:
                text = text[:at] + text[to:]
            case 2:
                text = text[:at] + dice.choice(PIECES) * dice.choice((1, 1, 3, 2000)) + text[at:]
            case 3:
                text = text[:to] + text[at:]
            case 4:
                dice.shuffle(lines)
                text = "".join(lines)
            case 5:
                text = "".join(" " * dice.randrange(4) * (dice.random() < 0.1) + line for line in lines)
            case _:
                text = text[:at] + dice.choice(WORDS) + text[at:]
    data = bytearray(text.encode(errors="surrogatepass"))
    for _ in range(dice.choice((0, 0, 0, 1, 3)) if data else 0):
        data[dice.randrange(len(data))] = dice.randrange(256)
    return bytes(data)


def one(dice: Dice) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for name, text in BESIDE.items():
            whole = dice.random() < 0.8
            Path(folder, name).write_bytes(text.encode() if whole else garbled(dice, text))
        text = dice.choice(SOUND)
        file = Path(folder, "spec.yaml")
        file.write_bytes(
            garbled(dice, text) if dice.random() < 0.25 else changed(dice, text).encode(errors="surrogatepass")
        )
        try:
            spec = load_spec(file)
        except BadInput:
            return
        the_same_again(spec)


def the_same_again(spec: DeliverySpec) -> None:
    """As a flow's parameter, and what is made of it in a cluster."""
    assert parse_spec(json.loads(spec.model_dump_json())) == spec
    with suppress(Trouble):
        assert render(spec, offline=True)[0]


@pytest.mark.parametrize("text", [text for text in SOUND if "kind: process" not in text])
def test_what_is_spoilt_is_sound_before(tmp_path: Path, text: str) -> None:
    for name, content in {**BESIDE, "spec.yaml": text}.items():
        (tmp_path / name).write_text(content, encoding="utf-8")
    assert render(load_spec(tmp_path / "spec.yaml"), offline=True)[0]


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seeds", shares(), ids=str)
def test_a_spec_is_refused_or_means_the_same_when_it_is_read_again(seeds: range) -> None:
    play(seeds, one, DEADLINE)
