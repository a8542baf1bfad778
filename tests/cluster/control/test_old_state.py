"""What an older version left in a cluster, put back: an ``up`` of the same spec rolls
nothing, a rollback goes to its releases, a delivery that was killed is finished.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

from model_delivery.flows.deliver import deliver
from model_delivery.flows.rollback import rollback
from model_delivery.places.guarded import observed
from model_delivery.places.opening import Location
from model_delivery.run import protocol
from model_delivery.run.session import Session
from model_delivery.spec import DeliverySpec, load_spec
from model_delivery.values import Ref, Stage, Strategy
from tests.cluster.control.lab import NAME, RUNNER, Lab
from tests.compatibility import restore
from tests.compatibility.asking import known, says
from tests.parts.cluster import Cluster
from tests.parts.cluster.played import PlayedNode
from tests.parts.cluster.provisioner import folder_of
from tests.parts.cluster.waiting import until
from tests.parts.hubs.huggingface import running_hub
from tests.parts.tiny_model import tiny_model

WRITTEN = (
    "apis/serving.kserve.io/v1beta1/{}/inferenceservices", "apis/serving.kserve.io/v1alpha1/{}/servingruntimes",
    "apis/tensorstack.dev/v1beta1/{}/mlservices", "apis/tensorstack.dev/v1beta1/{}/mlserviceruntimes",
    "apis/gateway.networking.k8s.io/v1/{}/httproutes", "apis/apps/v1/{}/deployments", "api/v1/{}/services",
)  # fmt: skip
GATEWAYS, JOBS = "apis/gateway.networking.k8s.io/v1/{}/gateways", "apis/batch/v1/{}/jobs"
LEASES, MAPS = "apis/coordination.k8s.io/v1/{}/leases", "api/v1/{}/configmaps"
PODS, CLAIMS = "api/v1/{}/pods", "api/v1/{}/persistentvolumeclaims"
TARGETS = ("deployment", "t9k", "kserve")


@dataclass
class Case:
    lab: Lab
    facts: dict[str, Any]
    spec: DeliverySpec
    file: Path

    def says(self, verb: str, *words: str) -> Any:
        return says(verb, *words, "-n", self.lab.namespace)

    def live(self, *paths: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        for path in paths:
            answer = self.lab.cluster.client.get(self._at(path))
            found += answer.json()["items"] if answer.is_success else []
        return found

    def there(self) -> dict[tuple[str, str], Any]:
        """What would show that something was rolled or edited: of every object that was
        written its generation, content and managers, and every engine's pod.
        """
        pods = [pod for pod in self.live(PODS) if pod["metadata"]["labels"].get("model-delivery/role") != "step"]
        shown = {("Pod", pod["metadata"]["name"]): pod["metadata"]["uid"] for pod in pods}
        for path in WRITTEN:
            shown |= {(path, found["metadata"]["name"]): _written(found) for found in self.live(path)}
        return shown

    def clear(self) -> None:
        """All but the claims, which the next case of the namespace finds full."""
        for path in (*WRITTEN, GATEWAYS, JOBS, LEASES, PODS):
            self.lab.cluster.client.request(
                "DELETE", self._at(path), json={"gracePeriodSeconds": 1, "propagationPolicy": "Background"}
            )
        self.lab.cluster.client.delete(self._at(MAPS), params={"labelSelector": "model-delivery/delivery"})

    def cleared(self) -> bool:
        """Whether nothing is left of an earlier case."""
        return not self.live(*WRITTEN, GATEWAYS, JOBS, PODS)

    def _at(self, path: str) -> str:
        return "/" + path.format(f"namespaces/{self.lab.namespace}")


def _written(found: dict[str, Any]) -> Any:
    meta = found["metadata"]
    held = [(field["manager"], field["fieldsV1"]) for field in meta["managedFields"] if not field.get("subresource")]
    return meta["uid"], meta.get("generation"), found["spec"], meta.get("labels"), held


@pytest.fixture
def case(
    request: pytest.FixtureRequest, cluster: Cluster, node: PlayedNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Case]:
    title: str = request.param
    facts = restore.said(f"cluster/{title}/facts.json")
    for part in ("t9k", "kserve", "gateway"):
        if title.startswith(part):
            request.getfixturevalue(part)
    namespace, model = facts["fixed"]["namespace"], tiny_model(tmp_path / "model")
    file = tmp_path / "spec.yaml"
    file.write_bytes(restore.kept()[f"cluster/{title}/spec.yaml"])
    with running_hub(model) as hub:
        for name in ("HTTPS_PROXY", "HTTP_PROXY", "https_proxy", "http_proxy"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("KUBECONFIG", str(cluster.kubeconfig))
        monkeypatch.setenv("MODEL_DELIVERY_HOME", str(tmp_path / "home"))
        made = Case(Lab(cluster, node, namespace, hub, kind=facts["target"]), facts, load_spec(file), file)
        with suppress(RuntimeError):
            cluster.kubectl("create", "namespace", namespace)
        account = f"/api/v1/namespaces/{namespace}/serviceaccounts/default"
        until(lambda: cluster.client.get(account).is_success, 60, "no service account")
        until(made.cleared, 60, "an earlier case's objects do not go")
        step = "smoke" if title.endswith("smoke") else None
        old_image(tmp_path / "old", monkeypatch)
        restore.cluster(cluster, title, lambda: fill(made), step)
        wanted = {row["release"] for row in facts["live"]["status"]["running"]}
        until(lambda: up(made) == wanted, 60, lambda: str(made.says("status", NAME)))
        yield made
        made.clear()


def old_image(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Played pods find the module that the old code's Jobs call, as in its image."""
    module = folder / "delivery" / "steps" / "run.py"
    module.parent.mkdir(parents=True)
    module.write_text("import runpy\nrunpy.run_module('model_delivery.steps.run', run_name='__main__')\n")
    monkeypatch.setenv("PYTHONPATH", f"{folder}:{os.environ.get('PYTHONPATH', '')}")


