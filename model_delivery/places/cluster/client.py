"""The only module that talks to an API server: every request has a deadline, retries are bounded, credentials are read again when refused."""

from __future__ import annotations

import json
import os
import time
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

import stamina
import urllib3
from kubernetes.client import ApiClient, Configuration
from kubernetes.config import ConfigException, list_kube_config_contexts, load_incluster_config, load_kube_config

from model_delivery.base.findings import Finding, Permanent, Refused, Retryable

PATIENCE = 60.0
CONNECT, READ = 5.0, 30.0
SLOW_DOWN = 429
MERGE, APPLY = "application/merge-patch+json", "application/apply-patch+yaml"


@dataclass
class Status(Exception):
    """The API server said no, for good: 404, 409, 410, 422 and the like; ``causes`` as in the answer's details."""

    code: int
    reason: str
    message: str
    causes: tuple[Mapping[str, Any], ...] = ()

    def __str__(self) -> str:
        return self.message


class Forbidden(Permanent):
    """We may not: rights, a quota, or an admission rule."""


class Doubt(Exception):
    """Nobody knows whether the request was carried out: it was sent, and no answer of worth came back."""


class Broken(Exception):
    """A stream broke before its end, or did not begin."""


@dataclass
class _Busy(Exception):
    """``sent``: the request may have been carried out. ``after``: the seconds that the server asked us to wait."""

    why: str
    sent: bool
    after: float = 0.0


