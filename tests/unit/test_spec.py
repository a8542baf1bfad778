"""What a user sees of a spec that is wrong: file, line, column, field, what was wrong,
the nearest right name.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
import yaml

from model_delivery.base import BadInput, Duration, Rate, Size
from model_delivery.spec import DeliverySpec, load_spec, parse_spec

GOOD = """\
apiVersion: model-delivery/v1
name: m
model: {source: local, path: weights}
target: {kind: process, engine: vllm-cpu, port: 8000}
"""
DESIGN = """\
apiVersion: model-delivery/v1
name: codellama-7b
model:
  source: huggingface
  repo: codellama/CodeLlama-7b-Instruct-hf
  revision: "main"
  include: ["*.json", "*.safetensors"]
  exclude: ["original/*"]
  token: {kube: {name: hf-token, key: token}}
  fallback: [{source: modelscope, repo: AI-ModelScope/CodeLlama-7b-Instruct-hf, revision: "master"}]
  pins: {}
  allow: []
storage: {claim: vllm, size: 100Gi, storage_class: null, access: ReadWriteOnce, notebook: false}
serving:
  model_names: [codellama-7b]
  args: []
  env: {A: b, C: {kube: {name: s, key: k}}}
  api_key: null
  chat_template: null
  resources: {limits: {nvidia.com/gpu: 1, cpu: 4, memory: 64Gi}}
  replicas: {min: 1, max: 1}
  startup_timeout: null
  pod: {node_selector: {gpu: h200}, shm: 8Gi}
target: {kind: t9k, context: null, namespace: demo, image: "vllm/vllm-openai:v0.33.0", queue: null}
runner: {image: null, resources: {}, image_pull_secrets: []}
gates:
  smoke: {prompt: "What is the capital of France?", expect: Paris, max_tokens: 64}
  throughput:
    {profile: chat, users: 16, warmup: 10s, duration: 60s, repeats: 1, max_regression: null,
     slo: {error_rate_max: 0, ttft_p95_max: 500ms, itl_p95_max: 50ms, output_tokens_per_second_min: 400}}
