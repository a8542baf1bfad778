"""A canary behind a gateway, end to end: each step's share is what the stand-in gateway
really sends, each step is judged, a refused one gives it back.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import httpx
import pytest

from model_delivery.base import GateFailed, Refused
from model_delivery.flows.deliver import deliver
from model_delivery.flows.rollback import rollback
from model_delivery.places.guarded import observed
from model_delivery.spec import DeliverySpec
from model_delivery.targets.kubernetes.kinds import HTTP_ROUTE
from model_delivery.values import Ref
from model_delivery.verbs.plan import plan
from model_delivery.verbs.status import down, status
from model_delivery.verbs.where import find
from tests.cluster.control.lab import NAME, Lab, delivering_lab
from tests.cluster.control.test_gateway import route
from tests.parts.cluster import Cluster
from tests.parts.cluster.played import PlayedNode
from tests.parts.gateway import REQUEST_SECONDS, StandIn

HOSTNAME = "chat.test"
BEHIND = {"gateway": "gateway", "hostname": HOSTNAME}
SMOKE_ONLY = {"smoke": {"max_tokens": 16}, "throughput": None}
CANARY = {"strategy": "canary", "steps": [10, 50], "soak": "0s"}


@pytest.fixture
def lab(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, node: PlayedNode, gateway: StandIn
) -> Iterator[Lab]:
    with delivering_lab(cluster, tmp_path, monkeypatch, node) as made:
        cluster.apply(gateway.gateway(made.namespace))
        yield made


def canary(lab: Lab, *args: str, **more: Any) -> DeliverySpec:
    return lab.spec(*args, **{"target": BEHIND, "rollout": CANARY, **more})


def label(spec: DeliverySpec) -> str:
    args = spec.serving.args
    return args[args.index("--label") + 1]


def asked(gateway: StandIn, requests: int = 100) -> Counter[str]:
    """Who answers through the gateway, by label; a request that nobody answers counts
    under its status.
    """
    with httpx.Client(base_url=gateway.url, headers={"Host": HOSTNAME}, trust_env=False) as client:
        answers = [client.get("/v1/models") for _ in range(requests)]
    return Counter(str(one.json()["data"][0]["root"]) if one.is_success else str(one.status_code) for one in answers)


def test_a_canary_gets_the_share_of_each_step_is_judged_there_and_rolled_back(
    lab: Lab, gateway: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = canary(lab), canary(lab)
    done = deliver.fn(first)
    assert (done["result"], done["url"]) == ("promoted", f"http://{HOSTNAME}:80")
    assert asked(gateway) == {label(first): 100}
    shares: dict[str, list[Counter[str]]] = {}

    def measure(when: Literal["before", "after"], verb: str, ref: Ref) -> None:
        if (when, verb, ref.kind.name) == ("before", "put", "Job"):
            step, *_, part = ref.name.removeprefix(f"{NAME}-").split("-")
            if part == "image":  # the fetch's second Job
                return
            shares.setdefault(step, []).append(asked(gateway))

    with observed(measure):
        promoted = deliver.fn(second)
    assert promoted["result"] == "promoted"
    old, new = label(first), label(second)
    steps = [Counter({old: 100}), Counter({old: 90, new: 10}), Counter({old: 50, new: 50})]
    assert shares == {"fetch": steps[:1], "smoke": steps, "load": steps}
    assert asked(gateway) == {new: 100}
    assert status(lab.place, NAME).changes == ()
    back = rollback.fn(NAME, done["release"], where=find(NAME, None, lab.namespace).location)
    assert back["release"] == done["release"]
    assert asked(gateway) == {old: 100}
    now = status(lab.place, NAME)
    assert (now.state, now.changes) == ("up", ())
    assert down(lab.place, NAME)
    assert not [ref for ref in lab.place.world(NAME).objects if ref.kind.name in ("Deployment", "HTTPRoute", "Service")]


def test_a_refused_canary_takes_its_weight_back(lab: Lab, gateway: StandIn) -> None:
    """It dies of its ninth request: after the smoke test of the dark stage, in the one of
    the first step.
    """
    first = canary(lab, gates=SMOKE_ONLY)
    serves = deliver.fn(first)["release"]
    with pytest.raises(GateFailed) as refused:
        deliver.fn(canary(lab, "--die-after", "8", gates=SMOKE_ONLY))
    assert refused.value.exit_code == 4
    (ended,) = [one for one in lab.record.ended if one.exit_code]
    assert (ended.outcome, lab.record.serving) == ("gate failed", serves)
    assert "canary-10" in refused.value.text
    assert asked(gateway) == {label(first): 100}
    world = lab.place.world(NAME)
    route = world.objects[Ref(HTTP_ROUTE, NAME)].resource.spec["spec"]
    assert [(one["name"], one["weight"]) for one in route["rules"][0]["backendRefs"]] == [(f"{NAME}-{serves}", 100)]
    assert [ref.name for ref in world.objects if ref.kind.name == "Deployment"] == [f"{NAME}-{serves}"]
    assert status(lab.place, NAME).changes == ()


def test_without_a_gateway_a_canary_is_refused_before_anything_is_touched(lab: Lab) -> None:
    with pytest.raises(Refused, match=r"(?s)canary is refused.*cannot weigh traffic.*blue-green") as refused:
        deliver.fn(lab.spec(rollout=CANARY))
    assert refused.value.exit_code == 3
    assert lab.place.deliveries() == ()


@contextmanager
def probed(gateway: StandIn) -> Iterator[Counter[int]]:
    """The statuses of requests that are made through the gateway all the time."""
    seen, over = Counter[int](), threading.Event()

    def probe() -> None:
        asked = {"Host": HOSTNAME, "Connection": "close"}  # a reload of the stand-in ends connections that are idle
        with httpx.Client(base_url=gateway.url, headers=asked, trust_env=False) as client:
            while not over.wait(0.01):
                seen[client.get("/v1/models").status_code] += 1

    with ThreadPoolExecutor() as pool:
        ended = pool.submit(probe)
        yield seen
        over.set()
        ended.result()


@pytest.mark.parametrize("rollout", [CANARY, {}], ids=["canary", "blue-green"])
def test_no_request_fails_while_traffic_moves(lab: Lab, gateway: StandIn, rollout: dict[str, Any]) -> None:
    first, second = (canary(lab, rollout=rollout, gates=SMOKE_ONLY) for _ in range(2))
    serves = deliver.fn(first)["release"]
    with probed(gateway) as seen:
        assert deliver.fn(second)["result"] == "promoted"
        rollback.fn(NAME, serves, where=find(NAME, None, lab.namespace).location)
    assert seen.keys() == {200}, seen


def test_a_stream_may_take_longer_than_a_request_does_at_a_gateway(lab: Lab, gateway: StandIn) -> None:
    asked = {"model": NAME, "prompt": "hello", "max_tokens": 150, "stream": True}
    gateway.request_seconds = 2.0
    try:
        deliver.fn(canary(lab, "--itl", "20", gates=SMOKE_ONLY))
        said = httpx.post(f"{gateway.url}/v1/completions", headers={"Host": HOSTNAME}, json=asked, timeout=60)
    finally:
        gateway.request_seconds = REQUEST_SECONDS
    assert said.elapsed.total_seconds() > 2.5
    assert said.text.endswith("data: [DONE]\n\n")


def unserved(lab: Lab, gateway: StandIn) -> None:
    made = gateway.gateway(lab.namespace)
    made["spec"]["gatewayClassName"] = "nobodys"
    lab.cluster.kubectl("delete", "gateway", "gateway", "-n", lab.namespace)
    lab.cluster.apply(made)


def closed(lab: Lab, gateway: StandIn) -> None:
    made = gateway.gateway(lab.namespace)
    made["spec"]["listeners"][0]["allowedRoutes"] = {
        "namespaces": {"from": "Selector", "selector": {"matchLabels": {"team": "other"}}}
    }
    lab.cluster.apply(made)


def taken(lab: Lab, gateway: StandIn) -> None:
    lab.cluster.apply(route(lab.namespace, HOSTNAME, other=100))


@pytest.mark.parametrize(
    ("come", "code", "why"),
    [
        (unserved, "gateway.not-served", "class nobodys, Accepted is Unknown: Pending"),
        (closed, "gateway.no-listener", "http: it selects others"),
        (taken, "gateway.route-conflict", "RuleMatchConflict"),
    ],
)
def test_what_a_gateway_would_not_do_is_told_by_plan_and_before_anything_is_touched(
    lab: Lab, gateway: StandIn, come: Callable[[Lab, StandIn], None], code: str, why: str
) -> None:
    come(lab, gateway)
    wanted = canary(lab)
    for tried in (lambda: plan(lab.place, wanted), lambda: deliver.fn(wanted)):
        with pytest.raises(Refused) as refused:
            tried()
        assert refused.value.exit_code == 3
        assert [finding.code for finding in refused.value.findings] == [code]
        assert why in refused.value.text
    assert lab.place.deliveries() == ()


def test_a_gateway_that_is_not_there_is_refused_by_name(lab: Lab) -> None:
    with pytest.raises(Refused, match=r"(?s)there is no Gateway elsewhere/other.*blue-green"):
        deliver.fn(canary(lab, target={**BEHIND, "gateway": "elsewhere/other"}))
