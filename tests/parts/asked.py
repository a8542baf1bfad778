"""What a spec asks of whatever target, with the fields that a test is not about."""

from __future__ import annotations

from typing import Any

from model_delivery.targets.protocol import Asked


def asked(name: str = "m", **serving: Any) -> Asked:
    model = {"source": "huggingface", "repo": "a/b"}
    given = {"apiVersion": "model-delivery/v1", "name": name, "model": model}
    return Asked.model_validate({**given, "serving": {"model_names": ("m",), **serving}})
