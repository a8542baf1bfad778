"""One keep-alive socket whose bytes are read in the hub's callback: its greenlet wakes
once a request, not once a token.

The kernel stamps each arrival (``SO_TIMESTAMPNS``), so that a read that comes late still
knows when its data came; where it does not (another system), the moment of the read
counts.
"""

from __future__ import annotations

import math
import socket
import ssl
import struct
import time
from contextlib import suppress
from typing import Any

import gevent.socket
from gevent.hub import Waiter, get_hub

from model_delivery.measure.reader import LIMIT, NOT_HTTP, Parser, Stream, clock
from model_delivery.measure.words import printable

READ = 65536
CONNECT_SECONDS = 30.0
READABLE = 1
SO_TIMESTAMPNS = 35
STAMP = struct.Struct("@qq")
STALE_NS = 5_000_000_000
COMPARE_NS = 1_000_000_000


class StampClock:
    """Turns a stamp, which is of the clock that can be set, into ns of ``clock``;
    compares the two once a second, where they are read closest.
    """

    def __init__(self) -> None:
        self.offset = self.until = 0

    def compare(self, now: int) -> None:
        pairs = []
        for _ in range(5):
            before, wall, after = clock(), time.time_ns(), clock()
            pairs.append((after - before, (before + after) // 2 - wall))
        self.offset, self.until = min(pairs)[1], now + COMPARE_NS

    def moment(self, stamp: bytes, now: int) -> int | None:
        """None when the stamp makes no sense: the clock was set just now."""
        if now > self.until:
            self.compare(now)
        seconds, rest = STAMP.unpack_from(stamp)
        at: int = seconds * 1_000_000_000 + rest + self.offset
        return at if 0 <= now - at < STALE_NS else None


STAMPS = StampClock()


class Connection:
    """To one server; connects when it is first used, and again after an error.

    ``timeout`` in s bounds a whole request.
    """

    reads = stamped = 0
    """Reads of this process, and those whose moment came from the kernel."""
    sock: Any = None
    watcher: Any = None
    waiter: Any = None
    tunnel: Tunnel | None = None
    parser: Parser | None = None

    def __init__(self, host: str, port: int, *, tls: bool = False, timeout: float = 300) -> None:
        self.host, self.port, self.timeout = host, port, timeout
        self.context = ssl.create_default_context() if tls else None

    def request(
        self, raw: bytes, intended: int | None = None, asked: int = 0, *, limit: int = LIMIT, within: float = math.inf
    ) -> Stream:
        """Send ``raw`` and wait for the end of its answer, of which ``asked`` tokens are
        due (0: as many as it likes), and at most ``limit`` bytes and ``within`` s.

        ``intended`` (ns of ``clock``) is when it should have started, where that is
        fixed; else it starts once it is connected. Whatever goes wrong is in the Stream.
        A kept connection that the server closed while it was idle is opened anew, once.
        """
        stream = Stream(intended or 0, asked=asked)
        reused = self.sock is not None
        self._attempt(raw, stream, limit, within)
        if reused and stream.error and not stream.status and not stream.error.startswith("timeout"):
            stream = Stream(stream.intended, asked=asked)
            self._attempt(raw, stream, limit, within)
        stream.end = stream.end or clock()
        stream.intended = stream.intended or stream.end
        return stream

    def open(self) -> None:
        """Connect now; an error shows with the first request."""
        with suppress(OSError):
            if self.sock is None:
                self._connect()

    def close(self) -> None:
        if self.watcher is not None:
            self.watcher.stop()
            self.watcher.close()
            self.watcher = None
        if self.sock is not None:
            self.sock.close()
            self.sock = self.tunnel = None

    def _attempt(self, raw: bytes, stream: Stream, limit: int, within: float) -> None:
        parser = None
        try:
            if self.sock is None:
                self._connect()
            parser = self.parser = Parser(stream, limit=limit)
            stream.start = clock()
            stream.intended = stream.intended or stream.start
            self.sock.sendall(self.tunnel.sealed(raw) if self.tunnel else raw)
            self._wait(stream, within)
        except OSError as error:
            self._failed(stream, error)
        finally:
            self.parser = None
        if stream.error or (parser and not parser.keep_alive):
            self.close()

    def _connect(self) -> None:
        sock = gevent.socket.create_connection((self.host, self.port), timeout=CONNECT_SECONDS)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self.context is not None:
            self.tunnel = Tunnel(self.context, self.host)
            try:
                self.tunnel.shake_hands(sock)
            except OSError:
                sock.close()
                raise
        sock.settimeout(self.timeout)
        with suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        self.sock = sock
        self.recvmsg = sock._sock.recvmsg  # noqa: SLF001 the plain socket: gevent's own would wait
        self.watcher = get_hub().loop.io(sock.fileno(), READABLE)
        self.watcher.start(self._readable)

    def _wait(self, stream: Stream, within: float) -> None:
        if self.parser is None:
            return
        self.waiter = Waiter(get_hub())
        timer = get_hub().loop.timer(min(self.timeout, within))
        late = f"timeout after {self.timeout:g} s" if self.timeout <= within else "not over when the test ended"
        timer.start(self.waiter.switch, late)
        try:
            error = self.waiter.get()
        finally:
            timer.stop()
            timer.close()
            self.waiter = None
        stream.error = stream.error or error

    def _readable(self) -> None:
        try:
            data, extra, _, _ = self.recvmsg(READ, 64)
            now = clock()
            Connection.reads += 1
            if extra:
                at = STAMPS.moment(extra[0][2], now)
                if at is not None:
                    now = at
                    Connection.stamped += 1
            if self.tunnel is not None or not data or self.parser is None:
                self._other(data, now)
            elif self.parser.feed(data, now):
                self._over(None)
        except BlockingIOError:
            return
        except OSError as error:
            self._over(error)
        except Exception:  # noqa: BLE001 - in the hub's callback nobody else would hear of it
            self._over(ValueError(NOT_HTTP))

    def _other(self, data: bytes, now: int) -> None:
        """What is sealed, the end, and what nobody asked for: it would pass for the next
        answer.
        """
        ended, parser = not data, self.parser
        if self.tunnel is not None and data:
            data, ended = self.tunnel.opened(data), self.tunnel.ended
        if data and parser is not None and parser.feed(data, now):
            parser.keep_alive &= not ended
            self._over(None)
        elif ended or (data and parser is None):
            if parser is not None:
                parser.closed(now)
            self._over(None)

    def _over(self, error: Exception | None) -> None:
        parser, waiter = self.parser, self.waiter
        self.parser = None
        if parser is None:
            self.close()
            return
        if error is not None:
            self._failed(parser.stream, error)
        if waiter is not None:
            waiter.switch(None)

    def _failed(self, stream: Stream, error: Exception) -> None:
        if not stream.error:
            network = isinstance(error, OSError)
            stream.error = f"connection: {type(error).__name__}" if network else str(error)
            stream.said = stream.said or (printable(str(error)) if network else "")


class Tunnel:
    """TLS over memory, so that an encrypted stream is read in the same callback, with the
    same stamps.
    """

    def __init__(self, context: ssl.SSLContext, host: str) -> None:
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_hostname=host)
        self.ended = False

    def shake_hands(self, sock: Any) -> None:
        """Raises OSError (ssl's errors are) when the other side is not trusted or
        leaves.
        """
        while True:
            try:
                self.tls.do_handshake()
            except ssl.SSLWantReadError:
                sock.sendall(self.outgoing.read())
                data = sock.recv(READ)
                if not data:
                    raise ConnectionResetError from None
                self.incoming.write(data)
            else:
                sock.sendall(self.outgoing.read())
                return

    def sealed(self, raw: bytes) -> bytes:
        self.tls.write(raw)
        return self.outgoing.read()

    def opened(self, data: bytes) -> bytes:
        """What ``data`` says; empty while a record is not whole. ``ended``: the other
        side said that no more will come.
        """
        self.incoming.write(data)
        pieces = []
        try:
            while piece := self.tls.read(READ):
                pieces.append(piece)
            self.ended = True
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            self.ended = True
        return b"".join(pieces)
