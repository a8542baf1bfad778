"""A release's pod as T9k's controller makes it of a runtime and a predictor."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.parts.golang import build

HERE = Path(__file__).parent
MOUNT = "/var/lib/t9k/model"
PORT = 8080
Object = dict[str, Any]


def filled(texts: Sequence[str], parameters: Mapping[str, str]) -> list[str]:
    """By Go's own text/template. ValueError with what it says."""
    given = json.dumps({"Parameters": parameters, "Texts": texts})
    ended = subprocess.run([build(HERE / "templates")], input=given, capture_output=True, text=True, check=False)
    if ended.returncode:
        raise ValueError(ended.stderr)
    return list(json.loads(ended.stdout))


def pod_template(runtime: Object, predictor: Object) -> Object:
    """The runtime's template with its texts filled, the predictor's laid over it, its
    resources and its claim. ValueError: a text cannot be filled.
    """
    made = json.loads(json.dumps(runtime["spec"]["template"]))
    made.setdefault("metadata", {})
    engine = next(one for one in made["spec"]["containers"] if one["name"] == "user-container")
    engine["args"] = filled(engine.get("args", []), predictor["model"].get("parameters", {}))
    over = predictor.get("template", {})
    for key, values in over.get("metadata", {}).items():
        made["metadata"][key] = made["metadata"].get(key, {}) | values
    for key, value in over.get("spec", {}).items():
        if key == "containers":
            for one in value:
                next(mine for mine in made["spec"]["containers"] if mine["name"] == one["name"]).update(one)
        else:
            made["spec"][key] = value
    for asked in predictor.get("containersResources", ()):
        next(mine for mine in made["spec"]["containers"] if mine["name"] == asked["name"])["resources"] = asked.get(
            "resources", {}
        )
    if claim := predictor.get("storage", {}).get("pvc"):
        made["spec"].setdefault("volumes", []).append(
            {"name": "t9k-model", "persistentVolumeClaim": {"claimName": claim["name"]}}
        )
        mount = {"name": "t9k-model", "mountPath": claim.get("mountPath", MOUNT), "subPath": claim.get("subPath", "")}
        engine.setdefault("volumeMounts", []).append(mount)
    port = (engine.get("ports") or [{"containerPort": PORT}])[0]["containerPort"]
    engine.setdefault("readinessProbe", {"tcpSocket": {"port": port}, "periodSeconds": 1})
    made["spec"].setdefault("enableServiceLinks", False)
    return dict(made)
