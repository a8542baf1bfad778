"""Plain Kubernetes: a Deployment and a Service a release; a stable Service, or a gateway's HTTPRoute, in front."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version

from delivery.diagnosis import pods
from delivery.findings import Finding, Refused
from delivery.release import Address, Capabilities, Desired, Lock, Payload, Release
from delivery.resources import Ref, Resource, World
from delivery.spec import Serving, Storage
from delivery.targets import Current, InProgress, Readiness, StepRun
from delivery.targets.manifests import manifest
from delivery.targets.near import job_state, models_claim, step_job
from delivery.targets.pod import CONFIG, MOUNT, PORT, claim_name, serve, startup_seconds
from delivery.targets.route import Route, pods_of

FILE = "deployment.yaml"
MARGIN_SECONDS = 60


@dataclass(frozen=True)
class Deployment:
    """``gateway``: ``NAME`` or ``NAMESPACE/NAME`` of a Gateway; without one the stable Service selects one release."""

    namespace: str
    gateway: str | None = None
    hostname: str | None = None

    @property
    def can(self) -> Capabilities:
        return self._route.can

    def address(self, name: str, port: int) -> Address:
        return self._route.address(name)

    @property
    def _route(self) -> Route:
        return Route(self.namespace, self.gateway, self.hostname)

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
        return (models_claim(name, lock, storage),)

    def compose(self, want: Desired) -> tuple[Resource, ...]:
        releases = [resource for release in want.releases for resource in self._release(want.delivery, release)]
        return (*releases, self._route.compose(want)) if want.address else tuple(releases)

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

    def step(self, run: StepRun) -> tuple[Resource, ...]:
        return step_job(run)

    def step_state(self, ref: Ref, world: World) -> Readiness:
        return job_state(ref, world)

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
            pods_of(world, ref.name), world.beside["Event"], world.beside["Node"], status, claim.status if claim else None, ref.name
        )

    def routed(self, want: Desired, world: World) -> Readiness:
        return self._route.routed(want, world)
