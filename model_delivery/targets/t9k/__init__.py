"""T9k: one MLService is the route and holds every release as an entry; each entry names
an MLServiceRuntime, called by the hash of its content.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from model_delivery.base import Finding, Object, Refused, Text, base_url, manifest
from model_delivery.diagnosis import pods
from model_delivery.models.manifest import folder_name
from model_delivery.targets.kubernetes.adoption import (
    Found,
    engine_of,
    filled,
    folder_of,
    model_of,
    not_on_a_claim,
    refusal,
    relative,
)
from model_delivery.targets.kubernetes.cluster import ClusterKey, ClusterTarget, InCluster, absent_kinds
from model_delivery.targets.kubernetes.kinds import CONFIG_MAP
from model_delivery.targets.kubernetes.release import (
    AdoptedPayload,
    ClusterPayload,
    Origin,
    chat_template,
    claim_name,
    common,
    devices,
    in_cluster,
    limits_of,
    owned_route,
    pod_labels,
    pods_of,
    scale,
)
from model_delivery.targets.protocol import Adoption, Asked, Get, Site, Target
from model_delivery.targets.t9k.runtime import FILE, runtime_of
from model_delivery.values import (
    Address,
    Capabilities,
    Current,
    Demand,
    Desired,
    Failed,
    InProgress,
    Kind,
    Lock,
    Observed,
    Readiness,
    Ref,
    Release,
    Resource,
    Storage,
    World,
    digest,
)

API = ("tensorstack.dev", "v1beta1")


def _demand(body: Mapping[str, Any]) -> Demand:
    predictors = {entry["name"]: entry["predictor"] for entry in body["spec"]["releases"]}
    return {
        name: (int(predictor.get("minReplicas", 1)), devices(predictor.get("containersResources", ())))
        for name, predictor in predictors.items()
    }


ML_SERVICE = Kind("MLService", *API, "mlservices", foreground=True, optional=True, eventful=True, demand=_demand)
ML_SERVICE_RUNTIME = Kind("MLServiceRuntime", *API, "mlserviceruntimes", steady=True, optional=True)
NOTEBOOK = Kind("Notebook", *API, "notebooks", optional=True)
ENGINE = "user-container"
MOUNT = "/var/lib/t9k/model"  # where T9k mounts a claim, unless it is told where
WAITING = ("", "PredictorNotReady")  # the reasons of a service that is simply not ready yet
SCHEMA = ("properties", "spec", "properties", "releases", "items", "properties", "predictor", "properties")


class T9kKey(ClusterKey):
    """``queue``: of T9k's own scheduler; without one the cluster's default scheduler
    places the pods.
    """

    kind: Literal["t9k"] = "t9k"
    queue: Text | None = None

    @classmethod
    def told_by(cls, route: Mapping[str, Any]) -> Mapping[str, Any]:
        scheduler = (route.get("spec") or {}).get("scheduler") or {}
        return {"queue": (scheduler.get("t9kScheduler") or {}).get("queue")}

    def target(self) -> Target:
        return T9k(self)


class T9kTarget(ClusterTarget, T9kKey):
    """A T9k MLService; ``queue``: of its scheduler."""

    keyed = T9kKey
    kind: Literal["t9k"]


class T9kPayload(ClusterPayload):
    """``config``: the name of the ConfigMap of its chat template."""

    runtime: Object
    predictor: Object
    config: str | None

    def entry(self, delivery: str, release: Release) -> Object:
        """Its entry of the MLService. Our labels reach the pods by the predictor's
        template (as the manuals say of annotations; of labels it is inferred).
        """
        predictor, count = copy.deepcopy(self.predictor), release.replicas
        predictor |= {"minReplicas": count, "maxReplicas": max(count, predictor["maxReplicas"])}
        predictor["template"]["metadata"]["labels"] = pod_labels(delivery, release.id)
        return {"name": release.id, "predictor": predictor}

    def resources(self, delivery: str, release: Release) -> Iterator[Resource]:
        """Of no release alone: those of the same content share them."""
        runtime = Ref(ML_SERVICE_RUNTIME, self.predictor["model"]["runtime"])
        yield Resource(runtime, "release", delivery, copy.deepcopy(self.runtime))
        if self.config is not None:
            spec = chat_template(self.chat_template or "")
            yield Resource(Ref(CONFIG_MAP, self.config), "release", delivery, spec)


class T9kOrigin(Origin):
    """``entry``: what its entry of the MLService is called."""

    entry: str


class T9kAdopted(AdoptedPayload):
    """Its runtime is somebody's, and may serve others."""

    adopts = ML_SERVICE
    adopted: T9kOrigin

    @property
    def called(self) -> str | None:
        return self.adopted.entry

    def entry(self, delivery: str, release: Release) -> Object:
        predictor = copy.deepcopy(self.live)
        scale(predictor, release.replicas)
        return {"name": self.adopted.entry, "predictor": predictor}

    def resources(self, delivery: str, release: Release) -> Iterator[Resource]:
        yield from ()


