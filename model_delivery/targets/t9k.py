"""T9k: one MLService is the route and holds every release as an entry; each entry names an MLServiceRuntime, called by the hash of its content."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from model_delivery.base.findings import Finding, Refused
from model_delivery.diagnosis import pods
from model_delivery.models.store import folder_name
from model_delivery.targets import StepRun
from model_delivery.targets.kubernetes.kinds import CONFIG_MAP, POD
from model_delivery.targets.kubernetes.manifests import Object, manifest
from model_delivery.targets.kubernetes.near import claim_status, job_state, models_claim, settings, step_job
from model_delivery.targets.kubernetes.pod import (
    CONFIG,
    MOUNT,
    claim_name,
    devices,
    environment,
    literal,
    pod_labels,
    schedule,
    startup_seconds,
    verbatim,
)
from model_delivery.targets.kubernetes.route import owned_route, pods_of
from model_delivery.values.kind import Demand, Kind
from model_delivery.values.readiness import Current, Failed, InProgress, Readiness
from model_delivery.values.release import Address, Capabilities, Desired, Lock, Payload, Release
from model_delivery.values.resources import Ref, Resource, World, digest
from model_delivery.values.serving import Serving, Storage


def _demand(body: Mapping[str, Any]) -> Demand:
    predictors = {entry["name"]: entry["predictor"] for entry in body["spec"]["releases"]}
    return {
        name: (int(predictor.get("minReplicas", 1)), devices(predictor.get("containersResources", ())))
        for name, predictor in predictors.items()
    }


ML_SERVICE = Kind(
    "MLService",
    "tensorstack.dev",
    "v1beta1",
    "mlservices",
    foreground=True,
    optional=True,
    eventful=True,
    demand=_demand,
)
ML_SERVICE_RUNTIME = Kind(
    "MLServiceRuntime", "tensorstack.dev", "v1beta1", "mlserviceruntimes", steady=True, optional=True
)
NOTEBOOK = Kind("Notebook", "tensorstack.dev", "v1beta1", "notebooks", optional=True)
KINDS = (ML_SERVICE, ML_SERVICE_RUNTIME)
FILE = "t9k.yaml"
MARGIN_SECONDS = 60
DEADLINE = "serving.knative.dev/progress-deadline"
WAITING = ("", "PredictorNotReady")  # the reasons of a service that is simply not ready yet


@dataclass(frozen=True)
class T9k:
    """``queue``: of T9k's own scheduler; without one the cluster's default scheduler places the pods."""

    namespace: str
    queue: str | None = None

    @property
    def can(self) -> Capabilities:
        return Capabilities(dark_first=False, weights="percent")

    def address(self, name: str, port: int) -> Address:
        """The name inside the cluster; the domain outside is T9k's to choose: ``routed`` gives ``status.address.url``."""
        return Address(f"{name}.{self.namespace}", 80)

    def root(self, storage: Storage) -> str | None:
        return MOUNT

    def main(self, delivery: str, release: str) -> Ref:
        """The pods of a release: they carry this name as ``model-delivery/object``."""
        return Ref(POD, f"{delivery}-{release}")

    def payload(self, name: str, lock: Lock, serving: Serving, storage: Storage) -> Payload:
        """Refused where a text would meet Go's templates in a place where nobody documents whether they are filled in."""
        chat = serving.chat_template
        config = None if chat is None else f"{name}-{digest(chat)}"
        runtime, limits = (
            _runtime(lock, serving, config),
            {key: str(value) for key, value in serving.resources.limits.items()},
        )
        predictor = manifest(FILE, "MLService")["spec"]["releases"][0]["predictor"]
        predictor["model"] = {
            "runtime": f"{name}-{digest(runtime['spec'])}",
            "parameters": predictor["model"]["parameters"] | {"MODEL_NAME": serving.model_names[0]},
        }
        predictor["storage"]["pvc"] |= {"name": claim_name(name, storage), "subPath": folder_name(lock.snapshot)}
        predictor["maxReplicas"] = serving.replicas.max
        if limits:
            predictor["containersResources"][0]["resources"]["limits"] = limits
        else:
            del predictor["containersResources"]
        return {
            "runtime": runtime,
            "predictor": predictor,
            "config": config,
            **settings(name, lock, serving, storage),
        }

    def storage(self, name: str, lock: Lock, storage: Storage) -> tuple[Resource, ...]:
        claim = models_claim(name, lock, storage)
        if not storage.notebook:
            return (claim,)
        made = manifest(FILE, "Notebook")
        made["spec"]["template"]["spec"]["volumes"][0]["persistentVolumeClaim"]["claimName"] = claim.ref.name
        return (claim, Resource(Ref(NOTEBOOK, claim.ref.name), "storage", name, made))

    def compose(self, want: Desired) -> tuple[Resource, ...]:
        """Releases of the same content share their runtime. A service cannot be without a default: no traffic, no service."""
        beside = {made.ref: made for release in want.releases for made in _beside(want.delivery, release)}
        return (*beside.values(), self._service(want)) if want.address and want.shares else tuple(beside.values())

    def _service(self, want: Desired) -> Resource:
        made = manifest(FILE, "MLService")
        default, *canary = [release for release in want.releases if release.id in want.shares]
        made["spec"] |= {
            "default": _name(default),
            "releases": [_entry(want.delivery, release) for release in want.releases],
        }
        if canary:
            made["spec"] |= {"canary": _name(canary[0]), "canaryTrafficPercent": want.shares[canary[0].id]}
        if self.queue:
            made["spec"]["scheduler"] = {"t9kScheduler": {"queue": self.queue}}
        for adopted in (release.adopted for release in want.releases if release.adopted):
            made["metadata"] = copy.deepcopy(adopted["metadata"])
        return owned_route(Resource(Ref(ML_SERVICE, want.delivery), "route", want.delivery, made), want)

    def step(self, run: StepRun) -> tuple[Resource, ...]:
        return step_job(run)

    def step_state(self, ref: Ref, world: World) -> Readiness:
        return job_state(ref, world)

    def readiness(self, release: Release, world: World) -> Readiness:
        """There is no observedGeneration: the service must be Ready and this release ready. An address says nothing, it is set before."""
        seen = world.objects.get(Ref(ML_SERVICE, world.delivery))
        if seen is None:
            return InProgress("the MLService is not there yet")
        mine = _told_of(_name(release), seen.status)
        service, paused = _condition(seen.status, "Ready"), _condition(seen.status, "Paused")
        if _true(paused):
            return Failed(
                Finding(
                    "todo",
                    f"the MLService {world.delivery} is paused",
                    "somebody paused it",
                    "resume it in T9k's console, then run again",
                )
            )
        up = mine.get("ready") and mine.get("url") and mine.get("readyReplicas", release.replicas) >= release.replicas
        if up and _true(service):
            return Current(str(mine["url"]).rstrip("/"))
        if mine.get("ready"):
            return InProgress(
                f"the release is ready, the MLService is not yet: {_said(service) or 'no reason is given'}"
            )
        return self._why_not(release, world, mine, service)

    def _why_not(
        self, release: Release, world: World, mine: Mapping[str, Any], service: Mapping[str, Any]
    ) -> Readiness:
        """The pods know best; then the events of what T9k made for the release, and last what T9k says itself."""
        name, events = f"{world.delivery}-predict-{_name(release)}", world.beside["Event"]
        its = pods_of(world, f"{world.delivery}-{release.id}")
        no = [
            e["message"]
            for e in events
            if e["involvedObject"].get("name", "").startswith(name) and "forbidden" in e.get("message", "")
        ]
        status = (
            {"conditions": [{"type": "ReplicaFailure", "status": "True", "message": no[-1]}]} if no and not its else {}
        )
        state = pods.engine(its, events, world.beside["Node"], status, claim_status(release, world), name)
        if its or not isinstance(state, InProgress):
            return state
        about = [(e["involvedObject"]["kind"], e["involvedObject"].get("name"), e.get("message", "")) for e in events]
        own = [message for kind, whose, message in about if (kind, whose) == ("MLService", world.delivery)]
        if service.get("reason", "") not in WAITING and str(service.get("status")).lower() == "false":
            fix = f"correct what it names; kubectl describe mlservice {world.delivery} says more"
            what = f"T9k cannot start the release: {service['reason']}"
            return Failed(
                Finding("todo", what, str(mine.get("message") or service.get("message", "")), fix, tuple(own))
            )
        return InProgress("; ".join(filter(None, [_said(mine) or _said(service), *own[-1:]])) or state.why)

    def routed(self, want: Desired, world: World) -> Readiness:
        """By ``defaultRelease``, ``canaryRelease`` and each release's ``trafficPercent``; the endpoint is ``address.url``."""
        if want.address is None or not want.shares:
            return Current("")
        seen = world.objects.get(Ref(ML_SERVICE, want.delivery))
        if seen is None:
            return InProgress("the MLService is not there yet")
        shares = {_name(release): want.shares[release.id] for release in want.releases if release.id in want.shares}
        default, *canary = shares
        now = seen.status.get("defaultRelease"), seen.status.get("canaryRelease") or None
        told = {one: _told_of(one, seen.status).get("trafficPercent", share) for one, share in shares.items()}
        if now != (default, next(iter(canary), None)) or told != shares:
            return InProgress(f"the traffic has not moved yet: default {now[0]}, canary {now[1]}, percent {told}")
        url = (seen.status.get("address") or {}).get("url")
        return Current(str(url).rstrip("/")) if url else InProgress("the MLService has no address yet")


