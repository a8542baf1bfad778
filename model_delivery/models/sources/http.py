"""HTTP to hubs: addresses, proxies and private authorities as the environment says, and
what the answers mean.
"""

from __future__ import annotations

import errno
import hashlib
import os
import socket
import ssl
import time
import urllib.request
from collections.abc import Iterable, Mapping
from contextlib import suppress
from email.utils import parsedate_to_datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import urlsplit

from pydantic import ValidationError

from model_delivery.base import BadInput, Finding, Permanent, Refused, Retryable, Stopped, Trouble, problems, within
from model_delivery.models.sources.spec import Local, Remote, RemoteModel, address_fault, origin
from model_delivery.values import File

if TYPE_CHECKING:
    from urllib3 import BaseHTTPResponse, PoolManager

LONGEST_WAIT = 120.0
LONGEST_READ = 60.0
LONGEST_LIST = 90.0
MOST_FILES = 50_000
MOST_LISTED = 16 << 20
NAME_A_TOKEN = "name a token that may read it in model.token"  # noqa: S105 - advice, no token


class NotGiven(Refused):
    """This hub does not give it; another one might."""


class Busy(Retryable):
    """The hub asks for patience: ``after`` seconds, None when it does not say."""

    after: float | None = None


class HubModel(RemoteModel):
    """A repository of the hub at ``home``, or at what ``endpoint_variable`` names."""

    home: ClassVar[str]
    endpoint_variable: ClassVar[str]
    example: ClassVar[str] = "org/model@main"

    @property
    def key(self) -> str:
        return self.repo.replace("/", "--")

    @property
    def endpoint(self) -> str:
        """Refused where its variable holds no plain address; what it holds is not
        shown.
        """
        address = os.environ.get(self.endpoint_variable) or self.home
        if address_fault(address) or origin(address)[0] not in ("http", "https"):
            what = f"{self.endpoint_variable} is no plain address"
            why, fix = "it is asked, shown and passed on", "write https://HOST[:PORT]; a token belongs into model.token"
            raise Refused(Finding("source.wrong-endpoint", what, why, fix))
        return address.rstrip("/")

    def read(self, commit: str, file: File, scratch: Path) -> bytes:
        return content(self.locate(commit, file, scratch), file)

    @property
    def asked(self) -> str:
        """The ``why`` of what goes wrong."""
        return f"{self.endpoint} was asked for {self.repo}@{self.revision}"

    def listed(self, rows: Iterable[Mapping[str, Any]]) -> list[File]:
        """What the hub lists, each as a ``File``. Refused where one is none, or the list
        does not end.
        """
        files, until = list[File](), time.monotonic() + LONGEST_LIST
        try:
            for row in rows:
                files.append(File.model_validate(row))
                if len(files) > MOST_FILES or time.monotonic() > until:
                    what, why = f"the list of {self.repo} does not end", f"{self.asked}: {len(files)} files so far"
                    raise Refused(Finding("source.endless-list", what, why, "is it the right repository?"))
        except (ValidationError, LookupError, TypeError, AttributeError) as error:
            raise self.unreadable(error) from None
        return files

    def unreadable(self, error: Exception) -> Refused:
        """Its answer is none of a hub's."""
        said = problems(error)[0] if isinstance(error, ValidationError) else type(error).__name__
        what, why = f"the list of {self.repo} cannot be read", f"{self.asked}: {said}"
        fix = "what answers there is no hub, or leads to none: is it the right address?"
        return Refused(Finding("source.wrong-list", what, why, fix))

    def unreachable(self, error: Exception) -> Retryable:
        settings = f"HTTPS_PROXY, SSL_CERT_FILE, REQUESTS_CA_BUNDLE and {self.endpoint_variable}"
        return unreachable(self.endpoint, self.asked, error, settings)

    def misnamed(self, why: str) -> BadInput:
        return BadInput(Finding("source.wrong-name", f"{self.repo} is no repository's name", why, "write OWNER/NAME"))


def content(where: Remote | Local, file: File) -> bytes:
    """All bytes of a small file, within a minute, as they were listed."""
    from urllib3.exceptions import HTTPError

    if isinstance(where, Local):
        return where.path.read_bytes()
    asked = where.url.partition("?")[0]
    try:
        with request("GET", where, 30.0) as answer:
            if answer.status != 200:
                raise http_trouble(answer.status, asked, answer.headers.get("Retry-After", ""))
            data = body(answer, file.size)
    except (HTTPError, OSError) as error:
        raise unreachable(urlsplit(where.url).netloc, asked, error) from error
    if len(data) != file.size or file.sha256 not in (None, hashlib.sha256(data).hexdigest()):
        fix = "run again; if it stays so, the source or what lies between is broken"
        raise Permanent(Finding("fetch.sum-differs", f"{file.path} is not what was listed", asked, fix))
    return data


