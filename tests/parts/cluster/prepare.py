"""``python -m tests.parts.cluster.prepare TIER…``: builds what the tiers ``control`` and
``node`` need, while the network is there.

What is in the cache already costs nothing. Exit code 1, with what failed, when something
cannot be built.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.parts import contour, kserve
from tests.parts.cluster import images
from tests.parts.cluster.control_plane import kube
from tests.parts.gateway import definitions
from tests.parts.golang import build, cache

SOURCES = Path(__file__).parent


def programs(*, node: bool) -> None:
    """Kubernetes takes minutes the first time, and both processors."""
    told("the Gateway API", lambda: definitions()[0].parent)
    told("Kubernetes", kube)
    told("KServe", kserve.manager)
    if node:
        told("CoreDNS", lambda: build(SOURCES / "dns"))
        told("pause", lambda: build(SOURCES / "pause"))
        told("Contour", contour.contour)
        told("Envoy", contour.envoy)
        told("the steady load", lambda: build(SOURCES.parent / "steady"))


def pictures() -> None:
    """Most of their time goes into downloads, so they are made beside the programs."""
    told("Debian with Python", images.base)
    told("the project's image", images.project)
    told("the CPU engine", images.engine)
    told("the model", images.model)


def told(what: str, make: Callable[[], Path]) -> None:
    began = time.monotonic()
    made = make()
    print(f"{what}: {made} ({time.monotonic() - began:.0f} s)", flush=True)


def main() -> int:
    node = not {"node", "targets"}.isdisjoint(sys.argv[1:])
    cache().mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor() as pool:
        works = [pool.submit(programs, node=node), *([pool.submit(pictures)] if node else [])]
    failed = [error for work in works if (error := work.exception())]
    for error in failed:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