def _runtime(lock: Lock, serving: Serving, config: str | None) -> Object:
    made = manifest(FILE, "MLServiceRuntime")
    template = made["spec"]["template"]
    pod, (engine,) = template["spec"], template["spec"]["containers"]
    engine["image"] = lock.image
    names = serving.model_names
    if len(names) > 1:
        engine["args"] = [engine["args"][0], "--served-model-name", "{{.MODEL_NAME}}", *names[1:]]
    engine["args"] += [f"--chat-template={CONFIG}/chat_template.jinja"] if config else []
    engine["args"] += [verbatim(literal(word)) for word in serving.args]
    env = environment(serving)
    if serving.startup_timeout is not None:
        env = [{"name": "VLLM_ENGINE_READY_TIMEOUT_S", "value": str(startup_seconds(serving, lock))}, *env]
    engine |= {"env": env} if env else {}
    limits = {key: str(value) for key, value in serving.resources.limits.items()}
    engine["resources"] = {"limits": limits} if limits else {}
    if serving.pod.shm is not None:
        pod["volumes"][0]["emptyDir"]["sizeLimit"] = str(serving.pod.shm)
    if config is not None:
        pod["volumes"].append({"name": "config", "configMap": {"name": config}})
        engine["volumeMounts"].append({"name": "config", "mountPath": CONFIG, "readOnly": True})
    schedule(pod, serving.pod.model_dump(mode="json"))
    pod["volumes"] += [dict(volume) for volume in serving.pod.volumes]
    engine["volumeMounts"] += [dict(mount) for mount in serving.pod.volume_mounts]
    deadline = {DEADLINE: f"{startup_seconds(serving, lock) + MARGIN_SECONDS}s"}
    template["metadata"]["annotations"] = deadline | dict(serving.pod.annotations)
    _no_template({"serving.env": env, "serving.pod": serving.pod.model_dump(mode="json")})
    return made