def body(answer: BaseHTTPResponse, most: int) -> bytes:
    """Its bytes, and at most a piece more than ``most``. TimeoutError when they take
    longer than a minute.
    """

    def read() -> bytes:
        data = bytearray()
        while len(data) <= most and (piece := answer.read1(1 << 20)):
            data += piece
        return bytes(data)

    try:
        return within(LONGEST_READ, read)
    except (TimeoutError, Stopped):
        with suppress(OSError, ValueError), socket.socket(fileno=os.dup(answer.fileno())) as line:
            line.shutdown(socket.SHUT_RDWR)  # who reads holds a lock that a close waits for
        raise


def bounded(pieces: Iterable[bytes], until: float) -> bytes:
    """A list's bytes. TimeoutError after ``until`` (of the monotonic clock), OSError when
    they are too many.
    """
    data = bytearray()
    for piece in pieces:
        data += piece
        if time.monotonic() > until:
            raise TimeoutError("the list does not end")
        if len(data) > MOST_LISTED:
            raise OSError(errno.EFBIG, "the list is too large")
    return bytes(data)


def http_trouble(status: int, asked: str, retry_after: str = "") -> Trouble:
    """What an HTTP status of a hub means; ``asked`` says what was asked for,
    ``retry_after`` is that header.
    """
    if status == 429 or status >= 500:
        busy = Busy(
            Finding("source.too-many-requests", "the hub says: too many requests", asked, f"wait, or {NAME_A_TOKEN}")
            if status == 429
            else Finding("source.broken", f"the hub failed with status {status}", asked, "run again later")
        )
        busy.after = seconds(retry_after)
        return busy
    if status in (401, 403):
        return NotGiven(Finding("source.not-allowed", f"the hub refuses with status {status}", asked, NAME_A_TOKEN))
    fix = "check model.repo and model.revision"
    return NotGiven(Finding("source.not-found", f"the hub answers with status {status}", asked, fix))


def unreachable(server: str, asked: str, error: Exception | None = None, settings: str = "HTTPS_PROXY") -> Retryable:
    """``settings``: the variables that say how ``server`` is reached."""
    why = asked if error is None else f"{asked}: {type(error).__name__}"
    fix = f"check the network, and {settings}"
    return Retryable(Finding("source.unreachable", f"{server} cannot be reached", why, fix))


def seconds(retry_after: str) -> float | None:
    """What a Retry-After header asks for (seconds or a date, RFC 9110 10.2.3), at most
    two minutes.

    None when it says nothing.
    """
    if retry_after.isdecimal():
        return min(float(retry_after), LONGEST_WAIT)
    try:
        until = parsedate_to_datetime(retry_after).timestamp()
    except (ValueError, TypeError, OverflowError):
        return None
    return max(0.0, min(until - time.time(), LONGEST_WAIT))


def authorities() -> str | None:
    """The file of a private CA's certificates, by OpenSSL's or requests' variable."""
    return os.environ.get("SSL_CERT_FILE") or os.environ.get("REQUESTS_CA_BUNDLE")


def trusted() -> ssl.SSLContext:
    """Whom libraries with a store of their own shall trust: the machine's store, or the
    environment's files, and where the machine has none theirs.
    """
    import certifi

    bundle = authorities()
    context = ssl.create_default_context(cafile=bundle or certifi.where())
    if bundle is None:
        context.load_default_certs()
    if other := os.environ.get("REQUESTS_CA_BUNDLE"):
        with suppress(OSError):
            context.load_verify_locations(*((None, other) if Path(other).is_dir() else (other,)))
    return context


def request(
    method: str, where: Remote, read_timeout: float, plain: Mapping[str, str] | None = None, body: bytes | None = None
) -> BaseHTTPResponse:
    """Ask ``where``, with its headers and the ``plain`` ones, which hold no secret.

    A redirect to another scheme, host or port loses all of ``where``'s headers.
    TimeoutError where the answer's head takes more than ``read_timeout`` seconds in all.
    """
    import urllib3

    headers = {**where.headers, **(plain or {})}
    redirects = urllib3.Retry(
        total=None, connect=0, read=0, redirect=5, status=0, other=0, remove_headers_on_redirect=where.headers
    )
    asked = pool(where.url, read_timeout)
    try:
        return within(
            read_timeout,
            lambda: asked.request(
                method, where.url, headers=headers, body=body, retries=redirects, preload_content=False
            ),
        )
    except ValueError as error:  # a redirect to what is no address
        raise urllib3.exceptions.LocationParseError(str(error)) from error


def pool(url: str, read_timeout: float) -> PoolManager:
    """The connections to ``url``'s host, by the environment's proxy if it names one.

    ``read_timeout`` is in seconds.
    """
    at = urlsplit(url)
    proxy = None if urllib.request.proxy_bypass(at.netloc) else urllib.request.getproxies().get(at.scheme)
    return _pool(proxy, authorities(), read_timeout)


@cache
def _pool(proxy: str | None, bundle: str | None, read_timeout: float) -> PoolManager:
    import urllib3  # only a source that is asked imports it

    options: dict[str, Any] = {
        "maxsize": 16,
        "timeout": urllib3.Timeout(connect=10, read=read_timeout),
        "ca_certs": bundle,
    }
    return urllib3.ProxyManager(proxy, **options) if proxy else urllib3.PoolManager(**options)
