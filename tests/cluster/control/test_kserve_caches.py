"""What an engine compiled, and its weights ahead of it, in the pods that the real KServe
makes.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from model_delivery.base import Refused, sink
from model_delivery.diagnosis.pod_caches import CONTAINER
from model_delivery.flows.deliver import deliver
from model_delivery.targets.kubernetes.caches import MOUNT, NODE
from tests.cluster.control.lab import ENGINE, NAME, Lab, delivering_lab
from tests.parts.cluster import Cluster
from tests.parts.cluster.played import PlayedNode
from tests.parts.kserve import KServe
from tests.parts.timing_engine import build

FAILS = """
import os, sys
if os.path.islink(os.environ["VLLM_CACHE_ROOT"]) and os.path.exists({spoilt!r}):
    sys.exit("RuntimeError: what was compiled cannot be loaded")
os.execv({engine!r}, [{engine!r}, *sys.argv[1:]])
"""


@pytest.fixture
def lab(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, node: PlayedNode, kserve: KServe
) -> Iterator[Lab]:
    with delivering_lab(cluster, tmp_path, monkeypatch, node, kind="kserve") as made:
        yield made


def pods(lab: Lab) -> list[dict[str, Any]]:
    path = f"/api/v1/namespaces/{lab.namespace}/pods"
    listed: list[dict[str, Any]] = lab.cluster.client.get(path).raise_for_status().json()["items"]
    return [one for one in listed if one["metadata"]["labels"].get("model-delivery/object", "").startswith(NAME)]


def test_a_claim_that_kserve_mounts_is_refused(lab: Lab) -> None:
    with pytest.raises(Refused, match=r"serving\.cache: claim"):
        deliver.fn(lab.spec(serving={"cache": "claim"}))
    assert not lab.place.deliveries()


def test_a_pod_keeps_a_cache_and_reads_ahead(lab: Lab) -> None:
    wanted = lab.spec(serving={"cache": "node", "readahead": True}, gates={"throughput": None})
    assert deliver.fn(wanted)["result"] == "promoted"
    (pod,) = pods(lab)
    (told,) = [one for one in pod["status"]["initContainerStatuses"] if one["name"] == CONTAINER]
    assert told["state"]["terminated"]["message"].strip() == "new"
    (engine,) = [one for one in pod["spec"]["containers"] if one["name"] == "kserve-container"]
    mounts = {one["mountPath"]: one for one in engine["volumeMounts"]}
    assert MOUNT in mounts
    assert mounts["/mnt/models"]["readOnly"] is True
    assert engine["args"][engine["args"].index("--model") + 1] == "/mnt/models"
    assert engine["lifecycle"]["postStart"]["exec"]["command"][4] == "/mnt/models"
    claims = [one for one in pod["spec"]["volumes"] if "persistentVolumeClaim" in one]
    assert [one["persistentVolumeClaim"]["claimName"] for one in claims] == [f"{NAME}-models"]
    assert deliver.fn(wanted)["result"] == "unchanged"


def test_a_start_that_fails_with_what_was_kept_is_tried_once_without(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {"args": ["--label", "same"], "cache": "node"}
    gates = {"throughput": None}
    assert deliver.fn(lab.spec(serving=asked, gates=gates))["result"] == "promoted"
    (engine,) = pods(lab)[0]["spec"]["containers"]
    (folder,) = [one["subPath"] for one in engine["volumeMounts"] if one["mountPath"] == MOUNT]
    spoilt, script = lab.cluster.folder / "host" / NODE.strip("/") / folder / "vllm" / "spoilt", tmp_path / "engine.py"
    spoilt.write_text("")
    script.write_text(FAILS.format(spoilt=str(spoilt), engine=str(build())))
    monkeypatch.setitem(lab.node.entrypoints, ENGINE, (sys.executable, script, "--host", "0.0.0.0"))
    again, told = lab.spec(serving={**asked, "startup_timeout": "50s"}, gates=gates), list[str]()
    with sink(lambda news: told.append(news.line())):
        assert deliver.fn(again)["result"] == "promoted"
    assert len([line for line in told if "[engine.cache-dropped]" in line]) == 1
    (pod,) = pods(lab)
    assert "initContainers" not in pod["spec"]
    assert deliver.fn(again)["result"] == "unchanged"
    spoilt.unlink()
    anew = lab.spec(serving={**asked, "startup_timeout": "40s"}, gates=gates)
    assert deliver.fn(anew)["result"] == "promoted"
    assert pods(lab)[0]["status"]["initContainerStatuses"][0]["name"] == CONTAINER, "the next release keeps one again"
