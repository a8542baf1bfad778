"""What a pod's init container said of the cache that its engine starts with, in a word of
its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from model_delivery.base import Finding

CONTAINER, KEPT = "model-delivery-cache", "kept"
WHY = {"unwritable": "it cannot be written, or is full", "foreign": "its folder is another user's"}


def told(pods: Iterable[Mapping[str, Any]]) -> tuple[bool, tuple[Finding, ...]]:
    """Does one start with what an earlier start left? And why others start without their
    cache.
    """
    inits = [init for pod in pods for init in pod["status"].get("initContainerStatuses") or ()]
    ended = (init["state"].get("terminated") or {} for init in inits if init["name"] == CONTAINER)
    words = {str(one.get("message")).strip() for one in ended}
    what = "the engine starts without its cache"
    fix = "see who owns the folder, and whether it has room; the next pod tries it again"
    unused = (Finding("engine.cache-unusable", what, why, fix) for word, why in WHY.items() if word in words)
    return KEPT in words, tuple(unused)