def up(case: Case) -> set[str]:
    return {row["release"] for row in case.says("status", NAME)["running"] if row["state"] == "up"}


def fill(case: Case) -> None:
    """The claims get the weights, whatever folder their releases have them in."""
    cluster, namespace = case.lab.cluster, case.lab.namespace
    claims = [found for found in case.live(CLAIMS) if found["status"].get("phase") != "Bound"]
    for claim in claims:
        name = claim["metadata"]["name"]
        container = {
            "name": "fill", "image": RUNNER, "command": ["true"], "volumeMounts": [{"name": "models", "mountPath": "/data"}],
        }  # fmt: skip
        volume = {"name": "models", "persistentVolumeClaim": {"claimName": name}}
        spec = {"containers": [container], "volumes": [volume], "restartPolicy": "Never"}
        meta = {"name": f"fill-{name}", "namespace": namespace}
        cluster.apply({"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": spec})
        until(
            lambda: all(found["status"]["phase"] == "Bound" for found in case.live(CLAIMS)), 60, "a claim is not bound"
        )
        cluster.kubectl("delete", "pod", f"fill-{name}", "-n", namespace, "--grace-period=1")
        (bound,) = [found for found in case.live(CLAIMS) if found["metadata"]["name"] == name]
        root = folder_of(json.loads(cluster.kubectl("get", "pv", bound["spec"]["volumeName"], "-o", "json")))
        for folder in ("clones/tiny", f"models/huggingface/org--model/{case.lab.hub.commit}"):
            tiny_model(root / folder)


def says_the_same(case: Case) -> None:
    then = case.facts["live"]
    for verb in ("status", "history", "connect"):
        assert known(case.says(verb, NAME), then[verb]) == then[verb], verb
    assert known(case.says("list"), then["list"]) == then["list"]


