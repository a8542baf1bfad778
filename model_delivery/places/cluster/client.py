"""The only module that talks to an API server: every request has a deadline, retries are
bounded, credentials are read again when refused.
"""

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

from model_delivery.base import Finding, Permanent, Refused, Retryable, short
from model_delivery.diagnosis.pods import quota_fix
from model_delivery.values import Ref

PATIENCE = 60.0
CONNECT, READ = 5.0, 30.0
SLOW_DOWN = 429
RETRIED = stamina.RetryingCaller(attempts=None, timeout=PATIENCE, wait_initial=0.1, wait_max=5)
MERGE, APPLY = "application/merge-patch+json", "application/apply-patch+yaml"
NEVER_SENT = (urllib3.exceptions.NewConnectionError, urllib3.exceptions.ConnectTimeoutError)
FIRST_SECONDS = 3.0  # for one that has never answered this process
ANSWERED = set[str]()
Query = Mapping[str, Any] | None


@dataclass
class Status(Exception):
    """The API server said no, for good: 404, 409, 410, 422 and the like; ``causes`` as in
    the answer's details.
    """

    code: int
    reason: str
    message: str
    causes: tuple[Mapping[str, Any], ...] = ()

    def __str__(self) -> str:
        return self.message


class Forbidden(Permanent):
    """We may not: rights, a quota, or an admission rule."""


class Doubt(Exception):
    """Nobody knows whether the request was carried out: it was sent, and no answer of
    worth came back.
    """


class Broken(Exception):
    """A stream broke before its end, or did not begin."""


@dataclass
class _Busy(Broken):
    """``sent``: the request may have been carried out. ``after``: the seconds that the
    server asked us to wait. ``unmet``: nothing that could answer was reached.
    """

    why: str
    sent: bool
    after: float = 0.0
    unmet: bool = False


class Client:
    """One API server, by kubeconfig and ``context``, or from inside a pod, and the
    objects of one namespace there. ``asked``: when requests were sent, on the monotonic
    clock.
    """

    def __init__(self, context: str | None, namespace: str) -> None:
        self.context, self.namespace = context, namespace
        self.asked: deque[float] = deque(maxlen=1000)
        self._load()

    @property
    def url(self) -> str:
        return str(self._configuration.host)

    def call(
        self, method: str, path: str, query: Query = None, body: Any = None, *, media: str = "", once: bool = False
    ) -> dict[str, Any]:
        """The answer's JSON. Tried for up to 60 s while the server is busy, away or
        restarting.

        ``once``: never repeated when it may have been carried out (Doubt instead). Raises
        Status, Forbidden, or Retryable after 60 s.
        """

        def again(error: Exception) -> bool | float:
            if not isinstance(error, _Busy) or (once and error.sent):
                return False
            first = error.unmet and self.url not in ANSWERED
            return not (first and time.monotonic() - began > FIRST_SECONDS) and (error.after or True)

        began = time.monotonic()
        try:
            answer = RETRIED(again, self._send, method, path, query, body, media)
        except _Busy as busy:
            if once and busy.sent:
                raise Doubt from None
            server = f"the API server at {self.url}"
            why = f"tried for {time.monotonic() - began:.0f} s: {busy.why}"
            if busy.unmet and self.url not in ANSWERED:
                fix = "see whether it is up, or correct the server in the kubeconfig (target.context)"
                raise Permanent(Finding("cluster.not-reached", f"{server} cannot be reached", why, fix)) from None
            if "failed calling webhook" in busy.why:
                raise Retryable(
                    Finding(
                        "cluster.no-webhook",
                        f"{server} cannot call a webhook",
                        why,
                        "see whether what serves the webhook is up, then run again",
                    )
                ) from None
            raise Retryable(
                Finding("cluster.no-answer", f"{server} does not answer", why, "see whether it is up, then run again")
            ) from None
        return dict(json.loads(answer.data or b"{}"))

    def get(self, ref: Ref) -> dict[str, Any] | None:
        try:
            return self.send("GET", ref)
        except Status as status:
            if status.code == 404:
                return None
            raise self.refusal(ref, status) from None

    def send(self, method: str, ref: Ref, query: Query = None, body: Any = None, **how: Any) -> dict[str, Any]:
        """The answer's JSON; ``how``: as ``call`` has it. Raises what that raises."""
        return self.call(method, ref.kind.path(self.namespace, ref.name), query, body, **how)

    def refusal(self, ref: Ref, status: Status) -> Permanent:
        """Of a request that should have succeeded."""
        what, why = f"the API server refuses {ref}", f"{status.code} {status.reason}: {status.message}"
        if status.code == 422 and "ValidatingAdmissionPolicy" in status.message:
            return Permanent(_not_admitted(status.message))
        if status.code == 422:
            return Permanent(
                Finding("cluster.invalid", what, status.message, "correct the spec's field that the message names")
            )
        if status.code == 404:
            return Permanent(
                Finding(
                    "cluster.no-such-api",
                    f"{ref} cannot be made",
                    f"{status.message} (namespace {self.namespace})",
                    "does the namespace exist, and is the API of this kind installed?",
                )
            )
        return Permanent(Finding("cluster.refused", what, why, "see the message"))

    def lines(self, path: str, query: Query, seconds: float) -> Iterator[bytes]:
        """Whole lines of a stream (a log, a watch) until it ends. Raises Status when
        there is none, Broken when it breaks, or is silent for ``seconds``.
        """
        answer, rest = self._send("GET", path, query, stream=seconds), b""
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
        self, method: str, path: str, query: Query, body: Any = None, media: str = "", stream: float | None = None
    ) -> urllib3.BaseHTTPResponse:
        url = self.url + path + (f"?{urlencode(query)}" if query else "")
        headers = {"Accept": "application/json", "User-Agent": "model-delivery"}
        headers |= {"Content-Type": media} if media else {}
        for renewed in (False, True):
            if token := self._configuration.get_api_key_with_prefix("BearerToken"):
                headers["Authorization"] = token
            self.asked.append(time.monotonic())
            try:
                answer = self._pool.request(
                    method,
                    url,
                    json=body,
                    headers=headers,
                    preload_content=stream is None,
                    retries=False,
                    timeout=urllib3.Timeout(connect=CONNECT, read=stream or READ),
                )
            except (urllib3.exceptions.HTTPError, OSError) as error:
                unmet = isinstance(error, (*NEVER_SENT, urllib3.exceptions.SSLError))
                raise _Busy(_short(error), sent=not isinstance(error, NEVER_SENT), unmet=unmet) from None
            ANSWERED.add(self.url)
            if answer.status < 300:
                return answer
            if answer.status != 401:
                raise _trouble(answer)
            if not renewed:
                self._load()
        raise Permanent(
            Finding(
                "cluster.unknown-user",
                f"the API server at {self.url} does not know us",
                "the credentials are refused or have expired",
                "log in again, or give the worker credentials that last; nothing is lost, run again",
            )
        )

    def _load(self) -> None:
        """Read the credentials (again): a kubeconfig's command is run for a new token, a
        mounted token's file is read.
        """
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
                    "cluster.none-known",
                    "no cluster is known",
                    f"{error}; {_contexts()}",
                    "set KUBECONFIG, or correct target.context",
                )
            ) from None
        self._configuration = configuration
        self._pool: urllib3.PoolManager = ApiClient(configuration).rest_client.pool_manager


