"""A TCP proxy of the tests' own that loses answers: the request is carried out, the
client sees its connection break.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field


@dataclass
class CuttingProxy:
    """``cut_after(n)``: the next ``n`` answers come through, the one after them is lost
    with its connection.
    """

    port: int
    target: int
    cuts: int = 0
    _left: int | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def cut_after(self, answers: int) -> None:
        with self._lock:
            self._left = answers

    def lost(self) -> bool:
        """Is the answer that begins now the one?"""
        with self._lock:
            if self._left is None:
                return False
            self._left -= 1
            if self._left >= 0:
                return False
            self._left, self.cuts = None, self.cuts + 1
            return True

    def serve(self, client: socket.socket) -> None:
        server = socket.create_connection(("127.0.0.1", self.target))
        asked = threading.Event()

        def forth() -> None:
            with suppress(OSError):
                while data := client.recv(65536):
                    asked.set()
                    server.sendall(data)
                server.shutdown(socket.SHUT_WR)

        threading.Thread(target=forth, daemon=True).start()
        with suppress(OSError), client, server:
            while data := server.recv(65536):
                if asked.is_set():
                    asked.clear()
                    if self.lost():
                        client.shutdown(socket.SHUT_RDWR)  # a close alone waits for the other thread's read
                        return
                client.sendall(data)


@contextmanager
def cutting_proxy(target: int) -> Iterator[CuttingProxy]:
    """Before ``127.0.0.1:target``, for the length of the block."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        proxy = CuttingProxy(listener.getsockname()[1], target)

        def accept() -> None:
            with suppress(OSError):
                while True:
                    client, _ = listener.accept()
                    threading.Thread(target=proxy.serve, args=(client,), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        yield proxy