def history(rows: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return [(row["release"], row["outcome"]) for row in rows]


def cases(*states: str) -> pytest.MarkDecorator:
    """Targets within states: what one left ends while others run."""
    return pytest.mark.parametrize("case", [f"{kind}-{state}" for state in states for kind in TARGETS], indirect=True)


@cases("up", "adopted", "second", "adopted-second")
def test_an_up_of_what_is_up_rolls_nothing_and_a_rollback_goes_back(case: Case) -> None:
    says_the_same(case)
    planned, then, old = says("plan", str(case.file)), case.facts["live"], case.facts["releases"]
    assert known(planned, then["plan"]["spec.yaml"]) == then["plan"]["spec.yaml"]
    assert (planned["result"], planned["changes"], planned["stages"]) == ("unchanged", [], [])
    before = case.there()
    done = deliver.fn(case.spec)
    assert (done["result"], done["release"]) == ("unchanged", old["serving"])
    assert case.there() == before
    assert history(case.says("history", NAME)) == history(then["history"])
    if old["previous"] is None:
        return

    back = rollback.fn(NAME, where=Location(namespace=case.lab.namespace))
    assert (back["result"], back["release"]) == ("rolled back to", old["previous"])
    gone, came = (old["serving"], "rolled back from"), (old["previous"], "rolled back to")
    assert history(case.says("history", NAME)) == [*history(then["history"]), gone, came]
    settled(case, serving=old["previous"], previous=old["serving"])


@cases("rolled-back")
def test_a_scheduled_run_is_held_by_a_rollback_of_the_old_code(case: Case) -> None:
    says_the_same(case)
    before = case.there()
    done = deliver.fn(case.spec, scheduled=True)
    assert (done["result"], done["release"]) == ("held", case.facts["releases"]["serving"])
    assert case.there() == before
    status = case.facts["live"]["status"]
    assert known(case.says("status", NAME), status) == status


KILLED = [
    *(f"{kind}-killed-dark" for kind in TARGETS),
    "gateway-killed-canary",
    "t9k-killed-canary",
]


@pytest.mark.parametrize("case", KILLED, indirect=True)
def test_a_delivery_that_was_killed_under_the_old_code_is_finished(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    says_the_same(case)
    planned, old = says("plan", str(case.file)), case.facts["releases"]
    assert (planned["result"], planned["release"]) == ("goes on", old["candidate"])
    assert planned["stages"] == case.says("status", NAME)["stages"]
    passed: list[str] = []
    entered = protocol.enter

    def enter(session: Session, stage: Stage, strategy: Strategy) -> None:
        passed.append(str(stage.phase))
        entered(session, stage, strategy)

    monkeypatch.setattr(protocol, "enter", enter)
    done = deliver.fn(case.spec)
    assert (done["result"], done["release"]) == ("promoted", old["candidate"])
    assert passed == planned["stages"]
    assert passed[0] == old["phase"], "it goes on where it was"
    ended = [*history(case.facts["live"]["history"]), (old["candidate"], "promoted")]
    assert history(case.says("history", NAME)) == ended
    settled(case, serving=old["candidate"], previous=old["serving"])
    assert says("plan", str(case.file))["result"] == "unchanged"


@pytest.mark.parametrize("case", ["deployment-killed-smoke"], indirect=True)
def test_a_step_that_the_old_code_started_is_followed_to_its_end(case: Case) -> None:
    (job,) = case.live(JOBS)
    seen: set[str] = set()

    def observer(when: Literal["before", "after"], verb: str, ref: Ref) -> None:
        seen.update(found["metadata"]["uid"] for found in case.live(JOBS))

    with observed(observer):
        done = deliver.fn(case.spec)
    assert (done["result"], done["release"]) == ("promoted", case.facts["releases"]["candidate"])
    assert seen == {job["metadata"]["uid"]}


def settled(case: Case, *, serving: str, previous: str) -> None:
    """It serves alone, and nothing is left to change."""
    status = case.says("status", NAME)
    now = {name: status[name] for name in ("state", "serving", "previous", "candidate", "stages", "changes")}
    assert now == {
        "state": "up",
        "serving": serving,
        "previous": previous,
        "candidate": None,
        "stages": [],
        "changes": [],
    }
    assert [(row["release"], row["share"]) for row in status["running"]] == [(serving, 100)]
