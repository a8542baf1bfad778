"""What befalls a delivery in a cluster from outside (FAULTS 2, 3, 6, 9), and what its
user is told. Each converges, or says cause and next step.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from pathlib import Path
from typing import Any, Literal

import pytest

from model_delivery.base import Permanent, Refused, SystemClock
from model_delivery.flows.deliver import deliver
from model_delivery.places.cluster.place import Cluster as Place
from model_delivery.places.guarded import observed
from model_delivery.run.lease import Lease
from model_delivery.spec import DeliverySpec
from model_delivery.values import ABSENT, RECORD_REF, Ref, Resource
from model_delivery.verbs.status import status
from tests.cluster.control.lab import NAME, Lab, delivering_lab
from tests.parts.cluster import Cluster
from tests.parts.cluster.faulty_api import Fault, FaultyApi, faulty_api
from tests.parts.cluster.played import PlayedNode
from tests.parts.cluster.waiting import until
from tests.places.conftest import config

SMOKE_ONLY = {"smoke": {"max_tokens": 16}, "throughput": None}


@pytest.fixture
def lab(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, node: PlayedNode) -> Iterator[Lab]:
    with delivering_lab(cluster, tmp_path, monkeypatch, node) as made:
        yield made


@pytest.fixture
def api(cluster: Cluster, namespace: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyApi]:
    with faulty_api(cluster) as made:
        monkeypatch.setenv("KUBECONFIG", str(made.kubeconfig))
        yield made


def test_a_busy_api_server_is_asked_again_as_late_as_it_wants(api: FaultyApi, namespace: str) -> None:
    place, path = Place(None, namespace), f"{namespace}/configmaps/m-r1"
    api.faults += [
        Fault("GET", path, 503),
        Fault("GET", path, 429, retry_after=1),
        Fault("PATCH", path, 429),
        Fault("PATCH", path, 500),
    ]
    assert place.put(config("r1", 1)).action == "created"
    asked = list(place.client.asked)
    assert (len(api.met), len(asked)) == (4, 6)
    assert asked[2] - asked[1] >= 1, "Retry-After"


@pytest.mark.parametrize("status", [500, 504])
def test_what_was_carried_out_and_then_refused_is_done_once(api: FaultyApi, namespace: str, status: int) -> None:
    place = Place(None, namespace)
    api.faults.append(Fault("POST", "/configmaps", status, after=True))
    made = place.put(Resource(RECORD_REF, "record", NAME, {"a": 1}), expect=ABSENT)
    api.faults.append(Fault("PUT", "-record", status, after=True))
    again = place.put(Resource(RECORD_REF, "record", NAME, {"a": 2}), expect=made.version or "")
    seen = place.get(NAME, RECORD_REF)
    assert (len(api.met), seen and seen.version, seen and seen.resource.spec) == (2, again.version, {"a": 2})


def pod(namespace: str) -> dict[str, Any]:
    meta = {"name": "p", "namespace": namespace, "labels": {"model-delivery/delivery": NAME}}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": meta,
        "spec": {"containers": [{"name": "engine", "image": "x"}]},
    }


@pytest.mark.parametrize("kind", ["gone", "stalled", "cut"])
def test_a_watch_that_fails_is_only_a_hint_that_did_not_come(
    api: FaultyApi, cluster: Cluster, namespace: str, kind: str
) -> None:
    cluster.apply(pod(namespace))
    place, held = Place(None, namespace), threading.Event()
    place.world(NAME)
    faults = {
        "gone": Fault("GET", "watch=1", 410),
        "stalled": Fault("GET", "watch=1", held=held),
        "cut": Fault("GET", "watch=1", cut=10),
    }
    api.faults.append(faults[kind])
    cluster.client.delete(f"/api/v1/namespaces/{namespace}/pods/p", params={"gracePeriodSeconds": 0})
    with ThreadPoolExecutor(1) as pool:
        pool.submit(place.hint, NAME, 2.0).result(timeout=30)
    held.set()
    assert api.met
    assert not place.world(NAME).beside["Pod"], "the list tells"


def test_a_log_that_breaks_in_the_middle_of_a_result_is_read_on(
    lab: Lab, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    with faulty_api(cluster) as api:
        monkeypatch.setenv("KUBECONFIG", str(api.kubeconfig))
        api.faults += [Fault("GET", "/log?container=step", cut=size) for size in (150, 400, 900)]
        assert deliver.fn(lab.spec(gates=SMOKE_ONLY))["result"] == "promoted"
        assert len(api.met) == 3


def token_file(cluster: Cluster, namespace: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The kubeconfig's command reads its token from this file; the account may do
    anything.
    """
    cluster.kubectl(
        "create",
        "rolebinding",
        "all",
        "--clusterrole=cluster-admin",
        f"--serviceaccount={namespace}:default",
        "-n",
        namespace,
    )
    token = folder / "token"
    credential = {"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential"}
    script = f'printf \'{json.dumps(credential)[:-1]}, "status": {{"token": "%s"}}}}\' "$(cat {token})"'
    said = json.loads(cluster.kubeconfig.read_text())
    command = {
        "apiVersion": credential["apiVersion"],
        "command": "sh",
        "args": ["-c", script],
        "interactiveMode": "Never",
    }
    said["users"] = [{"name": "admin", "user": {"exec": command}}]
    file = folder / "exec.kubeconfig"
    file.write_text(json.dumps(said))
    monkeypatch.setenv("KUBECONFIG", str(file))
    return token


