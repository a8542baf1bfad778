"""What is taken away in the middle of a run, or is hollow before it, is put again or told
by its name, at once and once.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import pytest

from model_delivery.base import Finding, Interrupted, Permanent, Refused, Trouble
from model_delivery.flows.deliver import deliver
from model_delivery.places.guarded import observed
from model_delivery.values import Ref
from model_delivery.verbs.status import connection, logs
from tests.cluster.control.lab import NAME, Lab, delivering_lab
from tests.parts.cluster import Cluster
from tests.parts.cluster.played import PlayedNode
from tests.parts.cluster.waiting import until

SMOKE_ONLY = {"smoke": {"max_tokens": 16}, "throughput": None}
Observer = Callable[[Literal["before", "after"], str, Ref], None]


@pytest.fixture
def lab(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, node: PlayedNode) -> Iterator[Lab]:
    with delivering_lab(cluster, tmp_path, monkeypatch, node) as made:
        yield made


def once(kind: str, act: Callable[[Ref], None]) -> Observer:
    """``act`` after the first put of a ``kind``."""
    seen: list[Ref] = []

    def observer(when: Literal["before", "after"], verb: str, ref: Ref) -> None:
        if (when, verb, ref.kind.name, seen) == ("after", "put", kind, []):
            seen.append(ref)
            act(ref)

    return observer


@pytest.mark.parametrize("kind", ["Deployment", "Service"])
def test_what_somebody_deletes_while_it_is_waited_for_is_put_again(lab: Lab, kind: str) -> None:
    def gone(ref: Ref) -> None:
        lab.cluster.kubectl("delete", kind, ref.name, "-n", lab.namespace)

    with observed(once(kind, gone)):
        done = deliver.fn(lab.spec(gates=SMOKE_ONLY))
    assert done["result"] == "promoted"
    said = connection(lab.place, NAME)
    assert said.port_forward == f"kubectl -n {lab.namespace} port-forward service/{NAME} 8000:8000"


def test_a_namespace_that_is_deleted_meanwhile_is_told_by_name_at_once_and_once(lab: Lab) -> None:
    def gone(ref: Ref) -> None:
        lab.cluster.kubectl("delete", "namespace", lab.namespace, "--wait=false")
        lease = f"/apis/coordination.k8s.io/v1/namespaces/{lab.namespace}/leases/{NAME}"
        until(lambda: lab.cluster.client.get(lease).status_code == 404, 60, "the lease does not go")

    began = time.monotonic()
    with observed(once("Deployment", gone)), pytest.raises(Trouble) as told:
        deliver.fn(lab.spec(gates=SMOKE_ONLY))
    assert time.monotonic() - began < 60
    assert [finding.code for finding in told.value.findings] == ["cluster.namespace-ending"]
    assert lab.namespace in str(told.value)


def test_a_lease_that_was_lost_is_told_once(lab: Lab) -> None:
    def gone(ref: Ref) -> None:
        lab.cluster.kubectl("delete", "lease", NAME, "-n", lab.namespace)

    with observed(once("Deployment", gone)), pytest.raises(Permanent, match="now held by nobody") as told:
        deliver.fn(lab.spec(gates=SMOKE_ONLY))
    assert [finding.code for finding in told.value.findings] == ["lease.lost"]


def test_a_log_of_nothing_is_told(lab: Lab) -> None:
    def stop(when: Literal["before", "after"], verb: str, ref: Ref) -> None:
        if ref.kind.name == "Deployment":
            raise Interrupted(Finding("todo", "enough"))

    with observed(stop), pytest.raises(Interrupted):
        deliver.fn(lab.spec(gates=SMOKE_ONLY))
    with pytest.raises(Permanent, match=rf"there is no log of {NAME}"):
        logs(lab.place, NAME)


@pytest.mark.parametrize("content", ["", "e30=", "gAAA"])
def test_a_pull_secret_that_holds_nothing_is_refused_by_name(lab: Lab, cluster: Cluster, content: str) -> None:
    meta = {"name": "pull", "namespace": lab.namespace}
    cluster.apply({"apiVersion": "v1", "kind": "Secret", "metadata": meta, "data": {".dockerconfigjson": content}})
    with pytest.raises(Refused, match="the pull secret pull holds no logins"):
        deliver.fn(lab.spec(gates=SMOKE_ONLY, serving={"pod": {"image_pull_secrets": ["pull"]}}))


@pytest.mark.parametrize("content", ["", "gIGC"])
def test_a_secret_that_holds_no_text_is_refused_by_name(lab: Lab, cluster: Cluster, content: str) -> None:
    meta = {"name": "key", "namespace": lab.namespace}
    cluster.apply({"apiVersion": "v1", "kind": "Secret", "metadata": meta, "data": {"k": content}})
    with pytest.raises(Refused, match="key k of the Secret key in namespace") as told:
        deliver.fn(lab.spec(gates=SMOKE_ONLY, serving={"api_key": {"kube": {"name": "key", "key": "k"}}}))
    assert "serving.api_key" in json.dumps([finding.to_json() for finding in told.value.findings])
