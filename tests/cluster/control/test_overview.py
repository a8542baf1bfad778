"""`deliver list` of a namespace: one look for all deliveries, whose table says what each
one's `status` says.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.crowd.run import NAME, copies
from model_delivery.flows.deliver import deliver
from model_delivery.values import Ref
from tests.cluster.control.lab import delivering_lab
from tests.compatibility.asking import says
from tests.parts.cluster import Cluster
from tests.parts.cluster.faulty_api import faulty_api
from tests.parts.cluster.played import PlayedNode
from tests.parts.kinds import BY_NAME

MORE = 4


def test_a_list_reads_each_kind_once_however_many_deliveries_there_are(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, node: PlayedNode
) -> None:
    with delivering_lab(cluster, tmp_path, monkeypatch, node) as lab:
        deliver.fn(lab.spec(name=NAME, gates={"smoke": {"max_tokens": 16}, "throughput": None}))
        with faulty_api(cluster) as api:
            monkeypatch.setenv("KUBECONFIG", str(api.kubeconfig))

            def listed() -> tuple[Any, dict[str, int]]:
                api.asked.clear()
                said = says("list", "-n", lab.namespace)
                return said, {method: api.asked.count(method) for method in api.asked}

            (one,), alone = listed()
            assert (one["state"], one["changes"]) == ("up", [])
            copies(lab, MORE)
            lab.cluster.client.delete(f"/api/v1/namespaces/{lab.namespace}/services/{NAME}-00").raise_for_status()
            many, among = listed()
            assert len(many) == 1 + MORE
            each = [says("status", delivery["name"], "-n", lab.namespace) for delivery in many]
            assert many == each
            drifted = next(delivery for delivery in many if delivery["name"] == f"{NAME}-00")
            assert any(str(Ref(BY_NAME["Service"], f"{NAME}-00")) in line for line in drifted["changes"]), drifted
    told_of_pods = 2  # the copies have none: what the events and the nodes tell of that
    assert among["GET"] <= alone["GET"] + told_of_pods + 1, "of what is gone, whether somebody else has it now"
    assert among["PATCH"] == (1 + MORE) * alone["PATCH"], "what a converge would change is asked of each object"
    assert among.keys() == {"GET", "PATCH"}