rollout: {strategy: canary, steps: [10, 50], soak: 60s, watch: 10m, when_full: refuse, standby: 30m, keep: 3, history: 200}
approval: none
schedule: {cron: "0 3 * * *", timezone: UTC}
concurrency: wait
"""


def told(tmp_path: Path, text: str | bytes) -> str:
    file = tmp_path / "spec.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(BadInput) as caught:
        load_spec(file)
    assert caught.value.exit_code == 2
    return caught.value.text.replace(str(file), "FILE")


def test_every_field_of_the_design_is_read_and_survives_being_a_flows_parameter(tmp_path: Path) -> None:
    file = tmp_path / "spec.yaml"
    file.write_text(DESIGN)
    spec = load_spec(file)
    assert parse_spec(spec.model_dump(mode="json")) == spec
    assert spec.rollout.watch.seconds == 600


def test_defaults_and_paths(tmp_path: Path) -> None:
    file = tmp_path / "spec.yaml"
    (tmp_path / "template.jinja").write_text("{{ messages }}")
    (tmp_path / "load.yaml").write_text("{prompt_tokens: 3, output_tokens: 4, prompts: asked.txt}")
    (tmp_path / "asked.txt").write_text("one\ntwo\n")
    file.write_text(GOOD + "serving: {chat_template: template.jinja}\ngates: {throughput: {profile: load.yaml}}\n")
    spec = load_spec(file)
    assert spec.serving.model_names == ("m",)
    assert spec.model.model_dump()["path"] == str(tmp_path / "weights")
    assert spec.serving.chat_template == "{{ messages }}"
    assert spec.gates.throughput is not None
    assert spec.gates.throughput.profile == {"prompt_tokens": 3, "output_tokens": 4, "prompts": ["one", "two"]}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("servin: {}\n", "FILE:5:1: servin: unknown field; did you mean serving?"),
        ("serving: {modelnames: [a]}\n", "FILE:5:11: serving.modelnames: unknown field; did you mean model_names?"),
        (
            "gates: {throughput: {duration: 5 minutes}}\n",
            "FILE:5:22: gates.throughput.duration: '5 minutes' is not a duration: write 500ms, 30s",
        ),
        (
            "gates: {throughput: {slo: {ttft_p95: 1s}}}\n",
            "FILE:5:28: gates.throughput.slo.ttft_p95: unknown field; did you mean ttft_p95_max?",
        ),
        ("gates: {throughput: {users: 2, rate: 4/s}}\n", "users and rate exclude each other"),
        (
            "rollout: {strategy: bluegreen}\n",
            "FILE:5:11: rollout.strategy: must be 'canary', 'blue-green' or 'recreate'; did you mean blue-green?",
        ),
        ("serving: {args: [--port=80]}\n", "--port: set by Model Delivery"),
        ("serving: {args: [--api-k, sk-x]}\n", "--api-k: set by Model Delivery"),
        ("serving: {args: [--served_model=x]}\n", "--served-model: set by Model Delivery"),
        ("serving: {args: [--config, vllm.yaml]}\n", "--config: write its arguments here"),
        ("serving: {args: [--hf-token, hf_x]}\n", "--hf-token: a secret in an argument is shown"),
        ("serving: {args: [--trust-remote]}\n", "which model.allow: [remote-code] must allow"),
        ("serving: {lora: x}\n", "LoRA adapters is not there yet"),
        ("serving: {api_key: sk-123}\n", "serving.api_key: name where the secret is, never the secret itself"),
        ("storage: {claim: c}\n", "a host has no claims"),
        ('serving: {env: {A: "x\\0y"}}\n', "serving.env.A"),
        ("name: x\n", "FILE:5:1: name is there twice"),
    ],
)
def test_a_wrong_field_is_told_with_its_place_and_the_nearest_right_name(
    tmp_path: Path, wrong: str, message: str
) -> None:
    assert message in told(tmp_path, GOOD + wrong)


def test_a_secret_written_into_a_spec_is_never_repeated(tmp_path: Path) -> None:
    assert "hf_abcdef" not in told(
        tmp_path, GOOD.replace("source: local, path: weights", "source: huggingface, repo: a/b, token: hf_abcdef")
    )


@pytest.mark.parametrize(
    "serving",
    [
        "args: ['--hf-tok=hf_T0PSECRETabc']",
        "args: [--hf-t, T0PSECRET]",
        "args: [--hf_to=T0PSECRET]",
        "args: [--other, hf_T0PSECRETabc]",
        """args: [--x, '{"api_key": "T0PSECRET"}']""",
        "env: {HF_TOKEN: hf_T0PSECRETabc}",
        "env: {MY_PASSWORD: T0PSECRET}",
        "env: {AWS_SECRET_ACCESS_KEY: T0/PSECRET}",
        "env: {SETTING: sk-T0PSECRETabc}",
        "env: {HTTPS_PROXY: 'http://user:T0PSECRET@proxy:3128'}",
        "pod: {annotations: {note: hf_T0PSECRETabc}}",
    ],
)
def test_a_plain_secret_in_a_new_spec_is_refused_and_never_repeated(tmp_path: Path, serving: str) -> None:
    message = told(tmp_path, f"{GOOD}serving: {{{serving}}}\n")
    assert "FILE:5:" in message
    assert "serving." in message
    assert "secret" in message
    assert "PSECRET" not in message


def test_the_code_of_a_plain_secret_is_its_own() -> None:
    given = {**yaml.safe_load(GOOD), "serving": {"env": {"HF_TOKEN": "hf_T0PSECRETabc"}}}
    with pytest.raises(BadInput) as caught:
        parse_spec(given)
    assert [finding.code for finding in caught.value.findings] == ["spec.plain-secret"]
    assert DeliverySpec.model_validate(given).serving.env  # what is stored is read as it is


def test_what_only_sounds_like_a_secret_is_taken(tmp_path: Path) -> None:
    args = (
        "[--long-prefill-token-threshold, '100', --max-num-batched-tokens, '8192', --tokenizer=/m, --ssl-keyfile, /x]"
    )
    env = "{TOKENIZERS_PARALLELISM: 'false', HTTPS_PROXY: 'http://proxy:3128', HF_TOKEN: {env: HF_TOKEN}}"
    (tmp_path / "spec.yaml").write_text(f"{GOOD}serving: {{args: {args}, env: {env}}}\n")
    assert load_spec(tmp_path / "spec.yaml").serving.args


def test_an_unknown_kind_is_told_with_those_that_there_are(tmp_path: Path) -> None:
    message = told(tmp_path, GOOD.replace("kind: process", "kind: proces"))
    assert "FILE:4:10: target.kind: must be one of" in message
    assert "did you mean process?" in message


def test_a_revision_that_yaml_reads_as_a_number_must_be_quoted(tmp_path: Path) -> None:
    assert "put it in quotes" in told(
        tmp_path, GOOD.replace("source: local, path: weights", "source: huggingface, repo: a/b, revision: 1.0")
    )


def test_all_errors_are_told_at_once_in_the_order_of_the_file(tmp_path: Path) -> None:
    lines = told(tmp_path, GOOD.replace("name: m", "name: Not_A_Label") + "servin: {}\n").splitlines()
    assert [line.split(": ")[1] for line in lines if line.startswith("FILE")] == ["name", "servin"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("# only a comment\n", "is empty"),
        ("a: [1\n", "FILE:2:1: not valid YAML"),
        ("- 1\n", "a spec is a mapping"),
        ("a: &a [*a]\n", "alias that contains itself"),
        ("a: &a {b: *a}\n", "alias that contains itself"),
        ("a: !!python/object:os.system {}\n", "the tag"),
        ("a: !mine 3\n", "the tag !mine is refused"),
        ("a: 1\n---\nb: 2\n", "not valid YAML"),
        (b"\xff\xfe\x00\x01", "is not text"),
        (b"a: \x00\n", "is not text"),
        ("x" * (1 << 20) + "x", "too large"),
        ("".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9) if n else 1}]\n" for n in range(9)), "too much"),
        ("{[a]: b}\n", "a field's name is plain text"),
    ],
)
def test_a_file_that_is_no_spec(tmp_path: Path, text: str | bytes, message: str) -> None:
    assert message in told(tmp_path, text)


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="does not exist"):
        load_spec(tmp_path / "none.yaml")
    with pytest.raises(BadInput, match="is a folder"):
        load_spec(tmp_path)


def test_a_name_that_is_too_long_is_refused(tmp_path: Path) -> None:
    assert "at most 40 characters" in told(tmp_path, GOOD.replace("name: m", f"name: {'m' * 41}"))


def test_the_examples_are_specs() -> None:
    for file in Path("deliveries").glob("*.yaml"):
        assert isinstance(load_spec(file), DeliverySpec)
        assert file.stem.startswith(yaml.safe_load(file.read_text())["name"])


def test_units_keep_their_text() -> None:
    assert (Duration("1.5h").seconds, Duration("250ms").seconds, str(Duration("10m"))) == (5400, 0.25, "10m")
    assert (Size("1Gi").bytes, Size("2M").bytes, Size("7").bytes) == (1 << 30, 2_000_000, 7)
    assert (Rate("4/s").per_second, Rate("30/m").per_second) == (4, 0.5)
    for wrong in ("", "5", "s", "-1s", "1 s"):
        with pytest.raises(ValueError, match="not a duration"):
            Duration(wrong)


@pytest.mark.parametrize("text", ["x\\0y", "x\\uD800y", "\\uDCFF"])
@pytest.mark.parametrize("field", ["path", "manifest", "include"])
def test_what_is_no_text_is_refused_with_its_line(tmp_path: Path, text: str, field: str) -> None:
    value = f'["{text}"]' if field == "include" else f'"{text}"'
    more = "" if field == "path" else ", path: weights"
    spec = GOOD.replace("{source: local, path: weights}", f"{{source: local{more}, {field}: {value}}}")
    assert f"model.{field}" in (said := told(tmp_path, spec))
    assert said.startswith("FILE:3:")
    assert "not text" in said


def test_what_is_no_text_is_refused_as_a_parameter_too() -> None:
    given = yaml.safe_load(GOOD)
    for model in ({"source": "local", "path": "x\0"}, {"source": "git", "repo": "a/b", "revision": "\ud800"}):
        with pytest.raises(BadInput, match=r"model\."):
            parse_spec(given | {"model": model})


@pytest.mark.parametrize(
    ("cron", "zone", "message"),
    [
        ("0 3 * * *", "PST", "FILE:5:12: schedule.timezone: 'PST' is no time zone; write UTC or a city's"),
        ("0 3 * * *", "utc", "'utc' is no time zone; did you mean UTC?"),
        ("0 3 * * *", "../../etc/passwd", "is no time zone"),
        ("0 25 * * *", "UTC", "FILE:5:12: schedule.cron: '0 25 * * *' is no cron schedule: write minute, hour, day"),
        ("*/5 * * * * *", "UTC", "is no cron schedule"),
        ("0 3 * *", "UTC", "is no cron schedule"),
        ("60 3 * * *", "UTC", "is no cron schedule"),
        ("H 3 * * *", "UTC", "is no cron schedule"),
        ("R 3 * * *", "UTC", "is no cron schedule"),
        ("@reboot", "UTC", "is no cron schedule"),
        ("0 0 30 2 *", "UTC", "'0 0 30 2 *' never comes"),
        ("0 0 30 2 MON", "UTC", "never comes"),
        ("0 0 31 4,6,9,11 *", "UTC", "never comes"),
        ("", "UTC", "schedule.cron"),
    ],
)
def test_a_schedule_that_prefect_could_not_keep_is_a_wrong_field(
    tmp_path: Path, cron: str, zone: str, message: str
) -> None:
    assert message in told(
        tmp_path, f"{GOOD}schedule: {{timezone: '{zone}', cron: '{cron}'}}\n".replace("{timezone: 'UTC', ", "{")
    )


@pytest.mark.parametrize(
    "cron", ["0 3 * * *", "0 0 29 2 *", "@daily", "0 3 * * MON#1", "*/5 8-18 * jan,feb mon-fri", "0 22-2 * * 7"]
)
def test_a_schedule_that_prefect_keeps_is_taken(tmp_path: Path, cron: str) -> None:
    file = tmp_path / "spec.yaml"
    file.write_text(f"{GOOD}schedule: {{cron: '{cron}', timezone: America/Los_Angeles}}\n")
    assert load_spec(file).schedule is not None


@pytest.mark.parametrize(
    "written",
    [
        "limits: {nvidia.com/gpu: 010}",
        "limits: {cpu: 4:30}",
        "limits: {cpu: 0x10}",
        "limits: {cpu: 1_000}",
        "limits: {cpu: 0b11}",
        "limits: {cpu: 1:30.5}",
        "limits: {cpu: .inf}",
        "limits: {memory: .nan}",
        f"limits: {{memory: {'9' * 400}}}",
        f"limits: {{memory: {'9' * 5000}}}",
    ],
)
def test_a_number_that_yaml_1_1_would_read_otherwise_is_refused_where_it_stands(tmp_path: Path, written: str) -> None:
    message = told(tmp_path, f"{GOOD}serving: {{resources: {{{written}}}}}\n")
    assert re.search(r"FILE:5:\d+: \S+ is no plain number: .*\[spec.not-plain\]", message)
    assert "in quotes" in message
    assert "set_int_max" not in message


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (f"serving: {{resources: {{limits: {{memory: '{'9' * 400}'}}}}}}", "is not a size"),
        (f"serving: {{resources: {{limits: {{memory: '{'9' * 400}Gi'}}}}}}", "is not a size"),
        ("serving: {resources: {limits: {memory: 999999999999Pi}}}", "999999999999Pi is more than 1024Pi"),
        ("serving: {resources: {limits: {memory: '٣Gi'}}}", "is not a size"),
        (f"serving: {{resources: {{limits: {{cpu: '{'9' * 400}'}}}}}}", "cpu is a number of CPUs"),
        ("serving: {resources: {limits: {cpu: '٣'}}}", "cpu is a number of CPUs"),
        ("serving: {resources: {limits: {nvidia.com/gpu: 999999999999}}}", "nvidia.com/gpu is a whole number"),
        ("serving: {resources: {limits: {vendor.example/device: 500m}}}", "vendor.example/device is a whole number"),
        ("rollout: {standby: 999999999d}", "999999999d is more than 3650d"),
        ("storage: {size: 99999999Pi}", "99999999Pi is more than 1024Pi"),
        ("gates: {throughput: {rate: 99999999999/s}}", "is more than 1000000/s"),
    ],
)
def test_an_amount_that_no_machine_has_is_a_wrong_field(tmp_path: Path, more: str, message: str) -> None:
    assert message in told(tmp_path, f"{GOOD}{more}\n")


@pytest.mark.parametrize("named", ["/dev/zero", "/dev/null", "fifo", "large", "folder", "none"])
def test_a_text_that_a_spec_names_is_a_file_of_bounded_size(tmp_path: Path, named: str) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "folder").mkdir()
    with (tmp_path / "large").open("wb") as file:
        file.truncate(1 << 32)
    message = told(tmp_path, f"{GOOD}serving: {{chat_template: {named}}}\n")
    assert message.startswith("FILE:5:11: serving.chat_template: ")
    assert "cannot be read" in message


def test_a_bad_name_is_told_once(tmp_path: Path) -> None:
    assert told(tmp_path, GOOD.replace("name: m", "name: -m-")).count("FILE:") == 1


@pytest.mark.parametrize(
    ("text", "kind"), [("- 1\n", "a list"), ("17\n", "a number"), ("yes\n", "true or false"), ("x\n", "text")]
)
def test_what_is_no_mapping_is_called_by_its_plain_name(tmp_path: Path, text: str, kind: str) -> None:
    assert f"a spec is a mapping of fields: this is {kind} [" in told(tmp_path, text)
