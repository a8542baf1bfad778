"""What a Gateway and the routes at it say before a delivery, and by which writes a route
comes to another form.
"""

from __future__ import annotations

from typing import Any

import pytest

from model_delivery.targets.kubernetes.route import LEAVES_SECONDS, way
from tests.unit.test_preflight import Site, codes, spec

API = "/apis/gateway.networking.k8s.io/v1"
GATEWAY, ROUTES = f"{API}/namespaces/ns/gateways/g", f"{API}/namespaces/ns/httproutes"
LISTENER: dict[str, Any] = {"name": "http", "protocol": "HTTP", "port": 80}


def said(**conditions: str) -> list[dict[str, str]]:
    told = [(kind, *text.split()) for kind, text in conditions.items()]
    return [{"type": kind, "status": status, "reason": reason} for kind, status, reason in told]


def gateway(listener: Any = None, told: Any = None, **conditions: str) -> Any:
    judged = said(**({"Accepted": "True Accepted", "Programmed": "True Programmed"} | conditions))
    status = {"conditions": judged, "listeners": [{"name": "http", "conditions": said(**(told or {}))}]}
    return {"spec": {"gatewayClassName": "c", "listeners": [LISTENER | (listener or {})]}, "status": status}


def found(live: Any, *routes: Any, at: str = GATEWAY, target: dict[str, Any] | None = None, **more: Any) -> list[str]:
    there = {"/api/v1/namespaces/ns": {"metadata": {"labels": {"team": "a"}}}, at: live, ROUTES: {"items": [*routes]}}
    return codes(spec("deployment", {"gateway": "g", "hostname": "m.test", **(target or {})}), Site(there, **more))


@pytest.mark.parametrize(
    ("conditions", "code"),
    [
        ({}, []),
        ({"Accepted": "Unknown Pending", "Programmed": "Unknown Pending"}, ["gateway.not-served"]),
        ({"Programmed": "Unknown Pending"}, ["gateway.not-served"]),
        ({"Accepted": "False InvalidParameters"}, ["gateway.not-usable"]),
        ({"Programmed": "False Invalid"}, ["gateway.not-usable"]),
        ({"Programmed": "False AddressNotAssigned"}, []),
    ],
)
def test_a_gateway_that_nobody_serves_is_no_gateway(conditions: dict[str, str], code: list[str]) -> None:
    assert found(gateway(**conditions)) == code


def selector(**words: Any) -> dict[str, Any]:
    return {"allowedRoutes": {"namespaces": {"from": "Selector", "selector": words}}}


TEAM = {"key": "team", "operator": "In", "values": ["a", "b"]}


@pytest.mark.parametrize(
    ("listener", "takes"),
    [
        ({}, True),
        ({"protocol": "TCP"}, False),
        ({"protocol": "HTTPS"}, True),
        ({"hostname": "other.test"}, False),
        ({"hostname": "*.test"}, True),
        ({"hostname": "*.m.test"}, False),
        ({"allowedRoutes": {"namespaces": {"from": "None"}}}, False),
        ({"allowedRoutes": {"kinds": [{"kind": "GRPCRoute"}]}}, False),
        ({"allowedRoutes": {"kinds": [{"kind": "HTTPRoute"}]}}, True),
        (selector(matchLabels={"team": "a"}), True),
        (selector(matchLabels={"team": "b"}), False),
        (selector(matchExpressions=[TEAM]), True),
        (selector(matchExpressions=[TEAM | {"operator": "NotIn"}]), False),
        (selector(matchExpressions=[{"key": "team", "operator": "Exists"}]), True),
        (selector(matchExpressions=[{"key": "team", "operator": "DoesNotExist"}]), False),
    ],
)
def test_a_listener_says_whom_it_takes(listener: dict[str, Any], takes: bool) -> None:
    assert found(gateway(listener)) == ([] if takes else ["gateway.no-listener"])


def test_a_listener_of_another_namespace_takes_its_own_alone_unless_it_says_so() -> None:
    at, target = f"{API}/namespaces/edge/gateways/g", {"gateway": "edge/g"}
    assert found(gateway(), at=at, target=target) == ["gateway.no-listener"]
    assert found(gateway({"allowedRoutes": {"namespaces": {"from": "All"}}}), at=at, target=target) == []


