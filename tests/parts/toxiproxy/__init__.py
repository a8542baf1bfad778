"""Shopify's toxiproxy, built from its Go module: a real network with faults between a
client and a server.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx

from tests.parts.golang import build
from tests.parts.ports import free_port


class Network:
    """The way to one server: ``url`` leads through it."""

    def __init__(self, api: httpx.Client, upstream: str) -> None:
        self.api, self.port = api, free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        body = {
            "name": "way",
            "listen": f"127.0.0.1:{self.port}",
            "upstream": urlsplit(upstream).netloc,
            "enabled": True,
        }
        self.api.post("/proxies", json=body).raise_for_status()

    def fault(self, kind: str, **attributes: Any) -> None:
        """``latency`` (ms), ``bandwidth`` (rate in KB/s), ``reset_peer`` (timeout ms),
        ``limit_data`` (bytes), ``timeout`` (0: stalls for ever).
        """
        toxic = {"name": kind, "type": kind, "stream": "downstream", "attributes": attributes}
        self.api.post("/proxies/way/toxics", json=toxic).raise_for_status()

    def heal(self) -> None:
        self.api.post("/reset").raise_for_status()

    def cut(self) -> None:
        """Nobody listens any more; open connections end."""
        self.api.post("/proxies/way", json={"enabled": False}).raise_for_status()


@contextmanager
def network(upstream: str) -> Iterator[Network]:
    """A way to ``upstream`` (a URL) whose faults are set by calls."""
    port = free_port()
    program = build(Path(__file__).parent)
    with subprocess.Popen(
        [str(program), f"127.0.0.1:{port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=60) as api:
                for _ in range(200):
                    try:
                        api.get("/version")
                        break
                    except httpx.TransportError:
                        time.sleep(0.05)
                yield Network(api, upstream)
        finally:
            process.kill()
