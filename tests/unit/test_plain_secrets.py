"""Secrets in plain text in what is to be adopted: named, neither kept nor shown; and what
only sounds like one.
"""

from __future__ import annotations

from typing import Any

import pytest

from model_delivery.base import Refused
from tests.unit.test_adoption import HF_ARGS, SERVE, WORDS, adopting, deployment, isvc, mlservice, of_model, spec


def env(name: str, value: str = "T0PSECRET-value") -> dict[str, Any]:
    return {"args": WORDS, "env": [{"name": name, "value": value}]}


def beside(part: str, name: str) -> dict[str, Any]:
    by_hand = deployment({"args": WORDS})
    pod = by_hand["spec"]["template"]["spec"]
    pod[part] = [{"name": "other", "image": "x", **env(name), "args": ["run"]}, *pod.get(part, ())]
    return by_hand


LEAKS: dict[str, tuple[dict[str, Any] | list[dict[str, Any]], str]] = {
    **{name: (deployment(env(name)), f"{name} holds") for name in (
        "PGPASS", "AUTH", "hf_token", "API_KEY_1", "apiKey", "S3_SECRET_ACCESS_KEY", "DB_PASSWORD", "GitHubToken", "AWS_CREDENTIALS", "WANDB_API_KEY",
    )},
    "another name": (deployment(env("SETTING", "hf_T0PSECRETvalue")), r"containers\[vllm\].env\[SETTING\].value holds"),
    "a key of OpenAI's form": (deployment(env("SETTING", "sk-T0PSECRET-value")), "holds a secret"),
    "a database's address": (deployment(env("DATABASE", "postgres://me:T0PSECRET@db/x")), "holds a secret"),
    "--hf-token": (deployment({"args": [*WORDS, "--hf-token", "T0PSECRET"]}), "--hf-token holds"),
    "JSON": (deployment({"args": [*WORDS, "--x", '{"api_key": "T0PSECRET"}']}), "api_key holds"),
    "sidecar": (beside("containers", "PASSWORD"), r"PASSWORD holds.*in containers\[other\]"),
    "init container": (beside("initContainers", "HF_TOKEN"), r"HF_TOKEN holds.*in initContainers\[other\]"),
    "a shell's text": (deployment({"command": ["sh", "-c", f"export HF_TOKEN=T0PSECRET; {SERVE}"]}), "HF_TOKEN holds"),
    "a shell's flag": (deployment({"command": ["sh", "-ec"], "args": [f"{SERVE} --api-key 'T0PSECRET'"]}), "--api-key holds"),
    "a header": (
        deployment({"args": WORDS, "readinessProbe": {"httpGet": {"httpHeaders": [{"name": "Authorization", "value": "Bearer T0PSECRET"}]}}}),
        "Authorization holds",
    ),
    "an annotation": (deployment({"args": WORDS}, annotations={"note": "hf_T0PSECRETvalue"}), "metadata.annotations.note holds"),
    "an annotation's name": (
        deployment({"args": WORDS}, annotations={"vault/token": "T0PSECRET", "checksum/secret": "0" * 64}), "token holds"),
    "a model's env": (isvc(**of_model(env=[{"name": "MY_TOKEN", "value": "T0PSECRET"}])), "MY_TOKEN holds"),
    "a runtime's words": (isvc(args=[*HF_ARGS, "--token=T0PSECRET"]), "--token holds"),
    "a parameter": (
        mlservice(model={"runtime": "vllm-openai", "parameters": {"MODEL_PATH": "/var/lib/t9k/model", "MODEL_NAME": "llama", "API_KEY": "T0PSECRET"}}),
        "API_KEY holds",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", LEAKS)
def test_a_secret_in_plain_text_is_named_and_neither_kept_nor_shown(case: str) -> None:
    given, told = LEAKS[case]
    objects = given if isinstance(given, list) else [given]
    kind = {"Deployment": "deployment", "MLService": "t9k", "InferenceService": "kserve"}[objects[-1]["kind"]]
    names = ["llama", "llama-chat"] if kind == "deployment" else ["llama"]
    with pytest.raises(Refused, match=f"(?s){told}") as refused:
        adopting(spec(kind, model_names=names), objects[-1]["metadata"]["name"], *objects)
    assert "T0PSECRET" not in refused.value.text


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("TOKENIZERS_PARALLELISM", "false"),
        ("MAX_TOKENS", "4096"),
        ("TOKEN_LIMIT", "4096"),
        ("SSL_KEY_FILE", "certs/tls.key"),
        ("API_KEY", "$(FROM_A_SECRET)"),
        ("ENABLE_AUTH", "true"),
        ("PWD", "/workspace"),
        ("BYPASS", "10.0.0.0/8"),
        ("HF_HUB_ENABLE_HF_TRANSFER", "1"),
        ("NOTE", "pip install hf_transfer; task-scheduler-default"),
        ("VLLM_API_KEY_NAME", "mine"),
    ],
)
def test_what_only_sounds_like_a_secret_is_kept(name: str, value: str) -> None:
    found = adopting(spec("deployment", model_names=["llama", "llama-chat"]), "by-hand", deployment(env(name, value)))
    assert value in str(found.payload.content())