def starts(lab: Lab) -> bool:
    return any(
        "engine" in one.children
        for one in lab.node.players.values()
        if one.pod["metadata"]["namespace"] == lab.namespace
    )


def test_a_token_that_ends_in_the_middle_of_a_wait_is_fetched_anew_or_told(
    lab: Lab, cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = token_file(cluster, lab.namespace, tmp_path, monkeypatch)
    lasting = cluster.token(lab.namespace, "default", 600)

    def run(spec: DeliverySpec, seconds: float, then: str) -> Any:
        """With a token of ``seconds``, while the engine needs longer to start; ``then``
        is the next one that the command gives.
        """
        short = cluster.token(lab.namespace, "default", seconds)
        token.write_text(short)
        with ThreadPoolExecutor(1) as pool:
            going = pool.submit(copy_context().run, deliver.fn, spec)
            until(lambda: starts(lab) or going.done(), 60, "no engine starts")
            token.write_text(then or short)
            return going.result()

    slow = lab.spec("--start-delay", "45000", gates=SMOKE_ONLY, serving={"startup_timeout": "120s"})
    with pytest.raises(Permanent, match=r"(?s)the API server at .* does not know us.*have expired.*run again"):
        run(slow, 25, "")
    monkeypatch.setenv("KUBECONFIG", str(cluster.kubeconfig))
    assert lab.record.candidate is not None, "who may not ask cannot withdraw: the next run goes on"
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "exec.kubeconfig"))
    assert run(slow, 600, lasting)["result"] == "promoted"


def test_another_manager_of_the_route_is_named_and_taken_from_only_when_asked(lab: Lab, cluster: Cluster) -> None:
    spec = lab.spec(gates=SMOKE_ONLY)
    deliver.fn(spec)
    theirs = {"selector": {"model-delivery/object": "theirs"}, "ports": [{"port": 8000, "protocol": "TCP"}]}
    manifest = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": NAME, "namespace": lab.namespace},
        "spec": theirs,
    }
    cluster.kubectl(
        "apply",
        "--server-side",
        "--force-conflicts",
        "--field-manager",
        "somebody",
        "-f",
        "-",
        input=json.dumps(manifest),
    )
    with pytest.raises(Permanent, match=r'(?s)another field manager.*selector.* is held by "somebody".*--take-over'):
        deliver.fn(spec)
    assert deliver.fn(spec, take_over=True)["result"] == "healed"
    assert status(lab.place, NAME).changes == ()


def test_a_run_that_holds_the_lease_is_named(lab: Lab) -> None:
    other = Lease(lab.place, NAME, "another-request", SystemClock())
    other.acquire("refuse")
    with pytest.raises(
        Refused, match=r"(?s)another run is delivering small.*request another-request, until 20"
    ) as held:
        deliver.fn(lab.spec(gates=SMOKE_ONLY, concurrency="refuse"))
    assert held.value.exit_code == 3
    other.release()


def test_a_record_that_another_changed_stops_the_run_and_the_next_one_goes_on(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    def meddle(when: Literal["before", "after"], verb: str, ref: Ref) -> None:
        if (when, verb, ref.kind.name) == ("before", "put", "Deployment"):
            lab.cluster.kubectl(
                "annotate", "configmap", f"{NAME}-record", f"seen={time.time()}", "--overwrite", "-n", lab.namespace
            )

    spec = lab.spec(gates=SMOKE_ONLY)
    changed = r"(?s)the record of small was changed by another run.*run again"
    with observed(meddle), pytest.raises(Permanent, match=changed):
        deliver.fn(spec)
    assert deliver.fn(spec)["result"] == "promoted"
    assert status(lab.place, NAME).changes == ()
