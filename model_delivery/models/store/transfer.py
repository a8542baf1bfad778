"""Brings chunks from where a source says they are. As long as bytes move it goes on;
without any it tries again, ever more slowly.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urljoin

import tenacity

from model_delivery.base import Finding, Permanent, Retryable, Stopped, Trouble
from model_delivery.models.sources.http import Busy, NotGiven, http_trouble, request
from model_delivery.models.sources.spec import Local, Remote
from model_delivery.models.store.origin import Origin
from model_delivery.models.store.part import BUFFER, CHUNK, Part, written
from model_delivery.values import File

if TYPE_CHECKING:
    from urllib3 import BaseHTTPResponse

STREAMS = 16
SLOWEST = 64 * 1024
EXPIRED = (401, 403, 404, 410)
GOES_ON = "it goes on where it was cut"


@dataclass(frozen=True)
class Patience:
    """``stall``: seconds in which 64 KiB must arrive, else the connection is given up;
    ``tries``: without a byte, in a row.
    """

    stall: float = 30.0
    tries: int = 6
    longest_wait: float = 20.0


class NoRanges(Exception):
    """The server sends whole files only."""


class LeftToAnother(Exception):
    """Another stream brings the whole file."""


@dataclass
class Link:
    """The connections of one fetch. ``count`` hears of every byte that arrives; ``stop``
    ends all streams.
    """

    patience: Patience
    count: Callable[[int], None]
    stop: threading.Event
    direct: dict[tuple[str, str], Remote] = field(default_factory=dict)
    open: dict[socket.socket, _Watch] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def fill(self, part: Part, row: range, origin: Origin) -> None:
        """Bring these chunks of ``part``, or all of it where the server sends whole files
        only. Retryable when nothing more arrives, Permanent when it is not what was
        listed.
        """
        at, end = row.start * CHUNK, min(row.stop * CHUNK, part.file.size)
        where = self._where(part, origin)
        if isinstance(where, Local):
            self._copy(part, at, end, where.path, origin)
            return
        try:
            while at < end:
                at = self._patiently(part, at, end, origin)
        except NoRanges:
            if not part.take_alone(self.stop):
                raise LeftToAnother from None
            self._patiently(part, 0, part.file.size, origin, whole=True)

    def halt(self) -> None:
        """End all streams now, those too that wait for a byte or for their next try."""
        self.stop.set()
        self.give_up()

    def give_up(self) -> None:
        """The connections that have long shown nothing: ``_Watch`` hears nothing of a
        chunk's head that trickles.
        """
        with self.lock:
            for twin, watch in self.open.items():
                if self.stop.is_set() or time.monotonic() - watch.since > 2 * watch.stall:
                    with suppress(OSError):
                        twin.shutdown(socket.SHUT_RDWR)

    def _patiently(self, part: Part, at: int, end: int, origin: Origin, *, whole: bool = False) -> int:
        tries = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(Retryable),
            stop=tenacity.stop_after_attempt(self.patience.tries) | tenacity.stop_when_event_set(self.stop),
            wait=self._pause,
            sleep=tenacity.sleep_using_event(self.stop),
            reraise=True,
        )
        return tries(self._get, part, at, end, origin, whole)

    def _pause(self, state: tenacity.RetryCallState) -> float:
        """As long as the hub asks for, else ever longer."""
        error = state.outcome.exception() if state.outcome else None
        if isinstance(error, Busy) and error.after is not None:
            return error.after
        return tenacity.wait_exponential_jitter(initial=0.5, max=self.patience.longest_wait)(state)

    def _where(self, part: Part, origin: Origin) -> Remote | Local:
        return self.direct.get((origin.name, part.file.path)) or origin.locate(part.file)

    @contextmanager
    def _asked(self, where: Remote, headers: Mapping[str, str], watch: _Watch) -> Iterator[BaseHTTPResponse]:
        with request("GET", where, self.patience.stall, headers) as answer, self._halting(answer, watch):
            yield answer

    @contextmanager
    def _halting(self, answer: BaseHTTPResponse, watch: _Watch) -> Iterator[None]:
        """``halt`` ends its connection, by a descriptor of its own: the answer's may be
        closed, and its number another file's.
        """
        if answer.closed:  # all of it has arrived
            yield
            return
        with socket.socket(fileno=os.dup(answer.fileno())) as twin:
            with self.lock:
                self.open[twin] = watch
            try:
                yield
            finally:
                with self.lock:
                    self.open.pop(twin, None)

    def _get(self, part: Part, at: int, end: int, origin: Origin, whole: bool) -> int:
        """One request; returns how far it came. A connection that breaks after 64 KiB is
        no error yet: the next one goes on there.
        """
        from urllib3.exceptions import HTTPError

        where = self._where(part, origin)
        if isinstance(where, Local):
            raise TypeError(f"{origin.name} first named an address, then a file")
        ranged = not whole and (at, end) != (0, part.file.size)
        headers = {"Accept-Encoding": "identity"}
        if ranged:
            headers["Range"] = f"bytes={at}-{end - 1}"
        start, watch = at, _Watch(self.patience.stall)
        try:
            with self._asked(where, headers, watch) as answer:
                self._accept(answer, part, origin, where, ranged=ranged, at=at)
                while not self.stop.is_set() and (data := answer.read1(BUFFER)):
                    at = self._take(part, at, data, end, origin)
                    watch.saw(len(data))
        except (HTTPError, OSError) as error:
            if self.stop.is_set():
                raise Stopped from error
            if at - start >= SLOWEST and not whole:
                return at
            raise _broken(error, part.file, where) from error
        if self.stop.is_set():
            raise Stopped
        if at < end and (whole or at == start):
            raise _broken(EOFError(), part.file, where)
        return at

    def _accept(
        self, answer: BaseHTTPResponse, part: Part, origin: Origin, asked: Remote, *, ranged: bool, at: int
    ) -> None:
        file, known, address = part.file, (origin.name, part.file.path), asked.url.partition("?")[0]
        if answer.status in EXPIRED and self.direct.pop(known, None) is not None:
            what = f"the address of {file.path} has expired"
            raise Retryable(Finding("fetch.address-expired", what, address, "run again"))
        if answer.status not in (200, 206):
            raise http_trouble(answer.status, address, answer.headers.get("Retry-After", ""))
        if ranged and answer.status == 200:
            raise NoRanges
        span, _, total = answer.headers.get("Content-Range", "").rpartition("/")
        if ranged and not span.startswith(f"bytes {at}-"):
            what = f"{file.path} comes from another place than was asked for"
            raise NotGiven(Finding("fetch.wrong-range", what, span or "no Content-Range", "use another source"))
        length = total if ranged else answer.headers.get("Content-Length", "")
        if length.isdigit() and int(length) != file.size:
            raise unlisted(file, f"the server has {length} bytes, the list says {file.size}")
        final = urljoin(asked.url, answer.geturl() or "")
        if final != asked.url:
            self.direct[known] = asked.moved(final)

    def _take(self, part: Part, at: int, data: bytes, end: int, origin: Origin) -> int:
        """Where the next bytes belong."""
        after = at + len(data)
        if part.others:
            raise LeftToAnother
        if after > end:
            raise unlisted(part.file, "more bytes came than are listed")
        with written(part.file.path):
            part.comes_from(origin.name)
            part.write(at, data)
        self.count(len(data))
        return after

    def _copy(self, part: Part, at: int, end: int, source: Path, origin: Origin) -> None:
        try:
            with source.open("rb") as opened:
                with written(part.file.path):
                    if not part.done and part.clone(opened):
                        part.comes_from(origin.name)
                        self.count(part.file.size)
                        return
                opened.seek(at)
                while at < end and not self.stop.is_set():
                    data = opened.read(min(BUFFER, end - at))
                    if not data:
                        raise unlisted(part.file, f"{source} is only {at} bytes long")
                    at = self._take(part, at, data, end, origin)
        except OSError as error:
            what, fix = f"{source} cannot be read", "is it still there, and may this user read it?"
            raise NotGiven(Finding("source.not-readable", what, error.strerror or "", fix)) from error


class _Watch:
    """Gives up a connection that trickles: each ``stall`` seconds 64 KiB must come."""

    def __init__(self, stall: float) -> None:
        self.stall, self.since, self.came = stall, time.monotonic(), 0

    def saw(self, size: int) -> None:
        self.came += size
        if (now := time.monotonic()) - self.since >= self.stall:
            if self.came < SLOWEST:
                raise TimeoutError(f"{self.came} bytes in {now - self.since:.0f} s")
            self.since, self.came = now, 0


def unlisted(file: File, why: str) -> Permanent:
    fix = "run again; if it stays so, the source or what lies between is broken"
    return Permanent(Finding("fetch.sum-differs", f"{file.path} is not what was listed", why, fix))


def _broken(error: Exception, file: File, where: Remote) -> Trouble:
    why = f"{type(error).__name__} from {where.url.partition('?')[0]}"
    return Retryable(Finding("fetch.broke-off", f"{file.path} broke off", why, f"run again: {GOES_ON}"))
