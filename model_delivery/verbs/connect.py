"""How clients reach a service: texts to paste. A key is named, never shown."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from shlex import quote
from urllib.parse import urlsplit

from model_delivery.base import EnvSecret, FileSecret, Finding, KubeSecret, Refused, SecretRef, base_url

LOWEST = 8000  # of the ports on this machine that are proposed


@dataclass(frozen=True)
class Connection:
    """Base address for OpenAI clients, and one text per client. ``port_forward``: the
    command that brings an address which only the cluster has to this machine.
    """

    base_url: str
    model: str
    curl: str
    openai: str
    nextchat: str
    open_webui: str
    port_forward: str | None = None

    def to_text(self) -> str:
        titles = {
            "curl": self.curl,
            "openai (Python)": self.openai,
            "NextChat": self.nextchat,
            "Open WebUI": self.open_webui,
        }
        if self.port_forward:
            local = self.port_forward.rpartition(" ")[2].partition(":")[0]
            title = f"from outside of the cluster: in a shell of its own; then the address is http://127.0.0.1:{local}"
            titles = {title: self.port_forward} | titles
        return "\n\n".join(f"# {title}\n{text}" for title, text in titles.items())


def connect(
    url: str,
    model_names: tuple[str, ...],
    api_key: SecretRef | None,
    namespace: str | None = None,
    context: str | None = None,
) -> Connection:
    """Settings for curl, the ``openai`` library, NextChat and Open WebUI; ``url`` is the
    service's, without /v1; ``namespace``: of a key in a cluster. Whatever a shell gets is
    quoted. Refused where ``url`` is no plain address.
    """
    if base_url(url) is None:
        why, fix = f"{url!r:.100}", "see who writes the service's status"
        raise Refused(Finding("release.bad-address", "the service has an address that is none", why, fix))
    model, base = model_names[0], f"{url}/v1"
    key = _shell_key(api_key, namespace)
    body = json.dumps(
        {"model": model, "messages": [{"role": "user", "content": "What is the capital of France?"}], "max_tokens": 64}
    )
    auth = f'  -H "Authorization: Bearer {key}" \\\n' if api_key else ""
    where = quote(f"{base}/chat/completions")
    curl = f"curl {where} \\\n{auth}  -H 'Content-Type: application/json' \\\n  -d {quote(body)}"
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
    models = quote(",".join(["-all", *(f"+{name}" for name in model_names)]))
    nextchat = f"BASE_URL={quote(url)}\nOPENAI_API_KEY={key}\nCUSTOM_MODELS={models}\nDEFAULT_MODEL={quote(model)}"
    open_webui = f"OPENAI_API_BASE_URL={quote(base)}\nOPENAI_API_KEY={key}\nENABLE_OLLAMA_API=false"
    return Connection(base, model, curl, openai, nextchat, open_webui, _port_forward(url, context))


def _port_forward(url: str, context: str | None) -> str | None:
    """For the address of a Service; None for any other."""
    there = urlsplit(url)
    name, _, rest = (there.hostname or "").partition(".")
    namespace, _, zone = rest.partition(".")
    if zone.split(".")[0] != "svc":
        return None
    port = there.port or 80
    where = f"--context {quote(context)} " if context else ""
    local = port if port >= LOWEST else LOWEST + port
    return f"kubectl {where}-n {quote(namespace)} port-forward {quote(f'service/{name}')} {local}:{port}"


def _shell_key(ref: SecretRef | None, namespace: str | None) -> str:
    match ref:
        case EnvSecret(env=name):
            return f"${name}" if re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name) else f"$(printenv -- {quote(name)})"
        case FileSecret(file=path):
            return f"$(cat -- {quote(path)})"
        case KubeSecret(kube=kube):
            key = kube.key.replace(".", r"\.")
            asked = f"kubectl -n {quote(str(namespace))} get secret {quote(kube.name)}"
            return f"$({asked} -o jsonpath={quote(f'{{.data.{key}}}')} | base64 -d)"
    return "none"


def _python_key(ref: SecretRef | None) -> str:
    match ref:
        case EnvSecret(env=name):
            return f"os.environ[{name!r}]"
        case FileSecret(file=path):
            return f"Path({path!r}).read_text().strip()"
        case KubeSecret():
            return 'os.environ["OPENAI_API_KEY"]'
    return '"none"'
