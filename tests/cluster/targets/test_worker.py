"""Prefect's Kubernetes worker delivers a small real model with real vLLM."""

from __future__ import annotations

from pathlib import Path

import pytest

from model_delivery.flows import registration
from model_delivery.flows.registration import Wanted
from model_delivery.spec import load_spec
from tests.cluster.node.lab import NAME
from tests.cluster.node.test_story import answers, spec
from tests.cluster.node.test_worker import POOL, operating
from tests.parts.cluster import images
from tests.parts.cluster.node import Node

pytestmark = pytest.mark.timeout(1500)


def test_a_deployments_run_delivers_a_real_model(node: Node, tmp_path: Path) -> None:
    with operating(node, tmp_path, images.model(), images.push_engine(node.registry)) as operated:
        asked = load_spec(spec(operated.lab))
        smoke_only = asked.gates.model_copy(update={"throughput": None})  # server, worker and engine share two cores
        asked = asked.model_copy(update={"gates": smoke_only})
        (proposal,) = registration.propose([asked], Wanted(POOL)).proposals
        registration.register(proposal)
        made = operated.client.read_deployment_by_name(f"deliver/{NAME}")
        operated.ended(operated.client.create_flow_run_from_deployment(made.id), "Completed", "promoted")
        assert answers(operated.lab)
