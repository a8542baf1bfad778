"""The steady load tells what befell a request, and asks nothing twice."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from socketserver import BaseRequestHandler, ThreadingTCPServer

import pytest

from tests.parts.raw_server import chunk
from tests.parts.steady import Steady, steady

HEAD = b"HTTP/1.1 200 OK\r\nX-Engine: pod\r\nTransfer-Encoding: chunked\r\n\r\n"
WHOLE = HEAD + chunk(b"data: {}\n\ndata: [DONE]\n\n") + b"0\r\n\r\n"
CUT = HEAD + chunk(b"data: {}\n\n")
REQUESTS = 40


@contextmanager
def answering(*said: bytes) -> Iterator[tuple[str, Callable[[], None]]]:
    """Each connection is answered with ``said`` in turn, and then closed under the next
    request; with the address goes a wait for the last of ``REQUESTS``.
    """
    seen, enough = threading.Semaphore(REQUESTS - 1), threading.Event()

    class Handler(BaseRequestHandler):
        def handle(self) -> None:
            for answer in (*said, b""):
                asked = b""
                while b"}" not in asked:
                    if not (more := self.request.recv(65536)):
                        return
                    asked += more
                if not seen.acquire(blocking=False):
                    enough.set()
                self.request.sendall(answer)
                if answer in (CUT, b""):
                    return

    with ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()

        def wait() -> None:
            assert enough.wait(30), "too few requests"

        yield f"http://127.0.0.1:{server.server_address[1]}", wait
        server.shutdown()


def loaded(*said: bytes, **flags: float | str | bool) -> Steady:
    with answering(*said) as (url, enough), steady(url, "m", probes=0, low=1, high=1, **flags) as load:
        enough()
    return load


@pytest.mark.parametrize("shape", [{"rate": 200.0}, {"streams": 2}], ids=["open loop", "closed loop"])
def test_the_end_of_a_connection_that_has_served_is_a_reset_at_most_one_each(shape: dict[str, float]) -> None:
    load = loaded(WHOLE, WHOLE, **shape)
    assert load.streams.keys() == {"ok", "reset"}
    assert load.streams["reset"] == load.resets["pod"] <= load.connections["pod"] <= load.streams["ok"]


def test_a_new_connection_that_ends_is_no_reset() -> None:
    load = loaded(streams=2)
    assert "reset" not in load.streams
    assert load.streams
    assert not load.streams.keys() & {"ok"}


def test_an_answer_that_has_begun_is_no_reset() -> None:
    load = loaded(WHOLE, CUT, streams=2)
    broken = {outcome for outcome in load.streams if outcome.startswith("broken")}
    assert broken
    assert load.streams["ok"]
