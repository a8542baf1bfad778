"""The manifests that come with Model Delivery: valid YAML, read as data."""

from __future__ import annotations

from typing import Any

import yaml

from model_delivery.base.home import packaged

Object = dict[str, Any]


def read(file: str) -> dict[str, Object]:
    """The documents of a file by kind: fresh copies, to be edited."""
    return {
        found["kind"]: found for found in yaml.safe_load_all((packaged("manifests") / file).read_text(encoding="utf-8"))
    }


def manifest(file: str, kind: str) -> Object:
    """One document without what the place writes: its apiVersion, kind and name."""
    found = read(file)[kind]
    found["metadata"].pop("name")
    return {key: value for key, value in found.items() if key not in ("apiVersion", "kind")}
