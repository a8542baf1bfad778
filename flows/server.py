"""The Prefect server that Prefect's settings name: reached, or told why not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from http import HTTPStatus
from typing import TypeVar

import httpx
import stamina
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.settings import (
    PREFECT_API_AUTH_STRING,
    PREFECT_API_KEY,
    PREFECT_API_URL,
    PREFECT_CLIENT_MAX_RETRIES,
    temporary_settings,
)

from model_delivery.base import Finding, Permanent, Refused, Retryable, short
from model_delivery.base.scrubbing import learn
from model_delivery.tasks.step import run_id

T = TypeVar("T")
TAG = "model-delivery"
HEARTBEAT_SECONDS = 30  # an automation takes a run for dead after 90 without one
ANSWER_SECONDS = 5.0
CALL_SECONDS = 15.0  # a server whose database is locked answers 503 after 10
SET_URL = "prefect config set PREFECT_API_URL"
START = (
    "start one with `prefect server start` and a worker with `prefect worker start --pool local --type process`, "
    f"and name the server: `{SET_URL}={{}}`"
)


def asked(question: Callable[[SyncPrefectClient], T], patience: float) -> T:
    """The answer of the server; what may pass is tried again for ``patience`` seconds."""

    def once() -> T:
        with one_try(), server() as client:
            return question(client)

    tries = stamina.RetryingCaller(attempts=None, timeout=patience, wait_initial=0.5, wait_max=5)
    return tries.on(Retryable)(once)


@contextmanager
def server() -> Iterator[SyncPrefectClient]:
    """A client of the server that Prefect's settings name.

    Refused, with what to start, when none is named or none answers within 5 s; Retryable
    when a call to it fails within the block.
    """
    url, shown = _address()
    for key in (PREFECT_API_AUTH_STRING.value(), PREFECT_API_KEY.value()):
        learn(key or "")
    try:
        with one_try(), get_client(httpx_settings={"timeout": ANSWER_SECONDS}, sync_client=True) as client:
            client.hello().json()
    except httpx.TimeoutException as error:
        if run_id() is None:
            raise _no_server(shown, error) from None
        what, fix = f"the Prefect server at {shown} is slow", "see what loads its machine or database; then run again"
        raise Retryable(Finding("prefect.slow", what, f"no answer within {ANSWER_SECONDS:g} s", fix)) from error
    except (httpx.HTTPError, ValueError) as error:
        raise _no_server(shown, error) from None
    try:
        with get_client(httpx_settings={"timeout": CALL_SECONDS}, sync_client=True) as client:
            yield client
    except httpx.HTTPError as error:
        asked = getattr(error, "_request", None)
        if asked is None or (asked.url.host, asked.url.port) != (url.host, url.port):
            raise
        what, why = f"the Prefect server at {shown} did not do what it was asked", _said(error)
        fix = "read its log: something else may hold its database; then run again"
        raise Retryable(Finding("prefect.failed", what, why, fix)) from None
    except (ValueError, RuntimeError) as error:  # its client's, of an answer that it cannot read
        what, why = f"the Prefect server at {shown} answered what is no answer", short(_said(error), 300)
        fix = "PREFECT_API_URL may name something else, or a server of another version: see `prefect version`"
        raise Permanent(Finding("prefect.odd-answer", what, why, fix)) from error


def _address() -> tuple[httpx.URL, str]:
    """PREFECT_API_URL, and as it may be shown: without a password."""
    url = PREFECT_API_URL.value()
    if url is None:
        why = "PREFECT_API_URL is set neither in the environment nor in the profile"
        fix = START.format("http://127.0.0.1:4200/api")
        raise Refused(Finding("prefect.no-address", "no Prefect server is named", why, fix))
    try:
        address = httpx.URL(url)
    except httpx.InvalidURL:
        address = httpx.URL("")
    if address.scheme not in ("http", "https") or not address.host:
        what, why = "PREFECT_API_URL is no address of a Prefect server", "it has no http:// or https://, or no host"
        raise Refused(Finding("prefect.no-address", what, why, f"{SET_URL}=http://HOST:4200/api"))
    return address, str(address.copy_with(userinfo=b"", query=None)).rstrip("/")


def _no_server(shown: str, error: Exception) -> Refused:
    status = error.response.status_code if isinstance(error, httpx.HTTPStatusError) else None
    if isinstance(error, ValueError) or status in (HTTPStatus.NOT_FOUND, HTTPStatus.METHOD_NOT_ALLOWED):
        what, why = f"what answers at {shown} is no Prefect API", "the API's address ends in /api"
        fix = f"{SET_URL}={shown.partition('/api')[0]}/api"
        return Refused(Finding("prefect.no-api", what, why, fix))
    if status is not None:
        what, fix = f"the Prefect server at {shown} refused the call", "check PREFECT_API_URL and its key"
        return Refused(Finding("prefect.refused", what, _said(error), fix))
    what, why = f"no Prefect server answers at {shown}", _said(error)
    http = "SSL" in why and shown.startswith("https")
    fix = f"where it speaks plain http: {SET_URL}=http{shown[5:]}" if http else START.format(shown)
    return Refused(Finding("prefect.no-answer", what, why, fix))


def _said(error: Exception) -> str:
    if isinstance(error, httpx.HTTPStatusError):
        return f"status {error.response.status_code}: {short(error.response.text, 300)}"
    return str(error) or type(error).__name__


def one_try() -> AbstractContextManager[object]:
    """For each call: Prefect's client goes on for minutes."""
    return temporary_settings(updates={PREFECT_CLIENT_MAX_RETRIES: 0})