def _trouble(answer: urllib3.BaseHTTPResponse) -> Exception:
    code = answer.status
    try:
        words = answer.json()
    except ValueError:
        words = {"message": short(answer.data.decode(errors="replace"), 300)}
    words = words if isinstance(words, dict) else {}
    message = str(words.get("message") or f"status {code}")
    if code == SLOW_DOWN or code >= 500:
        after = answer.headers.get("Retry-After", "")
        return _Busy(f"{code}: {message}", code != SLOW_DOWN, min(30.0, float(after)) if after.isdigit() else 0.0)
    if code == 403:
        return Forbidden(_forbidden(message))
    causes = (words.get("details") or {}).get("causes") or ()
    return Status(code, str(words.get("reason", "")), message, tuple(causes))


def _forbidden(message: str) -> Finding:
    if "cannot" in message and " resource " in message:
        return Finding(
            "cluster.forbidden",
            "the API server does not let us",
            message,
            "ask for the rights that manifests/rbac/role.yaml lists",
        )
    if "exceeded quota" in message:
        return Finding(
            "cluster.over-quota",
            "the namespace's quota is used up",
            message,
            quota_fix(message),
        )
    if "because it is being terminated" in message:
        return _ending(message)
    return _not_admitted(message)


def _not_admitted(message: str) -> Finding:
    return Finding(
        "cluster.not-admitted",
        "the cluster's rules refuse an object",
        message,
        "change what the message names, or ask whoever sets the rule",
    )


def _ending(why: str) -> Finding:
    what, fix = "the namespace is being deleted", "wait until it has gone, make it again, then run again"
    return Finding("cluster.namespace-ending", what, why, fix)


def _contexts() -> str:
    try:
        contexts, _ = list_kube_config_contexts(config_file=os.environ.get("KUBECONFIG"))
    except (ConfigException, OSError):
        return "there is no kubeconfig"
    return "known contexts: " + (", ".join(sorted(context["name"] for context in contexts)) or "none")


def _short(error: Exception) -> str:
    return short(f"{type(error).__name__}: {error}", 200)
