"""A played kube-proxy: for each Service, its cluster address in 127/8 takes connections
to its ready endpoints, in turn.

A Service's port below 1024 answers only where the tests run as root (``log/forwarding``
says so).
"""

from __future__ import annotations

import asyncio
import itertools
import threading
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

import httpx

from tests.parts.cluster.control_plane import Cluster
from tests.parts.cluster.played_pod import loopback

PERIOD = 0.1
Backend = tuple[str, int]
Front = tuple[str, int]


class Forwarding:
    """Follows the API's Services and EndpointSlices while the block runs, in a thread of
    its own.
    """

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=[self._run()], daemon=True)
        self._stop = threading.Event()
        self._turn = itertools.count()
        self._backends: dict[Front, list[Backend]] = {}
        self._servers: dict[Front, asyncio.Server] = {}

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    async def _run(self) -> None:
        while not self._stop.is_set():
            with suppress(
                httpx.HTTPError
            ):  # the API server is down for a test; what is programmed stays, as with the real one
                self._backends = await asyncio.to_thread(self._wanted)
            for front in self._backends.keys() - self._servers.keys():
                try:
                    self._servers[front] = await asyncio.start_server(self._serving(front), *front)
                except OSError as error:  # taken for now, or below 1024 and we are not root; tried again
                    (self._cluster.folder / "log" / "forwarding").write_text(f"{front}: {error}\n")
            for front in self._servers.keys() - self._backends.keys():
                self._servers.pop(front).close()
            await asyncio.sleep(PERIOD)
        for server in self._servers.values():
            server.close()
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _wanted(self) -> dict[Front, list[Backend]]:
        slices = self._cluster.listed("/apis/discovery.k8s.io/v1/endpointslices")
        made: dict[Front, list[Backend]] = {}
        for service in self._cluster.listed("/api/v1/services"):
            meta, address = service["metadata"], service["spec"].get("clusterIP", "None")
            if address == "None" or meta["name"] == "kubernetes":
                continue
            own = [
                one
                for one in slices
                if one["metadata"]["namespace"] == meta["namespace"]
                and one["metadata"].get("labels", {}).get("kubernetes.io/service-name") == meta["name"]
            ]
            for port in service["spec"].get("ports", ()):
                made[loopback(address), port["port"]] = _ready(own, port.get("name", ""))
        return made

    def _serving(self, front: Front) -> Any:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            backends = self._backends.get(front, [])
            try:
                if backends:
                    there = await asyncio.open_connection(*backends[next(self._turn) % len(backends)])
                    await asyncio.gather(_copy(reader, there[1]), _copy(there[0], writer))
            except OSError:
                pass  # refused: the client sees its connection closed
            finally:
                writer.close()

        return serve


def _ready(slices: list[dict[str, Any]], name: str) -> list[Backend]:
    return [
        (loopback(endpoint["addresses"][0]), int(port["port"]))
        for one in slices
        for port in one.get("ports") or ()
        for endpoint in one.get("endpoints") or ()
        if port.get("name", "") == name and endpoint.get("conditions", {}).get("ready")
    ]


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.write_eof()
    except OSError:
        writer.close()