class Client:
    """One API server, by kubeconfig and ``context``, or from inside a pod. ``asked``: when requests were sent, on the monotonic clock."""

    def __init__(self, context: str | None = None) -> None:
        self.context = context
        self.asked: deque[float] = deque(maxlen=1000)
        self._load()

    @property
    def url(self) -> str:
        return str(self._configuration.host)

    def call(
        self,
        method: str,
        path: str,
        query: Mapping[str, Any] | None = None,
        body: Any = None,
        *,
        media: str = "",
        once: bool = False,
    ) -> dict[str, Any]:
        """The answer's JSON. Tried for up to 60 s while the server is busy, away or restarting.

        ``once``: never repeated when it may have been carried out (Doubt instead). Raises Status, Forbidden, or Retryable after 60 s.
        """

        def again(error: Exception) -> bool | float:
            if not isinstance(error, _Busy) or (once and error.sent):
                return False
            return error.after or True

        try:
            for attempt in stamina.retry_context(
                on=again, attempts=None, timeout=PATIENCE, wait_initial=0.1, wait_max=5
            ):
                with attempt:
                    answer = self._send(method, path, query, body, media)
                    return dict(json.loads(answer.data or b"{}"))
        except _Busy as busy:
            if once and busy.sent:
                raise Doubt(busy.why) from None
            hook = "failed calling webhook" in busy.why
            what = f"the API server at {self.url} " + ("cannot call a webhook" if hook else "does not answer")
            fix = f"see whether {'what serves the webhook' if hook else 'it'} is up, then run again"
            raise Retryable(Finding("todo", what, f"tried for {PATIENCE:.0f} s: {busy.why}", fix)) from None
        raise AssertionError("unreachable: the last attempt returns or raises")

    def lines(self, path: str, query: Mapping[str, Any], seconds: float) -> Iterator[bytes]:
        """Whole lines of a stream (a log, a watch) until it ends. Raises Status when there is none, Broken when it breaks, or is silent for ``seconds``."""
        try:
            answer = self._send("GET", path, query, None, "", stream=seconds)
        except _Busy as busy:
            raise Broken(busy.why) from None
        rest = b""
        try:
            for chunk in answer.stream(65536):
                *lines, rest = (rest + chunk).split(b"\n")
                yield from lines
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise Broken(_short(error)) from None
        finally:
            answer.close()
        if rest:
            yield rest

    def _send(
        self,
        method: str,
        path: str,
        query: Mapping[str, Any] | None,
        body: Any,
        media: str,
        *,
        stream: float | None = None,
    ) -> urllib3.BaseHTTPResponse:
        for renewed in (False, True):
            answer = self._once(method, path, query, body, media, stream)
            if answer.status < 300:
                return answer
            said = _said(answer)
            if answer.status != 401:
                raise self._refusal(answer, said)
            if not renewed:
                self._load()
        fix = "log in again, or give the worker credentials that last; nothing is lost, run again"
        raise Permanent(
            Finding(
                "todo",
                f"the API server at {self.url} does not know us",
                "the credentials are refused or have expired",
                fix,
            )
        )

    def _once(
        self, method: str, path: str, query: Mapping[str, Any] | None, body: Any, media: str, stream: float | None
    ) -> urllib3.BaseHTTPResponse:
        headers = {"Accept": "application/json", "User-Agent": "model-delivery"}
        token = self._configuration.get_api_key_with_prefix("BearerToken")
        headers |= {"Authorization": token} if token else {}
        headers |= {"Content-Type": media or "application/json"} if body is not None else {}
        url = self.url + path + ("?" + urlencode(query) if query else "")
        self.asked.append(time.monotonic())
        try:
            return self._pool.request(
                method,
                url,
                body=None if body is None else json.dumps(body).encode(),
                headers=headers,
                preload_content=stream is None,
                retries=False,
                timeout=urllib3.Timeout(connect=CONNECT, read=READ if stream is None else stream),
            )
        except (urllib3.exceptions.NewConnectionError, urllib3.exceptions.ConnectTimeoutError) as error:
            raise _Busy(_short(error), sent=False) from None
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise _Busy(_short(error), sent=True) from None

    def _refusal(self, answer: urllib3.BaseHTTPResponse, said: Mapping[str, Any]) -> Exception:
        reason, message = str(said.get("reason", "")), str(said.get("message", "")) or f"status {answer.status}"
        if answer.status == SLOW_DOWN or answer.status >= 500:
            after = answer.headers.get("Retry-After", "")
            return _Busy(
                f"{answer.status}: {message}",
                answer.status != SLOW_DOWN,
                min(30.0, float(after)) if after.isdigit() else 0.0,
            )
        if answer.status == 403:
            return Forbidden(_forbidden(message))
        return Status(answer.status, reason, message, tuple((said.get("details") or {}).get("causes") or ()))

    def _load(self) -> None:
        """Read the credentials (again): a kubeconfig's command is run for a new token, a mounted token's file is read."""
        configuration = Configuration()
        try:
            if self.context is None and "KUBECONFIG" not in os.environ and "KUBERNETES_SERVICE_HOST" in os.environ:
                load_incluster_config(client_configuration=configuration)
            else:
                load_kube_config(
                    config_file=os.environ.get("KUBECONFIG"), context=self.context, client_configuration=configuration
                )
        except (ConfigException, OSError, ValueError) as error:
            raise Refused(
                Finding(
                    "todo",
                    "no cluster is known",
                    f"{error}; {_contexts()}",
                    "set KUBECONFIG, or correct target.context",
                )
            ) from None
        self._configuration = configuration
        self._pool: urllib3.PoolManager = ApiClient(configuration).rest_client.pool_manager


def _said(answer: urllib3.BaseHTTPResponse) -> dict[str, Any]:
    try:
        said = json.loads(answer.data)
    except ValueError:
        return {"message": answer.data.decode(errors="replace")[:300]}
    return said if isinstance(said, dict) else {}


def _forbidden(message: str) -> Finding:
    if "cannot" in message and " resource " in message:
        return Finding(
            "todo", "the API server does not let us", message, "ask for the rights that manifests/rbac/role.yaml lists"
        )
    if "exceeded quota" in message:
        return Finding(
            "todo", "the namespace's quota is used up", message, "ask for a higher quota, or for less in the spec"
        )
    return Finding(
        "todo",
        "the cluster's rules refuse an object",
        message,
        "change what the message names, or ask whoever sets the rule",
    )


def _contexts() -> str:
    try:
        contexts, _ = list_kube_config_contexts(config_file=os.environ.get("KUBECONFIG"))
    except (ConfigException, OSError):
        return "there is no kubeconfig"
    return "known contexts: " + (", ".join(sorted(context["name"] for context in contexts)) or "none")


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:200]
