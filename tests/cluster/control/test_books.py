"""A delivery whose books somebody deleted: what serves is never touched for it, and every
verb says the same.
"""

from __future__ import annotations

import json
import shlex
from typing import Any

import pytest

from model_delivery.base import Permanent, Refused
from model_delivery.flows.deliver import deliver
from model_delivery.run import record as records
from model_delivery.spec import DeliverySpec
from model_delivery.verbs.plan import plan
from model_delivery.verbs.status import down, status
from tests.cluster.control.lab import NAME, Lab

SMOKE_ONLY = {"smoke": {"max_tokens": 16}, "throughput": None}
BOOKS = ("record", "release")


def lose(lab: Lab, *kinds: str) -> None:
    for kind in kinds:
        selector = f"--selector=model-delivery/kind={kind.capitalize()}"
        lab.cluster.kubectl("delete", "configmap", selector, "-n", lab.namespace)


def pods(lab: Lab) -> set[str]:
    selector = {"labelSelector": f"model-delivery/delivery={NAME},model-delivery/role=release"}
    found = lab.cluster.listed(f"/api/v1/namespaces/{lab.namespace}/pods", **selector)
    return {pod["metadata"]["uid"] for pod in found if "deletionTimestamp" not in pod["metadata"]}


def served(lab: Lab) -> tuple[DeliverySpec, str, set[str]]:
    spec = lab.spec(gates=SMOKE_ONLY)
    release: str = deliver.fn(spec)["release"]
    return spec, release, pods(lab)


@pytest.mark.parametrize("lost", [("record",), BOOKS], ids="+".join)
def test_every_verb_knows_what_serves_though_its_books_are_gone(lab: Lab, lost: tuple[str, ...]) -> None:
    spec, release, running = served(lab)
    lose(lab, *lost)
    assert lab.place.deliveries() == (NAME,)
    now = status(lab.place, NAME)
    assert (now.state, now.serving, now.changes) == ("up", release, ())
    planned = plan(lab.place, spec)
    assert (planned.result, planned.release, planned.changes) == ("unchanged", release, ())
    done = deliver.fn(spec)
    assert (done["result"], done["release"], pods(lab)) == ("unchanged", release, running)
    assert lab.record.serving == release


@pytest.mark.parametrize("lost", [("release",), BOOKS], ids="+".join)
def test_a_changed_spec_is_delivered_beside_what_serves_without_books(lab: Lab, lost: tuple[str, ...]) -> None:
    _, release, _ = served(lab)
    lose(lab, *lost)
    changed = lab.spec(gates=SMOKE_ONLY)
    assert plan(lab.place, changed).result == "new release"
    assert deliver.fn(changed)["result"] == "promoted"
    assert (lab.record.previous, status(lab.place, NAME).changes) == (release, ())


def test_what_serves_and_is_told_by_nothing_is_never_deleted_by_another_spec(lab: Lab) -> None:
    spec, release, running = served(lab)
    lose(lab, *BOOKS)
    forget(lab)
    changed = lab.spec(gates=SMOKE_ONLY)
    for verb in (lambda: plan(lab.place, changed), lambda: deliver.fn(changed)):
        with pytest.raises(Refused, match=rf"(?s)books of {NAME} are gone.*deliver down {NAME}"):
            verb()
    assert pods(lab) == running
    assert any("books" in change for change in status(lab.place, NAME).changes)
    done = deliver.fn(spec)
    assert (done["result"], done["release"], pods(lab)) == ("healed", release, running), "the copy is made again"
    lose(lab, *BOOKS)
    forget(lab)
    down(lab.place, NAME)
    assert pods(lab) == set()


def forget(lab: Lab) -> None:
    """The copies that the releases' own objects keep."""
    kinds = {"deployment": "deployments.v1.apps", "t9k": "mlserviceruntimes", "kserve": "servingruntimes"}
    kind = kinds[lab.kind]
    for live in json.loads(lab.cluster.kubectl("get", kind, "-n", lab.namespace, "-o", "json"))["items"]:
        meta: dict[str, Any] = live["metadata"]
        for name in meta.get("annotations") or {}:
            if name.startswith("model-delivery/release-"):
                lab.cluster.kubectl("annotate", kind, meta["name"], f"{name}-", "-n", lab.namespace)


def edited(lab: Lab, kind: str, content: str) -> None:
    """Somebody's hand in what is stored."""
    selector = f"--selector=model-delivery/kind={kind.capitalize()}"
    (name,) = lab.cluster.kubectl("get", "configmap", selector, "-n", lab.namespace, "-o", "name").split()
    patch = json.dumps({"data": {"content": content}})
    lab.cluster.kubectl("patch", name, "-n", lab.namespace, "--type=merge", "-p", patch)


def test_a_record_that_was_edited_so_that_nothing_is_wanted_ends_nothing(lab: Lab) -> None:
    spec, release, running = served(lab)
    content = records.dump(lab.record)
    edited(lab, "record", json.dumps(content | {"desired": {"releases": [], "traffic": []}}))
    assert plan(lab.place, spec).changes == ()
    done = deliver.fn(spec)
    assert (done["result"], done["release"], pods(lab)) == ("unchanged", release, running)


def test_a_record_that_nobody_can_read_is_named_with_the_way_out(lab: Lab) -> None:
    spec, release, running = served(lab)
    edited(lab, "record", "{")
    for verb in (lambda: status(lab.place, NAME), lambda: plan(lab.place, spec), lambda: deliver.fn(spec)):
        with pytest.raises(Permanent, match=r"(?s)record cannot be read.*the ConfigMap NAME-record"):
            verb()
    assert lab.place.deliveries() == (NAME,)
    lose(lab, "record")
    assert (deliver.fn(spec)["result"], lab.record.serving, pods(lab)) == ("unchanged", release, running)


def test_a_release_that_nobody_can_read_is_made_again(lab: Lab) -> None:
    spec, release, running = served(lab)
    edited(lab, "release", "{")
    assert status(lab.place, NAME).serving == release
    assert (deliver.fn(spec)["release"], pods(lab)) == (release, running)


@pytest.mark.parametrize("lab", ["deployment"], indirect=True)
def test_a_label_that_somebody_removed_is_told_with_the_command_that_puts_it_back(lab: Lab) -> None:
    spec, release, running = served(lab)
    lab.cluster.kubectl("label", f"deployment/{NAME}-{release}", "model-delivery/delivery-", "-n", lab.namespace)
    with pytest.raises(Refused, match="has lost a label") as told:
        deliver.fn(spec)
    (finding,) = told.value.findings
    lab.cluster.kubectl(*shlex.split(finding.fix.partition("kubectl ")[2]))
    assert (deliver.fn(spec)["result"], pods(lab)) == ("unchanged", running)


@pytest.mark.parametrize("lab", ["deployment", "kserve"], indirect=True)
def test_a_refusal_of_a_first_delivery_leaves_nothing_behind(lab: Lab) -> None:
    ports = [{"port": 80}]
    meta = {"name": NAME, "namespace": lab.namespace}
    lab.cluster.apply({"apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": {"ports": ports}})
    with pytest.raises(Refused, match="is there already"):
        deliver.fn(lab.spec(gates=SMOKE_ONLY))
    assert lab.place.deliveries() == ()