class T9k(InCluster):
    spec, kinds, engine_port = T9kTarget, (ML_SERVICE, ML_SERVICE_RUNTIME), 8080
    payloads = T9kPayload, T9kAdopted
    can, notebooks = Capabilities(dark_first=False, weights="percent"), True
    key: T9kKey

    def address(self, name: str) -> Address:
        """The name inside the cluster; the domain outside is T9k's to choose: ``routed``
        gives ``status.address.url``.
        """
        return Address(f"{name}.{self.key.namespace}", 80)

    def route(self, name: str) -> Ref:
        return Ref(ML_SERVICE, name)

    def main(self, delivery: str, release: Release) -> Ref:
        return self.route(delivery)

    def keeper(self, delivery: str, release: Release) -> Ref | None:
        """Not the service: what its annotations do to its pods nobody documents."""
        match release.payload:
            case T9kPayload() as payload:
                return Ref(ML_SERVICE_RUNTIME, payload.predictor["model"]["runtime"])
        return None

    def payload(self, asked: Asked, lock: Lock) -> ClusterPayload:
        """Refused where a text would meet Go's templates in a place where nobody
        documents whether they are filled in.
        """
        name, serving = asked.name, asked.serving
        config = None if serving.chat_template is None else f"{name}-{digest(serving.chat_template)}"
        runtime, limits = runtime_of(asked, lock, config), limits_of(serving)
        predictor = manifest(FILE, "MLService")["spec"]["releases"][0]["predictor"]
        predictor["model"]["runtime"] = f"{name}-{digest(runtime['spec'])}"
        predictor["model"]["parameters"]["MODEL_NAME"] = serving.model_names[0]
        claim = claim_name(name, asked.storage)
        predictor["storage"]["pvc"] |= {"name": claim, "subPath": folder_name(lock.snapshot)}
        predictor["maxReplicas"] = serving.replicas.max
        if limits:
            predictor["containersResources"][0]["resources"]["limits"] = limits
        else:
            del predictor["containersResources"]
        return T9kPayload(runtime=runtime, predictor=predictor, config=config, **common(asked, lock))

    def storage(self, name: str, lock: Lock, storage: Storage) -> tuple[Resource, ...]:
        (claim,) = super().storage(name, lock, storage)
        if not storage.notebook:
            return (claim,)
        made = manifest(FILE, "Notebook")
        made["spec"]["template"]["spec"]["volumes"][0]["persistentVolumeClaim"]["claimName"] = claim.ref.name
        return (claim, Resource(Ref(NOTEBOOK, claim.ref.name), "storage", name, made))

    def compose(self, want: Desired) -> tuple[Resource, ...]:
        """Releases of the same content share their runtime. A service cannot be without a
        default: no traffic, no service.
        """
        made = [part for release in want.releases for part in in_cluster(release).resources(want.delivery, release)]
        beside = {resource.ref: resource for resource in made}.values()
        return (*beside, self._service(want)) if want.address and want.shares else tuple(beside)

    def _service(self, want: Desired) -> Resource:
        made = manifest(FILE, "MLService")
        made["spec"]["releases"] = [_entry(want.delivery, release) for release in want.releases]
        shares = _shares(want)
        made["spec"]["default"], *canary = shares
        for name in canary:
            made["spec"] |= {"canary": name, "canaryTrafficPercent": shares[name]}
        if self.key.queue:
            made["spec"]["scheduler"] = {"t9kScheduler": {"queue": self.key.queue}}
        for release in want.releases:
            if isinstance(release.payload, T9kAdopted):
                made["metadata"] = copy.deepcopy(release.payload.adopted.metadata)
        return owned_route(Resource(self.route(want.delivery), "route", want.delivery, made), want.releases)

    def ready(self, release: Release, world: World, seen: Observed) -> Readiness:
        """There is no observedGeneration: the service must be Ready and this release
        ready. An address says nothing, it is set before.
        """
        name = _entry(world.delivery, release)["name"]
        row, service = _row(name, seen.status), pods.condition(seen.status, "Ready")
        if _true(pods.condition(seen.status, "Paused")):
            what, fix = f"the MLService {world.delivery} is paused", "resume it in T9k's console, then run again"
            return Failed(Finding("t9k.paused", what, "somebody paused it", fix))
        up = row.get("ready") and row.get("url") and row.get("readyReplicas", release.replicas) >= release.replicas
        if up and _true(service):
            return _at(row["url"])
        if up and not row.get("trafficPercent") and _others_down(name, seen.status):
            return _at(row["url"])  # the service is what is not ready, not this release
        if row.get("ready"):
            why = pods.reason_of(service) or "no reason is given"
            return InProgress(f"the release is ready, the MLService is not yet: {why}")
        return self._why_not(release, world, f"{world.delivery}-predict-{name}", row, service)

    def _why_not(
        self, release: Release, world: World, name: str, row: Mapping[str, Any], service: Mapping[str, Any]
    ) -> Readiness:
        """The pods know best; then the events of what T9k made for the release, and last
        what T9k says itself.
        """
        delivery, events = world.delivery, world.beside["Event"]
        there = pods_of(world, release.id)
        refused = [text for event in pods.events_of(events, name) if "forbidden" in (text := event.get("message", ""))]
        state = self.pending(release, world, name, {} if there else pods.not_made(refused))
        if there or not isinstance(state, InProgress):
            return state
        about = {"kind": ML_SERVICE.name, "name": delivery}
        own = tuple(event.get("message", "") for event in events if about.items() <= event["involvedObject"].items())
        if service.get("reason", "") not in WAITING and str(service.get("status")).lower() == "false":
            fix = f"correct what it names; kubectl describe mlservice {delivery} says more"
            why = str(row.get("message") or service.get("message", ""))
            return Failed(Finding("t9k.refused", f"T9k cannot start the release: {service['reason']}", why, fix, own))
        reason = pods.reason_of(row) or pods.reason_of(service)
        return InProgress("; ".join(filter(None, [reason, *own[-1:]])) or state.why)

    def moved(self, want: Desired, world: World, seen: Observed) -> Readiness:
        """By ``defaultRelease``, ``canaryRelease`` and each release's ``trafficPercent``;
        the endpoint is ``address.url``.
        """
        shares = _shares(want)
        now = seen.status.get("defaultRelease"), seen.status.get("canaryRelease") or None
        percents = {name: _row(name, seen.status).get("trafficPercent", share) for name, share in shares.items()}
        if now != (*shares, None)[:2] or percents != shares:
            return InProgress(f"the traffic has not moved yet: default {now[0]}, canary {now[1]}, percent {percents}")
        url = (seen.status.get("address") or {}).get("url")
        return _at(url) if url else InProgress("the MLService has no address yet")

    def uses(self, asked: Asked) -> tuple[Kind, ...]:
        return (*self.kinds, NOTEBOOK) if asked.storage.notebook else self.kinds

    def misfits(self, asked: Asked, place: Site) -> Iterator[Finding]:
        """Is its API there, and of the form of 2024-07 and later? Both forms are called
        v1beta1: the published schema tells.
        """
        if missing := absent_kinds(place, self.uses(asked)):
            yield Finding(
                "t9k.not-installed",
                f"the cluster has no {', '.join(kind.plural for kind in missing)} of {ML_SERVICE.api}",
                self.where,
                "install T9k, or use another target (notebooks: leave out storage.notebook)",
            )
            return
        openapi = place.look_up(f"/openapi/v3/apis/{ML_SERVICE.api}") or {}
        schemas = openapi.get("components", {}).get("schemas", {})
        fields: Object = next((schema for name, schema in schemas.items() if name.endswith(".MLService")), {})
        for key in SCHEMA:
            fields = fields.get(key, {})
        if "modelUri" in fields.get("model", {}).get("properties", {}) and "storage" not in fields:
            yield Finding(
                "t9k.old-api",
                "the cluster's T9k has the old form of the API",
                "an MLService there has model.modelUri, and neither storage nor containersResources "
                "(T9k before 2024-07)",
                "upgrade T9k, or use target: {kind: deployment, …}",
            )

    def adopt(self, asked: Asked, lock: Lock, named: str, get: Get) -> Adoption:
        if named != asked.name:
            what = f"a delivery called {asked.name} cannot adopt MLService {named}"
            why = "the MLService is the address of the service, and holds every release of it"
            raise Refused(Finding("t9k.another-name", what, why, f"set the spec's name to {named}"))
        return super().adopt(asked, lock, named, get)

    def read(self, live: Observed, get: Get) -> Found:
        ref, releases = live.resource.ref, live.resource.spec["spec"]["releases"]
        names = [release["name"] for release in releases]
        if len(names) > 1:
            what, why = f"{ref} has {len(names)} releases", f"a delivery begins with one: {', '.join(names)}"
            fix = "give one of them all of the traffic, and remove the others from spec.releases"
            raise Refused(Finding("t9k.several-releases", what, why, fix))
        predictor = releases[0]["predictor"]
        model, pvc = predictor["model"], (predictor.get("storage") or {}).get("pvc")
        runtime = get(Ref(ML_SERVICE_RUNTIME, model["runtime"]))
        if runtime is None:
            raise refusal(ref, f"its MLServiceRuntime {model['runtime']} is gone", "bring it back, then run again")
        template = runtime.resource.spec["spec"]["template"]["spec"]
        base, words = engine_of([found for found in template["containers"] if found["name"] == ENGINE])
        over = (found for found in predictor.get("containersResources") or () if found["name"] == ENGINE)
        words = filled(words, model.get("parameters") or {})
        inside = relative(model_of(words), pvc.get("mountPath", MOUNT)) if pvc else None
        if pvc is None or inside is None:
            raise not_on_a_claim(ref, model_of(words))
        folder = folder_of(ref, f"{pvc.get('subPath', '')}/{inside}")
        count = 0 if _true(pods.condition(live.status, "Paused")) else int(predictor.get("minReplicas", 1))
        known = {"pods": {"prefix": f"{ref.name}-predict-{names[0]}-"}, "entry": names[0]}
        return Found(predictor, base | next(over, {}), words, pvc["name"], folder, count, known)


def _entry(delivery: str, release: Release) -> Object:
    if not isinstance(release.payload, T9kPayload | T9kAdopted):
        raise TypeError(f"release {release.id} is of another target")
    return release.payload.entry(delivery, release)


def _shares(want: Desired) -> dict[str, int]:
    """By the entries' names, in the releases' order: the default's, the canary's."""
    weighed = [release for release in want.releases if release.id in want.shares]
    return {_entry(want.delivery, release)["name"]: want.shares[release.id] for release in weighed}


def _row(release: str, status: Mapping[str, Any]) -> Mapping[str, Any]:
    """What the MLService says of one of its entries."""
    return next((row for row in status.get("releases") or () if row["name"] == release), {})


def _others_down(release: str, status: Mapping[str, Any]) -> bool:
    return any(not row.get("ready") for row in status.get("releases") or () if row["name"] != release)


def _true(condition: Mapping[str, Any]) -> bool:
    return str(condition.get("status")).lower() == "true"


def _at(told: Any) -> Readiness:
    """Keys go there, and people paste it."""
    if url := base_url(told):
        return Current(url)
    fix = "see the status of the MLService, and who writes it"
    return Failed(Finding("t9k.bad-address", "the MLService has an address that is none", f"{told!r:.100}", fix))
