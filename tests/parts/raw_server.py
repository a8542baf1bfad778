"""A server that answers with exactly the bytes that it is told: what no library would
send.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterable
from socketserver import BaseRequestHandler, ThreadingTCPServer
from types import TracebackType
from typing import Any, Self

CHUNKED = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
END = b"0\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def event(said: Any) -> bytes:
    return chunk(b"data: " + (said if isinstance(said, bytes) else json.dumps(said).encode()) + b"\n\n")


def delta(reason: str | None = None, **said: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": said, "finish_reason": reason}]}


def usage(tokens: Any, prompt: Any = 3) -> dict[str, Any]:
    return {"choices": [], "usage": {"prompt_tokens": prompt, "completion_tokens": tokens, "total_tokens": 3 + tokens}}


def stream(*events: Any) -> bytes:
    return CHUNKED + b"".join(map(event, events)) + END


def answer(said: Any, status: str = "200 OK", *headers: str) -> bytes:
    body = said if isinstance(said, bytes) else json.dumps(said).encode()
    lines = [f"HTTP/1.1 {status}", *headers, f"Content-Length: {len(body)}"]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


class Handler(BaseRequestHandler):
    def handle(self) -> None:
        server: RawServer = self.server  # type: ignore[assignment]
        left = b""
        while asked := self.one(left):
            head, left = asked
            path = head.split(b" ", 2)[1].decode()
            with server.lock:
                server.asked.append(path)
            streamed = "" if b'"stream": true' not in left else "stream "
            said = server.answers.get(streamed + path) or server.answers.get(path, answer({}, "404 Not Found"))
            try:
                for piece in [said] if isinstance(said, bytes) else said:
                    if isinstance(piece, float):
                        time.sleep(piece)
                    else:
                        self.request.sendall(piece)
            except OSError:
                return
            left = b""

    def one(self, data: bytes) -> tuple[bytes, bytes] | None:
        while b"\r\n\r\n" not in data:
            if not (more := self.request.recv(65536)):
                return None
            data += more
        head, _, body = data.partition(b"\r\n\r\n")
        length = next(
            (int(x.split(b":")[1]) for x in head.split(b"\r\n") if x.lower().startswith(b"content-length")), 0
        )
        while len(body) < length:
            body += self.request.recv(65536)
        return head, body


class RawServer(ThreadingTCPServer):
    """``answers``: by path, or by ``stream PATH`` for those that are asked to stream;
    bytes, or pieces of them with pauses in s.
    """

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 64

    def __init__(self, answers: dict[str, bytes | Iterable[bytes | float]]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        models = {"object": "list", "data": [{"id": "m", "max_model_len": 100}]}
        self.answers = {"/health": answer({}), "/v1/models": answer(models), **answers}
        self.asked: list[str] = []
        self.lock = threading.Lock()
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.shutdown()
        self.server_close()