def test_a_listener_that_its_controller_refuses_takes_nobody() -> None:
    assert found(gateway(told={"Conflicted": "True HostnameConflict"})) == ["gateway.no-listener"]
    assert found(gateway(told={"Programmed": "False Invalid"})) == ["gateway.no-listener"]
    assert found(gateway(told={"Programmed": "Unknown Pending"})) == []


def test_what_we_may_not_see_is_not_judged() -> None:
    seen = selector(matchLabels={"team": "b"})
    assert found(gateway(seen), closed=("/api/v1/namespaces/ns",)) == []
    assert found(gateway(Accepted="Unknown Pending"), closed=(GATEWAY,)) == []
    assert found(gateway(), route(), closed=(ROUTES, f"{API}/httproutes")) == []


def route(name: str = "other", born: str = "2026-01-01T00:00:00Z", accepted: str = "True", **more: Any) -> Any:
    parent, matches = {"name": "g"}, [{"path": {"type": "PathPrefix", "value": "/"}}]
    told = {"parentRef": parent, "conditions": said(Accepted=f"{accepted} X")}
    stated = {"parentRefs": [parent], "hostnames": ["m.test"], "rules": [{"matches": matches}]} | more
    meta = {"namespace": "ns", "name": name, "creationTimestamp": born}
    return {"metadata": meta, "spec": stated, "status": {"parents": [told]}}


@pytest.mark.parametrize(
    ("other", "conflicts"),
    [
        (route(), True),
        (route(rules=[{}]), True),
        (route(hostnames=["a.test", "m.test"]), True),
        (route(hostnames=["a.test"]), False),
        (route(hostnames=[]), False),
        (route(rules=[{"matches": [{"path": {"type": "PathPrefix", "value": "/x"}}]}]), False),
        (route(rules=[{"matches": [{"headers": [{"name": "x", "value": "y"}]}]}]), False),
        (route(parentRefs=[{"name": "another"}]), False),
        (route(parentRefs=[{"name": "g", "namespace": "edge"}]), False),
        (route(accepted="False"), False),
        (route("m"), False),
    ],
)
def test_an_older_route_with_the_same_hostname_and_path_is_in_the_way(other: Any, conflicts: bool) -> None:
    assert found(gateway(), other) == (["gateway.route-conflict"] if conflicts else [])


def test_routes_of_two_listeners_do_not_meet() -> None:
    live, other = gateway(), route(parentRefs=[{"name": "g", "sectionName": "http"}])
    assert found(live, other) == ["gateway.route-conflict"]
    live["spec"]["listeners"].append(LISTENER | {"name": "https"})
    assert found(live, other) == []


def test_a_route_that_came_after_ours_is_not_in_the_way() -> None:
    assert found(gateway(), route("m"), route(born="2026-02-01T00:00:00Z")) == []
    assert found(gateway(), route("m"), route(born="2025-02-01T00:00:00Z")) == ["gateway.route-conflict"]


@pytest.mark.parametrize(
    ("now", "then", "between"),
    [
        ({"a": 100}, {"a": 100, "b": 0}, []),
        ({"a": 100, "b": 0}, {"a": 90, "b": 10}, [({"a": 100, "b": 0}, 0)]),
        ({"a": 90, "b": 10}, {"a": 50, "b": 50}, []),
        ({"a": 50, "b": 50}, {"a": 0, "b": 100}, []),
        ({"a": 0, "b": 100}, {"b": 100}, [({"a": 0, "b": 100}, LEAVES_SECONDS)]),
        ({"a": 90, "b": 10}, {"a": 100}, [({"a": 100, "b": 0}, LEAVES_SECONDS)]),
        ({"a": 100}, {"b": 100}, [({"a": 100, "b": 0}, 0), ({"a": 0, "b": 100}, LEAVES_SECONDS)]),
        ({}, {"a": 100}, [({"a": 0}, 0)]),
        ({"a": 100}, {}, [({"a": 0}, LEAVES_SECONDS)]),
    ],
)
def test_nobody_gets_traffic_or_leaves_in_one_write(
    now: dict[str, int], then: dict[str, int], between: list[tuple[dict[str, int], float]]
) -> None:
    refs = [{name: {"name": name, "weight": weight} for name, weight in side.items()} for side in (now, then)]
    assert [({ref["name"]: ref["weight"] for ref in form}, s) for form, s in way(*refs)] == between