def _no_template(fields: Mapping[str, Any]) -> None:
    found = [field for field, value in fields.items() if "{{" in str(value)]
    if found:
        why = "T9k fills Go templates in a runtime's arguments; whether it does so here is not documented, so {{ can be neither kept nor escaped"
        raise Refused(
            *(
                Finding("todo", f"{field} holds {{{{", why, "leave it out, or put it into serving.args")
                for field in found
            )
        )


def _name(release: Release) -> str:
    """What its entry of the service is called."""
    return str(release.adopted["entry"]) if release.adopted else release.id


def _entry(delivery: str, release: Release) -> Object:
    """Our labels reach the pods by the predictor's template (as the manuals say of annotations; of labels it is inferred)."""
    if release.adopted is not None:
        predictor = copy.deepcopy(dict(release.payload["live"]))
        predictor |= {"minReplicas": release.replicas} if predictor.get("minReplicas", 1) != release.replicas else {}
        return {"name": _name(release), "predictor": predictor}
    predictor = copy.deepcopy(dict(release.payload["predictor"]))
    predictor |= {"minReplicas": release.replicas, "maxReplicas": max(release.replicas, predictor["maxReplicas"])}
    predictor["template"]["metadata"]["labels"] = pod_labels(delivery, release.id)
    return {"name": release.id, "predictor": predictor}


def _beside(delivery: str, release: Release) -> Iterator[Resource]:
    if release.adopted is not None:
        return  # its runtime is somebody's, and may serve others
    payload = copy.deepcopy(dict(release.payload))
    yield Resource(
        Ref(ML_SERVICE_RUNTIME, payload["predictor"]["model"]["runtime"]), "release", delivery, payload["runtime"]
    )
    if payload["config"] is not None:
        config = {"metadata": {}, "data": {"chat_template.jinja": payload["chat_template"]}}
        yield Resource(Ref(CONFIG_MAP, payload["config"]), "release", delivery, config)


def _told_of(release: str, status: Mapping[str, Any]) -> Mapping[str, Any]:
    return next((one for one in status.get("releases") or () if one["name"] == release), {})


def _condition(status: Mapping[str, Any], kind: str) -> Mapping[str, Any]:
    return next((one for one in status.get("conditions") or () if one["type"] == kind), {})


def _true(condition: Mapping[str, Any]) -> bool:
    return str(condition.get("status")).lower() == "true"


def _said(told: Mapping[str, Any]) -> str:
    return ": ".join(str(told[key]) for key in ("reason", "message") if told.get(key))
