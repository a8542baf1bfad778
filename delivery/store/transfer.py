"""Brings chunks from where a source says they are. As long as bytes move it goes on; without any it tries again, ever more slowly."""

from __future__ import annotations

import os
import shutil
import threading
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

import stamina
import urllib3

from delivery.findings import Finding, Permanent, Retryable, Trouble
from delivery.sources import File, Local, Remote
from delivery.sources.http import Busy, http_trouble
from delivery.store.part import BUFFER, CHUNK, Part, chunk_size

STREAMS = 8
SLOWEST = 64 * 1024
EXPIRED = (401, 403, 404, 410)


@dataclass(frozen=True)
class Patience:
    """``stall``: seconds in which 64 KiB must arrive, else the connection is given up; ``tries``: without a byte, in a row."""

    stall: float = 30.0
    tries: int = 6
    longest_wait: float = 20.0


@dataclass(frozen=True)
class Origin:
    """A source that may have the bytes: ``locate`` says where those of a file are, as of now (a signed address expires)."""

    name: str
    locate: Callable[[File], Remote | Local]


class NoRanges(Exception):  # noqa: N818 - a turn of events, not an error
    """The server sends whole files only."""


class Stopped(Exception):  # noqa: N818
    """Another stream has failed."""


@dataclass
class Link:
    """The connections of one fetch. ``count`` hears of every byte that arrives; ``stop`` ends all streams."""

    patience: Patience
    count: Callable[[int], None]
    stop: threading.Event
    pools: dict[str | None, urllib3.PoolManager] = field(default_factory=dict)
    direct: dict[tuple[str, str], Remote] = field(default_factory=dict)

    def fill(self, part: Part, row: range, origin: Origin) -> None:
        """Bring these chunks of ``part``. Retryable when nothing more arrives, Permanent when it is not what was listed."""
        part.origins.add(origin.name)
        where = self._where(part, origin)
        if isinstance(where, Local):
            self._copy(part, row, where.path)
            return
        at, end = row.start * CHUNK, min(row.stop * CHUNK, part.file.size)
        try:
            while at < end:
                at = self._patiently(part, at, end, origin)
        except NoRanges:
            if not part.alone:
                part.alone = True
                self._patiently(part, 0, part.file.size, origin)

    def _patiently(self, part: Part, at: int, end: int, origin: Origin) -> int:
        wait = {"wait_initial": 0.5, "wait_max": self.patience.longest_wait, "timeout": None}
        for attempt in stamina.retry_context(on=_again, attempts=self.patience.tries, **wait):  # type: ignore[arg-type]
            with attempt:
                return self._get(part, at, end, origin)
        raise AssertionError("unreachable: the last attempt raises")

    def _where(self, part: Part, origin: Origin) -> Remote | Local:
        return self.direct.get((origin.name, part.file.path)) or origin.locate(part.file)

    def _get(self, part: Part, at: int, end: int, origin: Origin) -> int:
        """One request; returns how far it came. A connection that breaks after some bytes is no error yet: the next one goes on there."""
        where = self._where(part, origin)
        if isinstance(where, Local):
            raise TypeError(f"{origin.name} first named an address, then a file")
        ranged = not part.alone and (at, end) != (0, part.file.size)
        headers = {**where.headers, "Accept-Encoding": "identity"} | ({"Range": f"bytes={at}-{end - 1}"} if ranged else {})
        start, watch = at, _Watch(self.patience.stall)
        try:
            with self._pool(where.url).request("GET", where.url, headers=headers, preload_content=False) as answer:
                self._accept(answer, part, origin, where, ranged=ranged)
                for data in answer.stream(BUFFER):
                    if self.stop.is_set():
                        raise Stopped
                    self._take(part, at, data, end)
                    at += len(data)
                    watch.saw(len(data))
        except (urllib3.exceptions.HTTPError, TimeoutError, ConnectionError) as error:
            if at > start and not part.alone:
                return at
            raise _broken(error, part.file, where) from error
        except OSError as error:
            raise _unwritable(error, part) from error
        if at < end and (part.alone or at == start):
            raise _broken(EOFError(), part.file, where)
        return at

    def _accept(self, answer: urllib3.BaseHTTPResponse, part: Part, origin: Origin, asked: Remote, *, ranged: bool) -> None:
        known, address = (origin.name, part.file.path), asked.url.partition("?")[0]
        if answer.status in EXPIRED and self.direct.pop(known, None) is not None:
            raise Retryable(Finding(f"the address of {part.file.path} has expired", address, "run again"))
        if answer.status not in (200, 206):
            raise http_trouble(answer.status, address, answer.headers.get("Retry-After", ""))
        if ranged and answer.status == 200:
            raise NoRanges
        length = answer.headers.get("Content-Range", "").rpartition("/")[2] if ranged else answer.headers.get("Content-Length", "")
        if length.isdigit() and int(length) != part.file.size:
            raise Permanent(_unlisted(part.file, f"the server has {length} bytes, the list says {part.file.size}"))
        final = urljoin(asked.url, answer.geturl() or "")
        if final != asked.url:
            same = urlsplit(final).netloc == urlsplit(asked.url).netloc
            self.direct[known] = Remote(final, asked.headers if same else {})

    def _take(self, part: Part, at: int, data: bytes, end: int) -> None:
        after = at + len(data)
        if after > end:
            raise Permanent(_unlisted(part.file, "more bytes came than are listed"))
        part.write(at, data)
        self.count(len(data))
        for number in range(at // CHUNK, (after - 1) // CHUNK + 1):
            if number * CHUNK + chunk_size(part.file, number) <= after:
                part.note(number)

    def _copy(self, part: Part, row: range, source: Path) -> None:
        if not part.done and part.clone(source):
            self.count(part.file.size)
            return
        with source.open("rb") as opened:
            at, end = row.start * CHUNK, min(row.stop * CHUNK, part.file.size)
            opened.seek(at)
            while at < end and not self.stop.is_set():
                data = opened.read(min(BUFFER, end - at))
                if not data:
                    raise Permanent(_unlisted(part.file, f"{source} is only {at} bytes long"))
                try:
                    self._take(part, at, data, end)
                except OSError as error:
                    raise _unwritable(error, part) from error
                at += len(data)

    def _pool(self, url: str) -> urllib3.PoolManager:
        """Proxies as the environment says. A redirect to another host loses the token: urllib3 removes Authorization there."""
        at = urlsplit(url)
        proxy = None if urllib.request.proxy_bypass(at.netloc) else urllib.request.getproxies().get(at.scheme)
        if proxy not in self.pools:
            authorities = next((os.environ[name] for name in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE") if os.environ.get(name)), None)
            options: dict[str, Any] = {
                "maxsize": STREAMS,
                "timeout": urllib3.Timeout(connect=10, read=self.patience.stall),
                "retries": urllib3.Retry(total=None, connect=0, read=0, redirect=5, status=0, other=0),
                "ca_certs": authorities,
            }
            self.pools[proxy] = urllib3.ProxyManager(proxy, **options) if proxy else urllib3.PoolManager(**options)
        return self.pools[proxy]


class _Watch:
    """Gives up a connection that trickles: every ``stall`` seconds 64 KiB must have come."""

    def __init__(self, stall: float) -> None:
        self.stall, self.since, self.came = stall, time.monotonic(), 0

    def saw(self, size: int) -> None:
        self.came += size
        if (now := time.monotonic()) - self.since >= self.stall:
            if self.came < SLOWEST:
                raise TimeoutError(f"{self.came} bytes in {now - self.since:.0f} s")
            self.since, self.came = now, 0


def _again(error: Exception) -> bool | float:
    if isinstance(error, Busy) and error.after is not None:
        return error.after
    return isinstance(error, Retryable)


def _unlisted(file: File, why: str) -> Finding:
    return Finding(f"{file.path} is not what was listed", why, "run again; if it stays so, the source or what lies between is broken")


def _broken(error: Exception, file: File, where: Remote) -> Trouble:
    why = f"{type(error).__name__} from {where.url.partition('?')[0]}"
    return Retryable(Finding(f"{file.path} broke off", why, "run again: it goes on where it was cut"))


def _unwritable(error: OSError, part: Part) -> Trouble:
    free = shutil.disk_usage(part.path.parent).free
    why = f"{error.strerror}; {free} bytes are free in {part.path.parent}"
    return Permanent(Finding(f"{part.file.path} cannot be written", why, "make room, then run again: it goes on where it was cut"))
