"""Weights read into their node's page cache while the engine in a pod still imports its
libraries.

A hook of the engine's container leaves a reader behind and has ended well at once. What
it reads counts against the container's memory, as a cache that the kernel takes back.
"""

from __future__ import annotations

from model_delivery.base import Object, Size
from model_delivery.base.manifests import script
from model_delivery.values import Serving

ANY = "1Pi"


def read_ahead(engine: Object, model: str, serving: Serving) -> None:
    """Where ``serving.readahead`` asks for it: the weights in the folder ``model``, file
    by file, as many as fit.
    """
    if serving.readahead:
        most = Size(str(serving.resources.limits.get("memory", ANY))).bytes // 1024
        command = ["sh", "-c", script("readahead.sh"), "readahead", model, str(most)]
        engine["lifecycle"]["postStart"] = {"exec": {"command": command}}
