"""``deliver adopt`` of what must not come under a spec: what is another delivery's since,
and an engine that gives no token where it would be asked.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from model_delivery.base import Refused
from model_delivery.spec import parse_spec
from model_delivery.verbs import adopt as adopting
from tests.cluster.control.lab import NAME, Lab
from tests.cluster.control.test_adopt import CLAIM, adopted, apply, by_hand, engine, live, plain, said, source, spec


@pytest.mark.parametrize("lab", ["kserve"], indirect=True)
def test_of_two_deliveries_that_adopt_one_service_the_second_is_refused_by_name(lab: Lab, tmp_path: Path) -> None:
    by_hand(lab)
    before, wanted = engine(lab), spec(lab)
    other = parse_spec({**wanted.model_dump(mode="json"), "name": "other"})
    offered = adopting.look(lab.place, other, "by-hand")
    adopting.take(lab.place, wanted, adopting.look(lab.place, wanted, "by-hand"))
    old = live(lab, "isvc", "by-hand")["spec"]
    with pytest.raises(Refused, match=f"it belongs to the delivery {NAME}"):
        adopting.take(lab.place, other, offered)
    assert f"it belongs to the delivery {NAME}" in said(tmp_path, other, "adopt", *source(lab), "--yes", code=3)
    said(tmp_path, "other", "down", "-n", lab.namespace)
    adopted(lab, before)
    assert live(lab, "isvc", "by-hand")["spec"] == old
    assert "differs" not in said(tmp_path, NAME, "status", "-n", lab.namespace)


@pytest.mark.parametrize("lab", ["deployment"], indirect=True)
def test_an_engine_that_gives_no_token_is_refused_and_nothing_is_left(lab: Lab, tmp_path: Path) -> None:
    by_hand(lab)
    mute, _ = plain({"name": "models", "persistentVolumeClaim": {"claimName": CLAIM}})
    mute["metadata"]["name"] = "mute"
    mute["spec"]["selector"]["matchLabels"] = mute["spec"]["template"]["metadata"]["labels"] = {"app": "mute"}
    (container,) = mute["spec"]["template"]["spec"]["containers"]
    container["args"] = [word for word in container["args"] if word not in ("--port", "8080")]
    container |= {"ports": [{"containerPort": 9999}], "readinessProbe": None}
    apply(lab, mute)
    told = said(tmp_path, spec(lab), "adopt", "--from", "mute", "--yes", code=3)
    assert "Deployment/mute gives no token" in told
    assert ":9999" in told
    assert not lab.place.deliveries()
    assert not lab.cluster.kubectl(
        "get", "cm,job,service", "-l", "model-delivery/delivery", "-n", lab.namespace, "-o", "name"
    )
    assert "model-delivery" not in str(live(lab, "deployment", "mute")["metadata"])
