"""What `deliver connect` prints is run as a user would: pasted."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from model_delivery.base import EnvSecret, FileSecret, KubeSecret, Refused, SecretRef
from model_delivery.verbs.connect import connect
from tests.parts.timing_engine import TimingServer

ANSWER = "The capital of France is Paris."


def test_the_curl_line_and_the_openai_snippet_answer(model: Path) -> None:
    with TimingServer(model) as server:
        said = connect(server.url, ("m",), None)
        curl = subprocess.run(["bash", "-c", said.curl], capture_output=True, text=True, check=True)
        python = subprocess.run([sys.executable, "-c", said.openai], capture_output=True, text=True, check=True)
    assert ANSWER in curl.stdout
    assert python.stdout.strip() == ANSWER


def test_a_key_is_named_and_works(model: Path, tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("s3cret\n")
    with TimingServer(model, environ={"VLLM_API_KEY": "s3cret"}) as server:
        for ref in (EnvSecret(env="KEY"), FileSecret(file=str(file))):
            said = connect(server.url, ("m",), ref)
            assert "s3cret" not in said.to_text()
            environ = os.environ | {"KEY": "s3cret"}
            curl = subprocess.run(["bash", "-c", said.curl], capture_output=True, text=True, check=True, env=environ)
            python = subprocess.run(
                [sys.executable, "-c", said.openai], capture_output=True, text=True, check=True, env=environ
            )
            assert ANSWER in curl.stdout
            assert python.stdout.strip() == ANSWER


def test_the_web_clients_get_address_model_and_key() -> None:
    said = connect("http://127.0.0.1:8000", ("m", "org/m"), EnvSecret(env="KEY"))
    assert said.nextchat.splitlines() == [
        "BASE_URL=http://127.0.0.1:8000",
        "OPENAI_API_KEY=$KEY",
        "CUSTOM_MODELS=-all,+m,+org/m",
        "DEFAULT_MODEL=m",
    ]
    assert "OPENAI_API_BASE_URL=http://127.0.0.1:8000/v1" in said.open_webui


@pytest.mark.parametrize(
    "ref",
    [
        FileSecret(file="/no/k; touch pwned; $(touch pwned) 'x\" `touch pwned`"),
        EnvSecret(env="A; touch pwned"),
        EnvSecret(env="$(touch pwned)"),
        KubeSecret.model_validate({"kube": {"name": "n'; touch pwned #", "key": "k'$(touch pwned)"}}),
    ],
)
def test_nothing_that_is_pasted_runs_what_a_name_says(tmp_path: Path, ref: SecretRef) -> None:
    said = connect("http://127.0.0.1:9", ("m'$(touch pwned)`touch pwned`", "b c; touch pwned"), ref, "ns; touch pwned")
    for text in (said.curl, said.nextchat, said.open_webui):
        subprocess.run(["bash", "-c", text], cwd=tmp_path, capture_output=True, check=False)
    code = compile(said.openai, "snippet", "exec")
    assert "pwned" in " ".join(map(str, code.co_consts)), "it is a text there"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "url",
    [
        "http://evil.example/$(touch${IFS}pwned)",
        "http://me:key@evil.example",
        "http://a b/",
        "file:///etc/passwd",
        "http://host:99999",
        "http://host/?q=1",
        "http://host\nOPENAI_API_KEY=x",
        "",
    ],
)
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(Refused, match=r"release\.bad-address"):
        connect(url, ("m",), None)


@pytest.mark.parametrize(
    ("url", "context", "command"),
    [
        ("http://m.ns.svc:8000", None, "kubectl -n ns port-forward service/m 8000:8000"),
        ("http://m.ns.svc.cluster.local", "a b", "kubectl --context 'a b' -n ns port-forward service/m 8080:80"),
        ("http://models.example:8000", None, None),
        ("http://127.0.0.1:8000", None, None),
    ],
)
def test_an_address_that_only_the_cluster_has_comes_with_the_way_to_it(
    url: str, context: str | None, command: str | None
) -> None:
    said = connect(url, ("m",), None, "ns", context)
    assert said.port_forward == command
    assert ("http://127.0.0.1:80" in said.to_text() and command in said.to_text()) if command else True
