"""How clients reach a service: texts to paste. A key is named, never shown."""

from __future__ import annotations

import json
from dataclasses import dataclass

from model_delivery.base import EnvSecret, FileSecret, KubeSecret, SecretRef


@dataclass(frozen=True)
class Connection:
    """Base address for OpenAI clients, and one text per client."""

    base_url: str
    model: str
    curl: str
    openai: str
    nextchat: str
    open_webui: str

    def to_text(self) -> str:
        titles = {
            "curl": self.curl,
            "openai (Python)": self.openai,
            "NextChat": self.nextchat,
            "Open WebUI": self.open_webui,
        }
        return "\n\n".join(f"# {title}\n{text}" for title, text in titles.items())


def connect(
    url: str, model_names: tuple[str, ...], api_key: SecretRef | None, namespace: str | None = None
) -> Connection:
    """Settings for curl, the ``openai`` library, NextChat and Open WebUI; ``url`` is the
    service's, without /v1; ``namespace``: of a key in a cluster.
    """
    model, base = model_names[0], f"{url}/v1"
    key = _shell_key(api_key, namespace)
    body = json.dumps(
        {"model": model, "messages": [{"role": "user", "content": "What is the capital of France?"}], "max_tokens": 64}
    )
    auth = f'  -H "Authorization: Bearer {key}" \\\n' if api_key else ""
    curl = f"curl {base}/chat/completions \\\n{auth}  -H 'Content-Type: application/json' \\\n  -d '{body}'"
    openai = "\n".join(
        [
            "from openai import OpenAI",
            "",
            f"client = OpenAI(base_url={base!r}, api_key={_python_key(api_key)})",
            'question = [{"role": "user", "content": "What is the capital of France?"}]',
            f"answer = client.chat.completions.create(model={model!r}, messages=question, max_tokens=64)",
            "print(answer.choices[0].message.content)",
        ]
    )
    if isinstance(api_key, EnvSecret | KubeSecret):
        openai = f"import os\n{openai}"
    elif isinstance(api_key, FileSecret):
        openai = f"from pathlib import Path\n{openai}"
    models = ",".join(["-all", *(f"+{name}" for name in model_names)])
    nextchat = f"BASE_URL={url}\nOPENAI_API_KEY={key}\nCUSTOM_MODELS={models}\nDEFAULT_MODEL={model}"
    open_webui = f"OPENAI_API_BASE_URL={base}\nOPENAI_API_KEY={key}\nENABLE_OLLAMA_API=false"
    return Connection(base, model, curl, openai, nextchat, open_webui)


def _shell_key(ref: SecretRef | None, namespace: str | None) -> str:
    match ref:
        case EnvSecret(env=name):
            return f"${name}"
        case FileSecret(file=path):
            return f"$(cat {path})"
        case KubeSecret(kube=kube):
            key = kube.key.replace(".", r"\.")
            return f"$(kubectl -n {namespace} get secret {kube.name} -o jsonpath='{{.data.{key}}}' | base64 -d)"
    return "none"


def _python_key(ref: SecretRef | None) -> str:
    match ref:
        case EnvSecret(env=name):
            return f'os.environ["{name}"]'
        case FileSecret(file=path):
            return f"Path({path!r}).read_text().strip()"
        case KubeSecret():
            return 'os.environ["OPENAI_API_KEY"]'
    return '"none"'
