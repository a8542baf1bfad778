"""Old commits on a claim go by `deliver gc --namespace`; what any release of the
namespace needs stays.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest
from click.testing import CliRunner, Result

from model_delivery.cli.main import deliver as command
from model_delivery.flows.deliver import deliver
from model_delivery.places.guarded import observed
from model_delivery.values import Ref
from tests.cluster.control.lab import NAME, Lab, delivering_lab
from tests.parts.cluster import Cluster
from tests.parts.cluster.played import PlayedNode
from tests.parts.cluster.provisioner import folder_of

SMOKE_ONLY = {"smoke": {"max_tokens": 16}, "throughput": None}
OLD, ANOTHERS = "a" * 40, "b" * 40


@pytest.fixture
def lab(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, node: PlayedNode) -> Iterator[Lab]:
    with delivering_lab(cluster, tmp_path, monkeypatch, node) as made:
        yield made


def store(lab: Lab) -> Path:
    """Where the claim's commits are."""
    kubectl = lab.cluster.kubectl
    claim = json.loads(kubectl("get", "pvc", f"{NAME}-models", "-n", lab.namespace, "-o", "json"))
    volume = json.loads(kubectl("get", "pv", claim["spec"]["volumeName"], "-o", "json"))
    return folder_of(volume) / "models/huggingface/org--model"


def fetched_before(there: Path, commit: str, now: str) -> None:
    shutil.copytree(there / now, there / commit)
    for mark in there.glob(f".{now}.*.user"):
        shutil.copy(mark, there / mark.name.replace(now, commit))


def needed_by_another(lab: Lab, commit: str) -> None:
    """A release of a delivery whose record is gone."""
    path = f"/api/v1/namespaces/{lab.namespace}/configmaps"
    (release,) = lab.cluster.listed(path, labelSelector="model-delivery/kind=Release")
    text = json.dumps(release).replace(lab.hub.commit, commit)
    other = json.loads(text)
    labels = other["metadata"]["labels"] | {"model-delivery/delivery": "other"}
    other["metadata"] = {"name": "other-release-r1", "namespace": lab.namespace, "labels": labels}
    lab.cluster.client.post(path, json=other).raise_for_status()


def gc(lab: Lab, *more: str) -> Result:
    return CliRunner().invoke(command, ["gc", "-n", lab.namespace, *more])


def test_old_commits_on_a_claim_go_and_what_a_release_needs_stays(lab: Lab) -> None:
    deliver.fn(lab.spec(gates=SMOKE_ONLY))
    there, now = store(lab), lab.hub.commit
    for commit in (OLD, ANOTHERS):
        fetched_before(there, commit, now)
    needed_by_another(lab, ANOTHERS)

    shown = gc(lab, "--dry-run", "--json")
    (item,) = json.loads(shown.stdout)
    assert item["path"] == f"{NAME}-models:models/huggingface/org--model/{OLD}"
    assert (there / OLD).is_dir(), "a dry run removes nothing"

    said = gc(lab)
    assert "removed" in said.stdout, said.output
    assert {path.name for path in there.iterdir() if path.is_dir()} == {now, ANOTHERS}
    assert gc(lab).stdout.splitlines()[-1] == "nothing to remove"
    assert not [job for job in lab.cluster.listed(f"/apis/batch/v1/namespaces/{lab.namespace}/jobs") if "-gc-" in job]
    assert deliver.fn(lab.spec(gates=SMOKE_ONLY))["result"] == "promoted"


def test_nothing_is_collected_while_a_first_run_in_the_namespace_fetches(lab: Lab) -> None:
    said: list[Result] = []

    def observer(when: Literal["before", "after"], verb: str, ref: Ref) -> None:
        if (when, verb, ref.kind.name) == ("after", "put", "Job") and not said:
            said.append(gc(lab))

    with observed(observer):
        assert deliver.fn(lab.spec(gates=SMOKE_ONLY))["result"] == "promoted"
    assert f"another run is delivering {NAME}" in str(said[0].exception)
