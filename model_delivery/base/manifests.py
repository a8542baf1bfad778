"""The manifests that come with Model Delivery: valid YAML, read once, given out as fresh
copies; and the scripts that pods run.
"""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import yaml

from model_delivery.base.home import packaged

Object = dict[str, Any]


@cache
def _documents(file: str) -> dict[str, Object]:
    text = (packaged("manifests") / file).read_text(encoding="utf-8")
    return {document["kind"]: document for document in yaml.safe_load_all(text)}


@cache
def script(file: str) -> str:
    return (packaged("manifests") / file).read_text(encoding="utf-8")


def document(file: str, kind: str) -> Object:
    """The document of that kind, to be edited."""
    return copy.deepcopy(_documents(file)[kind])


def manifest(file: str, kind: str) -> Object:
    """A document without what the place writes: its apiVersion, kind and name."""
    made = document(file, kind)
    del made["apiVersion"], made["kind"], made["metadata"]["name"]
    return made
