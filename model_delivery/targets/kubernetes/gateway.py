"""What a Gateway says before anything is touched: does somebody serve it, may our route
come to it, is the route's place taken? What we may not see is not judged.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from model_delivery.base import Finding, Permanent
from model_delivery.targets.kubernetes.kinds import GATEWAY, HTTP_ROUTE
from model_delivery.targets.protocol import Site

Live = Mapping[str, Any]
ROOT = {"type": "PathPrefix", "value": "/"}  # our routes match all paths
UNSERVED = "gateway.not-served"
HERE = "AddressNotAssigned"  # it serves, at an address that is its cluster's own


def misfits(gateway: tuple[str, str], hostname: str | None, route: tuple[str, str], place: Site) -> Iterator[Finding]:
    """Reasons against an HTTPRoute for ``hostname`` at a Gateway; both as namespace and
    name.
    """
    shown = f"Gateway {'/'.join(gateway)}"
    live = known(place, GATEWAY.path(*gateway))
    if live and (unserved := _unserved(shown, live)):
        yield unserved
    elif live and (against := _against(live, gateway[0], hostname, route[0], place)):
        yield Finding(
            "gateway.no-listener",
            f"no listener of the {shown} takes an HTTPRoute of namespace {route[0]} for {hostname or 'any hostname'}",
            "; ".join(against),
            "let one of them allow it (spec.listeners[].allowedRoutes), or correct target.hostname",
        )
    alone = live is not None and len(live["spec"].get("listeners") or ()) == 1
    for taken in _older(gateway, alone, hostname, route, place):
        yield Finding(
            "gateway.route-conflict",
            f"HTTPRoute {taken} has the same hostname and path at the {shown}",
            "it is older, and the older one gets all of the traffic (RuleMatchConflict)",
            "name another target.hostname, or delete that HTTPRoute",
        )


def known(place: Site, path: str) -> dict[str, Any] | None:
    """None: it is not there, or we may not see it."""
    try:
        return place.look_up(path)
    except Permanent:
        return None


def conditions(said: Live) -> dict[str, Live]:
    return {condition["type"]: condition for condition in said.get("conditions") or ()}


def _unserved(shown: str, live: Live) -> Finding | None:
    of, other = live["spec"].get("gatewayClassName"), "Or name another one in target.gateway"
    for kind in ("Accepted", "Programmed"):
        said = conditions(live.get("status") or {}).get(kind, {"status": "Unknown", "reason": "Pending"})
        why = f"class {of}, {kind} is {said['status']}: {said.get('reason')}: {said.get('message', '')}"
        if said["status"] == "Unknown":
            fix = f"is there a controller for GatewayClass {of}, and does it run? {other}"
            return Finding("gateway.not-served", f"nobody serves the {shown}", why, fix)
        if said["status"] == "False" and said.get("reason") != HERE:
            fix = f"correct it as it says; kubectl describe says more. {other}"
            return Finding("gateway.not-usable", f"the {shown} cannot be used", why, fix)
    return None


def _against(live: Live, home: str, hostname: str | None, namespace: str, place: Site) -> list[str]:
    """A reason for each listener; empty where one takes the route."""
    told = {one["name"]: one for one in (live.get("status") or {}).get("listeners") or ()}
    found = []
    for listener in live["spec"].get("listeners") or ():
        why = _closed(listener, home, hostname, namespace, place) or _broken(told.get(listener["name"], {}))
        if not why:
            return []
        found.append(f"{listener['name']}: {why}")
    return found or ["it has none"]


def _closed(listener: Live, home: str, hostname: str | None, namespace: str, place: Site) -> str:
    allowed = listener.get("allowedRoutes") or {}
    kinds = [kind["kind"] for kind in allowed.get("kinds") or ()]
    if listener.get("protocol") not in ("HTTP", "HTTPS") or (kinds and HTTP_ROUTE.name not in kinds):
        return f"it is for {', '.join(kinds) or listener.get('protocol')}"
    if not _meet(listener.get("hostname") or "", hostname or ""):
        return f"its hostname is {listener['hostname']}"
    spaces = allowed.get("namespaces") or {}
    match spaces.get("from", "Same"):
        case "All":
            return ""
        case "Same":
            return "" if namespace == home else f"it allows namespace {home} alone"
        case "Selector":
            live = known(place, f"/api/v1/namespaces/{namespace}")
            labels = (live or {}).get("metadata", {}).get("labels") or {}
            return "" if live is None or _selects(spaces.get("selector") or {}, labels) else "it selects others"
    return "it allows no namespace"


def _broken(said: Live) -> str:
    """Only what a controller has judged counts."""
    for kind, good in (("Accepted", "True"), ("Programmed", "True"), ("Conflicted", "False")):
        one = conditions(said).get(kind, {"status": "Unknown"})
        if one["status"] not in (good, "Unknown") and one.get("reason") != HERE:
            return f"{kind} is {one['status']}: {one.get('reason')}: {one.get('message', '')}"
    return ""


def _meet(one: str, other: str) -> bool:
    """Is there a hostname that both mean? Empty: any; ``*.`` stands for one label or
    more.
    """
    one, other = one.lower(), other.lower()
    ends = [(a, b) for a, b in ((one, other), (other, one)) if a.startswith("*.")]
    return not one or not other or one == other or any(b.endswith(a[1:]) for a, b in ends)


def _selects(selector: Live, labels: Mapping[str, str]) -> bool:
    def holds(term: Live) -> bool:
        given, values, wanted = labels.get(term["key"]), term.get("values") or (), term["operator"]
        found = given is not None if "Exist" in wanted else given in values
        return bool(found) == (wanted in ("In", "Exists"))

    wanted: Mapping[str, str] = selector.get("matchLabels") or {}
    return wanted.items() <= labels.items() and all(map(holds, selector.get("matchExpressions") or ()))


def _older(
    gateway: tuple[str, str], alone: bool, hostname: str | None, route: tuple[str, str], place: Site
) -> Iterator[str]:
    """The routes that come before ours in what both want, of all namespaces where we may
    see them. ``alone``: the Gateway has one listener, so that all routes meet there.
    """
    everywhere = known(place, f"/apis/{HTTP_ROUTE.api}/{HTTP_ROUTE.plural}")
    listed = everywhere or known(place, HTTP_ROUTE.path(route[0])) or {}
    there = {(one["metadata"]["namespace"], one["metadata"]["name"]): one for one in listed.get("items") or ()}
    born = there.get(route, {}).get("metadata", {}).get("creationTimestamp", "9999")
    for name, other in sorted(there.items()):
        before = (other["metadata"]["creationTimestamp"], name) < (born, route)
        hosts = other["spec"].get("hostnames") or [""]
        same = before and name != route and (hostname or "") in hosts and any(map(_all_paths, _matches(other)))
        if same and gateway in _parents(other, alone):
            yield "/".join(name)


def _matches(route: Live) -> Iterator[Live]:
    rules: list[Live] = route["spec"].get("rules") or [{}]
    for rule in rules:
        yield from rule.get("matches") or [{}]


def _all_paths(match: Live) -> bool:
    return match.get("path", ROOT) == ROOT and not {"headers", "queryParams", "method"} & match.keys()


def _parents(route: Live, alone: bool) -> set[tuple[str, str]]:
    """The Gateways at which it is wherever ours is, and is not refused."""
    home, said = route["metadata"]["namespace"], (route.get("status") or {}).get("parents") or ()
    refused = [one["parentRef"] for one in said if conditions(one).get("Accepted", {}).get("status") == "False"]
    wanted = [one for one in route["spec"].get("parentRefs") or () if alone or not {"sectionName", "port"} & one.keys()]
    names = [
        {(one.get("namespace", home), one["name"]) for one in refs if one.get("kind", GATEWAY.name) == GATEWAY.name}
        for refs in (wanted, refused)
    ]
    return names[0] - names[1]
