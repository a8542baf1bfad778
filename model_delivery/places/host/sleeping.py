"""An engine's sleep: it gives its cards back, keeps its weights in the host's memory, and
answers nobody until it is woken.
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import psutil

from model_delivery.base import Permanent, replace_file
from model_delivery.places.host.asking import ask
from model_delivery.places.host.processes import ProcessFolder, read_json
from model_delivery.targets.process import HOST
from model_delivery.values.engine import Sleep

ASK_SECONDS, SLEEP_SECONDS, WAKE_SECONDS = 2.0, 60.0, 30.0
GIB = 1 << 30
GIB_SECONDS = 2.0  # pinning host memory took 0.75 s for one (docs/results/gpu.md)
ANSWER_BYTES = 4096
# What vLLM serves beside /sleep with VLLM_SERVER_DEV_MODE (0.18 to 0.32): none of it is
# for clients.
PRIVATE = (
    *("/sleep", "/wake_up", "/is_sleeping", "/pause", "/resume", "/is_paused", "/abort_requests", "/server_info"),
    *("/reset_prefix_cache", "/reset_mm_cache", "/reset_encoder_cache", "/collective_rpc", "/get_world_size"),
    *("/init_weight_transfer_engine", "/start_weight_update", "/start_draft_weight_update", "/update_weights"),
    *("/finish_weight_update", "/scale_elastic_ep", "/is_scaling_elastic_ep"),
)


@dataclass(frozen=True)
class Sleeper:
    """The engine of a process folder, by the ways of its ``engine.toml``."""

    folder: ProcessFolder
    ways: Sleep

    @property
    def asleep(self) -> bool:
        """As it says itself; where it does not answer, as was noted."""
        if not self.folder.running:
            return False
        answer = ask(HOST, self._port, self.ways.asleep, ASK_SECONDS, most=ANSWER_BYTES)
        said = answer.body if answer and answer.status == HTTPStatus.OK else b""
        try:
            return json.loads(said)["is_sleeping"] is True
        except (ValueError, LookupError, TypeError, RecursionError):
            return held(self.folder) is not None

    def sleep(self, weights: int, drain: float) -> str:
        """Once its open streams have ended, ``drain`` seconds at most. Why it could not;
        empty: it sleeps. ``weights``: bytes that it takes of the host's memory.
        """
        if not self.asleep:
            free = psutil.virtual_memory().available
            if free < weights:
                return f"its weights take {weights / GIB:.1f} GiB of the host's memory, {free / GIB:.1f} are free"
            if why := self._told(self.ways.sleep, drain + SLEEP_SECONDS + GIB_SECONDS * weights / GIB):
                return why
            if not self.asleep:
                return "asked to sleep, it says that it is awake"
        noted = {"pid": self.folder.state.get("pid"), "bytes": weights}
        replace_file(self.folder.path / "asleep", json.dumps(noted))
        return ""

    def wake(self) -> str:
        """Its cards count as taken from the first moment. Why it could not; empty: it is
        awake.
        """
        seconds = WAKE_SECONDS + GIB_SECONDS * (held(self.folder) or 0) / GIB
        forget(self.folder)
        return self._told(self.ways.wake, seconds) or ("woken, it says that it sleeps" if self.asleep else "")

    def _told(self, way: str, seconds: float) -> str:
        answer = ask(HOST, self._port, way, seconds, body={})
        if answer is None:
            return f"{way.partition('?')[0]} was not answered within {seconds:.0f} s"
        return "" if answer.status == HTTPStatus.OK else f"{way.partition('?')[0]} was answered with {answer.status}"

    @property
    def _port(self) -> int:
        return int(self.folder.binding["port"])


def held(folder: ProcessFolder) -> int | None:
    """Bytes of the host's memory that the sleeper there holds; None: nobody sleeps there,
    or what was noted is damaged, so that its cards count as taken.
    """
    noted: dict[str, Any] = {}
    with suppress(Permanent):
        noted = read_json(folder.path / "asleep") or {}
    size = noted.get("bytes")
    return size if noted.get("pid") == folder.state.get("pid") and isinstance(size, int) and size >= 0 else None


def forget(folder: ProcessFolder) -> None:
    (folder.path / "asleep").unlink(missing_ok=True)
