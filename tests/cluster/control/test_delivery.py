"""The whole way on a real control plane with played pods: claim, fetch, dark release,
gates, switch, record; again; and what heals.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from model_delivery.base import GateFailed, Permanent
from model_delivery.base.manifests import document
from model_delivery.flows.deliver import deliver
from model_delivery.flows.rollback import rollback
from model_delivery.places.opening import Location
from model_delivery.verbs.status import connection, down, logs, status
from tests.cluster.control.lab import NAME, Lab, delivering_lab, refused_then_recreated
from tests.parts.cluster import Cluster
from tests.parts.cluster.played import PlayedNode
from tests.places.test_cluster import deliverer, missing_rights


@pytest.fixture
def lab(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, node: PlayedNode) -> Iterator[Lab]:
    with delivering_lab(
        cluster, tmp_path, monkeypatch, node, **{"pod-security.kubernetes.io/enforce": "restricted"}
    ) as made:
        yield made


def test_a_model_is_delivered_again_and_rolled_back(lab: Lab) -> None:
    spec = lab.spec()
    first = deliver.fn(spec)
    assert first["result"] == "promoted"
    assert first["url"] == f"http://{NAME}.{lab.namespace}.svc:8000"
    assert lab.record.serving == first["release"]
    again = deliver.fn(spec)
    assert (again["result"], again["release"]) == ("unchanged", first["release"])
    second = deliver.fn(lab.spec())
    assert second["result"] == "promoted"
    place = lab.place
    world = place.world(NAME)
    assert [ref.name for ref in world.objects if ref.kind.name == "Deployment"] == [f"{NAME}-{second['release']}"]
    assert not [ref for ref in world.objects if ref.kind.name in ("Job", "HTTPRoute")]
    seen = status(place, NAME)
    assert (seen.state, seen.changes) == ("up", ())
    where = Location(namespace=lab.namespace)
    back = rollback.fn(NAME, first["release"], where=where)
    assert back["release"] == first["release"]
    assert down(place, NAME)
    assert not [ref for ref in place.world(NAME).objects if ref.kind.name in ("Deployment", "Service")]


def test_what_is_deleted_by_hand_comes_back_with_the_next_run(lab: Lab) -> None:
    spec = lab.spec(gates={"smoke": {"max_tokens": 16}, "throughput": None})
    release = deliver.fn(spec)["release"]
    for thing in (f"deployment/{NAME}-{release}", f"service/{NAME}-{release}", f"service/{NAME}"):
        lab.cluster.kubectl("delete", thing, "-n", lab.namespace)
        assert len(status(lab.place, NAME).changes) == 1, thing
        assert deliver.fn(spec)["result"] == "healed"
        now = status(lab.place, NAME)
        assert (now.state, now.changes) == ("up", ())
    again = deliver.fn(spec)
    assert again["result"] == "unchanged"


def test_our_own_books_come_back_too_while_the_engine_serves_on(lab: Lab) -> None:
    spec = lab.spec(gates={"smoke": {"max_tokens": 16}, "throughput": None})
    release = deliver.fn(spec)["release"]

    def engines() -> set[str]:
        return {pod["metadata"]["uid"] for pod in lab.place.world(NAME).beside["Pod"]}

    before = engines()
    for thing in (f"configmap/{NAME}-release-{release}", f"configmap/{NAME}-record"):
        lab.cluster.kubectl("delete", thing, "-n", lab.namespace)
        again = deliver.fn(spec)
        assert (again["release"], lab.record.serving, engines()) == (release, release, before), thing
        now = status(lab.place, NAME)
        assert (now.state, now.changes) == ("up", ())


def test_a_key_reaches_engine_and_tests_and_nothing_else(lab: Lab) -> None:
    lab.cluster.kubectl("create", "secret", "generic", "api", "--from-literal=key=s3cret-value", "-n", lab.namespace)
    key = {"kube": {"name": "api", "key": "key"}}
    deliver.fn(lab.spec(serving={"api_key": key}))
    kinds = "configmaps,deployments,replicasets,services,jobs,pods,leases,events"
    everything = lab.cluster.kubectl("get", kinds, "-n", lab.namespace, "-o", "yaml", "--show-managed-fields")
    assert "secretKeyRef" in everything
    assert "s3cret-value" not in everything
    assert "$(kubectl" in connection(lab.place, NAME).curl
    assert b"s3cret-value" not in b"".join(logs(lab.place, NAME))


ODD = 'it\'s "odd"\n{{ .Values }} $(HOME) $$(HOME) $HOME `x` ünï'


def test_odd_text_reaches_the_engine_as_it_is(lab: Lab) -> None:
    spec = lab.spec(
        "--label", ODD, serving={"env": {"ODD": ODD}}, gates={"smoke": {"max_tokens": 16}, "throughput": None}
    )
    release = deliver.fn(spec)["release"]
    (player,) = [
        p for p in lab.node.players.values() if p.pod["metadata"]["labels"].get("model-delivery/release") == release
    ]
    process = psutil.Process(player.children["engine"].pid)
    assert ODD in process.cmdline()
    assert process.environ()["ODD"] == ODD


def refused(lab: Lab, serves: str, **more: Any) -> str:
    """What a delivery that fails says; what served still does, alone, and nothing else is
    left.
    """
    with pytest.raises(Permanent) as failed:
        deliver.fn(lab.spec(gates={"smoke": {"max_tokens": 16}, "throughput": None}, **more))
    assert lab.record.serving == serves
    assert [ref.name for ref in lab.place.world(NAME).objects if ref.kind.name == "Deployment"] == [f"{NAME}-{serves}"]
    now = status(lab.place, NAME)
    assert (now.state, now.changes) == ("up", ())
    return failed.value.text


def test_what_can_never_start_is_told_at_once_and_the_old_release_serves_on(lab: Lab) -> None:
    serves = deliver.fn(lab.spec(gates={"smoke": {"max_tokens": 16}, "throughput": None}))["release"]
    absent = f"registry.example/absent@sha256:{'3' * 64}"
    assert f"there is no image {absent}" in refused(lab, serves, target={"image": absent})
    told = refused(lab, serves, serving={"args": ["--no-such-flag"]})
    assert "exit code 2" in told
    told = refused(lab, serves, serving={"resources": {"limits": {"memory": "1Ti"}}})
    assert "no node could ever hold the pod: memory: 1.09951e+12 wanted, the largest node has 1.71799e+10" in told
    told = refused(lab, serves, serving={"resources": {"limits": {"nvidia.com/gpu": 9}}})
    assert "9 × nvidia.com/gpu wanted, 2 of 2 free" in told
    hard = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "few", "namespace": lab.namespace}}
    lab.cluster.apply(hard | {"spec": {"hard": {"requests.nvidia.com/gpu": "1"}}})
    told = refused(lab, serves, serving={"resources": {"limits": {"nvidia.com/gpu": 2}}})
    assert "quota is used up" in told


def test_a_release_that_answers_wrong_is_withdrawn(lab: Lab) -> None:
    serves = deliver.fn(lab.spec(gates={"smoke": {"max_tokens": 16}, "throughput": None}))["release"]
    with pytest.raises(GateFailed, match="Atlantis"):
        deliver.fn(lab.spec(gates={"smoke": {"max_tokens": 16, "expect": "Atlantis"}, "throughput": None}))
    assert lab.record.serving == serves
    assert status(lab.place, NAME).changes == ()


def test_two_releases_that_need_all_gpus_are_refused_or_recreated(lab: Lab) -> None:
    gates = {"smoke": {"max_tokens": 16}, "throughput": None}

    def serves(release: str) -> None:
        assert lab.record.serving == release

    refused_then_recreated(lambda **more: lab.spec(gates=gates, **more), serves)


def test_the_verbs(lab: Lab, tmp_path: Path) -> None:
    spec = lab.spec(gates={"smoke": {"max_tokens": 16}, "throughput": None})
    file = tmp_path / "spec.yaml"
    file.write_text(yaml.safe_dump(spec.model_dump(mode="json")))

    def said(*args: str, code: int = 0) -> str:
        done = subprocess.run(
            [str(Path(sys.executable).with_name("deliver")), *args], capture_output=True, text=True, check=False
        )
        assert done.returncode == code, done.stderr
        return done.stdout

    rendered = said("render", str(file))
    lab.cluster.kubectl("apply", "--dry-run=server", "-f", "-", input=rendered)
    assert "main" in said("render", str(file), "--offline")
    planned = said("plan", str(file))
    assert "new release" in planned
    assert f"Deployment/{NAME}-" in planned
    assert not lab.place.deliveries(), "a plan touches nothing"
    said("up", str(file))
    assert "unchanged" in said("plan", str(file))
    where = ("-n", lab.namespace)
    assert f"{NAME}: up at http://{NAME}.{lab.namespace}.svc:8000" in said("status", NAME, *where)
    assert NAME in said("list", *where)
    assert "promoted" in said("history", NAME, *where)
    assert said("logs", str(file))
    assert f"http://{NAME}.{lab.namespace}.svc:8000/v1" in said("connect", str(file))
    assert f"Deployment/{NAME}-" in said("down", NAME, *where)
    assert f"{NAME}: down" in said("status", NAME, *where)
    said("status", "nothing", *where, code=2)


def test_the_shipped_role_is_all_that_a_delivery_needs(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    role = document("rbac/role.yaml", "Role")
    monkeypatch.setenv("KUBECONFIG", str(deliverer(lab.cluster, lab.namespace, role, "deliverer")))
    gates = {"smoke": {"max_tokens": 16}, "throughput": None}
    spec = lab.spec(gates=gates)
    while missing_rights(spec, lab.place):  # the authorizer follows its watch
        time.sleep(0.1)
    done = deliver.fn(spec)
    assert done["result"] == "promoted"
    again = deliver.fn(lab.spec(gates=gates, serving={"resources": {"limits": {"nvidia.com/gpu": 2}}}))
    assert again["result"] == "promoted", "nodes are unknown: nothing is refused for their sake"
    assert down(lab.place, NAME)


def test_an_api_server_that_dies_in_the_middle_of_a_delivery_is_waited_for(lab: Lab) -> None:
    spec = lab.spec("--start-delay", "5", gates={"smoke": {"max_tokens": 16}, "throughput": None})
    with ThreadPoolExecutor(1) as pool:
        run = pool.submit(copy_context().run, deliver.fn, spec)
        while not [
            p
            for p in lab.node.players.values()
            if "engine" in p.children and p.pod["metadata"]["namespace"] == lab.namespace
        ]:
            assert not run.done(), run.result()
            time.sleep(0.1)
        lab.cluster.programs.stop("kube-apiserver", grace=0)
        lab.cluster.start_apiserver()
        assert run.result()["result"] == "promoted"
    assert status(lab.place, NAME).changes == ()
