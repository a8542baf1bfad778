"""What others put into an object of ours, on each target: told by name, left where it is,
and removed when that is asked for.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml
from click.testing import CliRunner

from model_delivery.cli.main import deliver as cli
from model_delivery.flows.deliver import deliver
from tests.cluster.control.lab import NAME, RUNNER, Lab

SIDE = {"name": "side", "image": RUNNER, "command": ["sleep", "3000"]}
THEIRS: dict[str, Any] = {
    "deployment": {
        "spec": {
            "template": {
                "spec": {
                    "tolerations": [{"operator": "Exists"}],
                    "containers": [{"name": "engine", "env": [{"name": "DEBUG", "value": "s3cret"}]}, SIDE],
                }
            }
        }
    },
    "kserve": {"spec": {"predictor": {"nodeSelector": {"kubernetes.io/os": "linux"}}}},
    "t9k": {"spec": {"scheduler": {"t9kScheduler": {"queue": "theirs"}}}},
}
TOLD = {
    "deployment": ("spec.template.spec.containers[engine].env[DEBUG]", "containers[side]", "spec.template.spec.tolerations"),
    "kserve": ("spec.predictor.nodeSelector",),
    "t9k": ("spec.scheduler",),
}  # fmt: skip
MAIN = {"deployment": "deployment/{}-{}", "kserve": "isvc/{}-{}", "t9k": "mls/{}"}


def test_what_others_added_is_told_and_stays_until_it_is_taken_away(lab: Lab, tmp_path: Path) -> None:
    wanted = lab.spec(gates={"smoke": {"max_tokens": 16}, "throughput": None})
    file = tmp_path / "spec.yaml"
    file.write_text(yaml.safe_dump(wanted.model_dump(mode="json")))
    main_object = MAIN[lab.kind].format(NAME, deliver.fn(wanted)["release"])

    def said(*words: str) -> str:
        done = CliRunner().invoke(cli, list(words))
        assert done.exit_code == 0, done.output
        return done.output

    def live() -> Any:
        return json.loads(lab.cluster.kubectl("get", main_object, "-n", lab.namespace, "-o", "json"))["spec"]

    assert "no changes" in said("plan", str(file))
    ours = live()
    kind = "strategic" if lab.kind == "deployment" else "merge"
    patch = ("--type", kind, "-p", json.dumps(THEIRS[lab.kind]), "--field-manager", "kubectl-edit")
    lab.cluster.kubectl("patch", main_object, "-n", lab.namespace, *patch)
    theirs = live()
    assert theirs != ours
    for told in (said("plan", str(file)), said("status", NAME, "-n", lab.namespace), said("up", str(file))):
        assert "kubectl-edit added" in told
        assert "`deliver up --take-over` removes it" in told
        assert all(path in told for path in TOLD[lab.kind])
        assert "no changes" not in told
        assert "s3cret" not in told
    assert live() == theirs
    assert f"{NAME}: healed" in said("up", str(file), "--take-over")
    assert live() == ours
    assert "no changes" in said("plan", str(file))
    assert f"{NAME}: unchanged" in said("up", str(file))
