"""What the engine is run with: an MLServiceRuntime."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from model_delivery.base import Finding, Object, Refused, manifest
from model_delivery.targets.kubernetes.release import (
    CONFIG,
    MARGIN_SECONDS,
    READY_TIMEOUT,
    environment,
    furnish,
    limits_of,
    literal,
    mount_config,
    startup_seconds,
    verbatim,
)
from model_delivery.targets.protocol import Asked
from model_delivery.values import Lock

FILE = "t9k.yaml"
DEADLINE = "serving.knative.dev/progress-deadline"


def runtime_of(asked: Asked, lock: Lock, config: str | None) -> Object:
    serving, made = asked.serving, manifest(FILE, "MLServiceRuntime")
    template = made["spec"]["template"]
    pod, (engine,) = template["spec"], template["spec"]["containers"]
    engine["image"] = lock.image
    if len(serving.model_names) > 1:
        engine["args"] = [engine["args"][0], "--served-model-name", "{{.MODEL_NAME}}", *serving.model_names[1:]]
    engine["args"] += [f"--chat-template={CONFIG}/chat_template.jinja"] if config else []
    engine["args"] += [verbatim(literal(word)) for word in serving.args]
    env, seconds = environment(serving), startup_seconds(serving, lock)
    if serving.startup_timeout is not None:
        env = [{"name": READY_TIMEOUT, "value": str(seconds)}, *env]
    engine |= {"env": env} if env else {}
    limits = limits_of(serving)
    engine["resources"] = {"limits": limits} if limits else {}
    if config is not None:
        mount_config(pod, engine, config)
    furnish(pod, engine, serving, "dshm")
    template["metadata"]["annotations"] = {DEADLINE: f"{seconds + MARGIN_SECONDS}s"} | serving.pod.annotations
    _no_template({"serving.env": env, "serving.pod": serving.pod.model_dump(mode="json")})
    return made


def _no_template(fields: Mapping[str, Any]) -> None:
    why = (
        "T9k fills Go templates in a runtime's arguments; whether it does so here is not documented, "
        "so {{ can be neither kept nor escaped"
    )
    fix = "leave it out, or put it into serving.args"
    if held := [field for field, value in fields.items() if "{{" in str(value)]:
        raise Refused(*(Finding("t9k.template", f"{field} holds {{{{", why, fix) for field in held))
