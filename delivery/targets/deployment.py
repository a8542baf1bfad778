"""Plain Kubernetes: a Deployment and a Service a release; a stable Service, or a gateway's HTTPRoute, in front."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from pydantic import TypeAdapter

from delivery.diagnosis import pods
from delivery.findings import Finding, Refused
from delivery.release import Address, Capabilities, Desired, Lock, Payload, Release
from delivery.resources import Ref, Resource, World, digest
from delivery.spec import SecretRef, Serving, Storage
from delivery.targets import Current, Failed, InProgress, Readiness, StepRun
from delivery.targets.manifests import manifest
from delivery.targets.pod import CONFIG, MOUNT, PORT, claim_name, mount_secrets, schedule, serve, startup_seconds

FILE = "deployment.yaml"
NOBODY = "none"
MARGIN_SECONDS = 60
SECRET_REF: TypeAdapter[SecretRef] = TypeAdapter(SecretRef)


@dataclass(frozen=True)
class Deployment:
    """``gateway``: ``NAME`` or ``NAMESPACE/NAME`` of a Gateway; without one the stable Service selects one release."""

    namespace: str
    gateway: str | None = None
    hostname: str | None = None

    @property
    def can(self) -> Capabilities:
        return Capabilities(dark_first=True, weights="percent" if self.gateway else "none")

    def address(self, name: str, port: int) -> Address:
        return Address(self.hostname, 80) if self.gateway and self.hostname else Address(f"{name}.{self.namespace}.svc", PORT)

    def root(self, storage: Storage) -> str | None:
        return MOUNT

    def main(self, delivery: str, release: str) -> Ref:
        return Ref("Deployment", f"{delivery}-{release}")

    def payload(self, name: str, lock: Lock, serving: Serving, storage: Storage) -> Payload:
        if lock.image is None:
            raise Refused(Finding("no image", "a pod needs one", "name it in target.image"))
        made = manifest(FILE, "Deployment")
        serve(made["spec"]["template"], name, lock, serving, storage)
        made["metadata"]["labels"]["app.kubernetes.io/version"] = version("model-delivery")
        made["spec"]["progressDeadlineSeconds"] = startup_seconds(serving, lock) + MARGIN_SECONDS
        return {
            "deployment": made,
            "service": manifest(FILE, "Service"),
            "chat_template": serving.chat_template,
            "names": list(serving.model_names),
            "args": list(serving.args),
            "api_key": None if serving.api_key is None else serving.api_key.model_dump(mode="json"),
            "startup_seconds": startup_seconds(serving, lock),
            "pod": serving.pod.model_dump(mode="json"),
            "claim": claim_name(name, storage),
            "image": lock.image,
            "devices": {key: int(value) for key, value in serving.resources.limits.items() if "/" in key},
        }

    def storage(self, name: str, lock: Lock, storage: Storage) -> tuple[Resource, ...]:
        made = manifest("storage.yaml", "PersistentVolumeClaim")
        size = storage.size or f"{max(1, math.ceil(3 * lock.snapshot.size / 2**30))}Gi"
        made["spec"] |= {"accessModes": [storage.access], "resources": {"requests": {"storage": str(size)}}}
        made["spec"] |= {"storageClassName": storage.storage_class} if storage.storage_class else {}
        made["bind"] = {"any_size": storage.size is None}
        return (Resource(Ref("PersistentVolumeClaim", claim_name(name, storage)), "storage", name, made),)

    def compose(self, want: Desired) -> tuple[Resource, ...]:
        releases = [resource for release in want.releases for resource in self._release(want.delivery, release)]
        if want.address is None:
            return tuple(releases)
        route = self._http_route(want) if self.gateway else _stable_service(want)
        return (*releases, route)

    def _release(self, delivery: str, release: Release) -> Iterator[Resource]:
        main = self.main(delivery, release.id)
        made = copy.deepcopy(dict(release.payload["deployment"]))
        template, chat = made["spec"]["template"], release.payload["chat_template"]
        made["spec"] |= {"replicas": release.replicas, "selector": {"matchLabels": {"model-delivery/object": main.name}}}
        template["metadata"]["labels"] = {
            "model-delivery/object": main.name,
            "model-delivery/delivery": delivery,
            "model-delivery/release": release.id,
            "model-delivery/role": "release",
            "app.kubernetes.io/name": delivery,
        }
        if chat is not None:
            config = copy.deepcopy({"metadata": {}, "data": {"chat_template.jinja": chat}})
            yield Resource(Ref("ConfigMap", main.name), "release", delivery, config, release.id)
            template["spec"]["volumes"].append({"name": "config", "configMap": {"name": main.name}})
            template["spec"]["containers"][0]["volumeMounts"].append({"name": "config", "mountPath": CONFIG, "readOnly": True})
        yield Resource(main, "release", delivery, made, release.id)
        service = copy.deepcopy(dict(release.payload["service"]))
        service["spec"]["selector"] = {"model-delivery/object": main.name}
        yield Resource(Ref("Service", main.name), "release", delivery, service, release.id)

    def _http_route(self, want: Desired) -> Resource:
        made = manifest(FILE, "HTTPRoute")
        namespace, _, gateway = (self.gateway or "").rpartition("/")
        made["spec"]["parentRefs"] = [{"name": gateway} | ({"namespace": namespace} if namespace else {})]
        made["spec"] |= {"hostnames": [self.hostname]} if self.hostname else {}
        made["spec"]["rules"][0]["backendRefs"] = [
            {"name": f"{want.delivery}-{release}", "port": PORT, "weight": share} for release, share in want.shares.items()
        ]
        return Resource(Ref("HTTPRoute", want.delivery), "route", want.delivery, made)

    def step(self, run: StepRun) -> tuple[Resource, ...]:
        if run.frozen is None:
            raise Refused(
                Finding(f"the {run.name} step has no release", "it needs its pod's settings", "this is a fault of Model Delivery")
            )
        name = f"{run.delivery}-{run.name}-{digest([run.input, run.stage, run.attempt, run.try_, run.runner.image])}"
        settings, given = run.frozen.payload, manifest("step.yaml", "ConfigMap")
        given["data"]["input.json"] = run.input
        job = manifest("step.yaml", "Job")
        template = job["spec"]["template"]
        template["metadata"]["labels"] = {"model-delivery/delivery": run.delivery, "model-delivery/role": "step"}
        pod = template["spec"]
        step, image = pod["containers"]
        step |= {"image": run.runner.image, "resources": dict(run.runner.resources)}
        step["args"][0] = run.name
        pod["volumes"][0]["configMap"]["name"] = name
        bind: dict[str, Any] = {}
        if run.name == "fetch":
            image["image"] = settings["image"]
            pod["volumes"].append({"name": "models", "persistentVolumeClaim": {"claimName": settings["claim"]}})
            step["volumeMounts"].append({"name": "models", "mountPath": MOUNT})
            schedule(pod, settings["pod"])
            bind = {"hub": CONFIG, "near": settings["devices"]}
        else:
            pod["containers"] = [step]
        pulls = [*(settings["pod"]["image_pull_secrets"] if run.name == "fetch" else ()), *run.runner.image_pull_secrets]
        if pulls:
            pod["imagePullSecrets"] = [{"name": secret} for secret in dict.fromkeys(pulls)]
        mount_secrets(pod, _secrets(json.loads(run.input)))
        return (
            Resource(Ref("ConfigMap", name), "step", run.delivery, given | {"bind": bind}),
            Resource(Ref("Job", name), "step", run.delivery, job | {"bind": bind}),
        )

    def step_state(self, ref: Ref, world: World) -> Readiness:
        seen = world.objects.get(ref)
        if seen is None:
            return InProgress("the Job is not there yet")
        mine = [pod for pod in world.beside["Pod"] if pod["metadata"]["labels"].get("batch.kubernetes.io/job-name") == ref.name]
        return pods.step(mine, world.beside["Event"], world.beside["Node"], ref.name, finished=bool(seen.status["finished"]))

    def readiness(self, release: Release, world: World) -> Readiness:
        ref = self.main(world.delivery, release.id)
        seen = world.objects.get(ref)
        if seen is None:
            return InProgress("the Deployment is not there yet")
        status, wanted = seen.status, release.replicas
        current = status.get("observedGeneration", 0) >= status["generation"] and status.get("updatedReplicas", 0) >= wanted
        if current and status.get("availableReplicas", 0) >= wanted and not status.get("unavailableReplicas", 0):
            return Current(f"http://{ref.name}.{self.namespace}.svc:{PORT}")
        claim = world.objects.get(Ref("PersistentVolumeClaim", str(release.payload["claim"])))
        return pods.engine(
            _pods_of(world, ref.name), world.beside["Event"], world.beside["Node"], status, claim.status if claim else None, ref.name
        )

    def routed(self, want: Desired, world: World) -> Readiness:
        if want.address is None or not want.shares:
            return Current("")
        if self.gateway:
            return _route_accepted(want, world)
        (owner,) = want.shares
        seen = world.objects.get(Ref("Service", want.delivery))
        if seen is None or seen.resource.spec["spec"].get("selector") != {"model-delivery/object": f"{want.delivery}-{owner}"}:
            return InProgress("the Service does not select the release yet")
        allowed = {pod["metadata"]["name"] for pod in _pods_of(world, f"{want.delivery}-{owner}")}
        slices = [s for s in world.beside["EndpointSlice"] if s["metadata"]["labels"].get("kubernetes.io/service-name") == want.delivery]
        ready = [e.get("targetRef", {}).get("name") for s in slices for e in s.get("endpoints") or () if e["conditions"].get("ready")]
        if not ready or not set(ready) <= allowed:
            return InProgress("the Service's endpoints have not moved yet")
        return Current(want.address.url)


def _stable_service(want: Desired) -> Resource:
    made = manifest(FILE, "Service")
    if len(want.shares) > 1:
        raise Refused(Finding("a Service cannot weigh traffic", f"wanted: {want.shares}", "name a gateway, or use strategy: blue-green"))
    (owner,) = want.shares or (NOBODY,)
    made["spec"]["selector"] = {"model-delivery/object": f"{want.delivery}-{owner}"}
    return Resource(Ref("Service", want.delivery), "route", want.delivery, made)


def _route_accepted(want: Desired, world: World) -> Readiness:
    seen = world.objects.get(Ref("HTTPRoute", want.delivery))
    if seen is None:
        return InProgress("the HTTPRoute is not there yet")
    parents = seen.status.get("parents") or ()
    for condition in (c for parent in parents for c in parent["conditions"]):
        current = condition.get("observedGeneration", 0) >= seen.status["generation"]
        if condition["type"] in ("Accepted", "ResolvedRefs") and condition["status"] == "False" and current:
            what = f"the gateway does not take the HTTPRoute: {condition['reason']}"
            return Failed(Finding(what, condition.get("message", ""), "correct target.gateway and target.hostname"))
    taken = [
        all(
            any(
                c["type"] == kind and c["status"] == "True" and c["observedGeneration"] >= seen.status["generation"]
                for c in p["conditions"]
            )
            for kind in ("Accepted", "ResolvedRefs")
        )
        for p in parents
    ]
    wanted = {f"{want.delivery}-{release}": share for release, share in want.shares.items()}
    backends = seen.resource.spec["spec"]["rules"][0].get("backendRefs") or ()
    if not any(taken) or {b["name"]: b["weight"] for b in backends} != wanted:
        return InProgress("no gateway has taken the HTTPRoute yet")
    return Current(want.address.url if want.address else "")


def _pods_of(world: World, name: str) -> list[Mapping[str, Any]]:
    return [pod for pod in world.beside["Pod"] if pod["metadata"]["labels"].get("model-delivery/object") == name]


def _secrets(given: Any) -> Iterator[SecretRef]:
    """Every reference to a Kubernetes Secret in a step's input."""
    if isinstance(given, dict):
        if set(given) == {"kube"}:
            yield SECRET_REF.validate_python(given)
            return
        for value in given.values():
            yield from _secrets(value)
    elif isinstance(given, list):
        for value in given:
            yield from _secrets(value)
