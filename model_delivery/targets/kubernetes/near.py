"""What cluster targets have in common beside a release: the claim of the models, the Jobs that run steps near them, the route."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from pydantic import TypeAdapter

from model_delivery.base.findings import Finding, Refused
from model_delivery.base.secrets import SecretRef
from model_delivery.diagnosis import pods
from model_delivery.targets import StepRun
from model_delivery.targets.kubernetes.kinds import CLAIM, CONFIG_MAP, JOB
from model_delivery.targets.kubernetes.manifests import Object, manifest
from model_delivery.targets.kubernetes.pod import (
    CONFIG,
    MOUNT,
    PORT,
    claim_name,
    mount_secrets,
    schedule,
    startup_seconds,
)
from model_delivery.targets.kubernetes.route import Route
from model_delivery.values.readiness import Failed, Readiness
from model_delivery.values.release import Address, Capabilities, Desired, Lock, Payload, Release
from model_delivery.values.resources import Ref, Resource, World, digest
from model_delivery.values.serving import Serving, Storage

NEAR_MODELS = ("fetch", "verify")  # steps that work in the models' claim
SECRET_REF: TypeAdapter[SecretRef] = TypeAdapter(SecretRef)


@dataclass(frozen=True)
class Routed:
    """A target whose releases each have a Service, called ``DELIVERY-RELEASE`` and then ``backend``.

    ``gateway``: ``NAME`` or ``NAMESPACE/NAME`` of a Gateway; without one the stable Service selects one release.
    """

    namespace: str
    gateway: str | None = None
    hostname: str | None = None
    backend: ClassVar[str] = ""
    port: ClassVar[int] = PORT

    @property
    def can(self) -> Capabilities:
        return self._route.can

    def address(self, name: str, port: int) -> Address:
        return self._route.address(name)

    @property
    def _route(self) -> Route:
        return Route(self.namespace, self.gateway, self.hostname, self.backend, self.port)

    def root(self, storage: Storage) -> str | None:
        return MOUNT

    def storage(self, name: str, lock: Lock, storage: Storage) -> tuple[Resource, ...]:
        return (models_claim(name, lock, storage),)

    def compose(self, want: Desired) -> tuple[Resource, ...]:
        releases = [resource for release in want.releases for resource in self.release(want.delivery, release)]
        return (*releases, self._route.compose(want)) if want.address else tuple(releases)

    def release(self, delivery: str, release: Release) -> Iterator[Resource]:
        """Everything of one release."""
        raise NotImplementedError

    def step(self, run: StepRun) -> tuple[Resource, ...]:
        return step_job(run)

    def step_state(self, ref: Ref, world: World) -> Readiness:
        return job_state(ref, world)

    def routed(self, want: Desired, world: World) -> Readiness:
        return self._route.routed(want, world)


def settings(name: str, lock: Lock, serving: Serving, storage: Storage) -> Payload:
    """What of a release its steps, its connection and its wait need to know. Refused without an image."""
    if lock.image is None:
        raise Refused(Finding("todo", "no image", "a pod needs one", "name it in target.image"))
    return {
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


def chat_config(delivery: str, release: Release, name: str, pod: Object, engine: Object) -> Iterator[Resource]:
    """The ConfigMap of the release's chat template, where it has one, mounted into its engine."""
    if (chat := release.payload["chat_template"]) is not None:
        config = {"metadata": {}, "data": {"chat_template.jinja": chat}}
        yield Resource(Ref(CONFIG_MAP, name), "release", delivery, config, release.id)
        pod["volumes"].append({"name": "config", "configMap": {"name": name}})
        engine["volumeMounts"].append({"name": "config", "mountPath": CONFIG, "readOnly": True})


def claim_status(release: Release, world: World) -> Mapping[str, Any] | None:
    """Of the claim that the release reads its model from, where it has been looked at."""
    claim = world.objects.get(Ref(CLAIM, str(release.payload["claim"])))
    return claim.status if claim else None


def models_claim(name: str, lock: Lock, storage: Storage) -> Resource:
    """The claim that holds the models; without ``storage.size``, three times the model."""
    made = manifest("storage.yaml", "PersistentVolumeClaim")
    size = storage.size or f"{max(1, math.ceil(3 * lock.snapshot.size / 2**30))}Gi"
    made["spec"] |= {"accessModes": [storage.access], "resources": {"requests": {"storage": str(size)}}}
    made["spec"] |= {"storageClassName": storage.storage_class} if storage.storage_class else {}
    made["bind"] = {"any_size": storage.size is None}
    return Resource(Ref(CLAIM, claim_name(name, storage)), "storage", name, made)


def step_job(run: StepRun) -> tuple[Resource, ...]:
    """``StepRun.payload`` says the release's ``image``, ``claim``, ``pod`` (as JSON) and ``devices``."""
    if run.payload is None:
        raise Refused(
            Finding(
                "todo",
                f"the {run.name} step has no release",
                "it needs its pod's settings",
                "this is a fault of Model Delivery",
            )
        )
    payload, given = run.payload, manifest("step.yaml", "ConfigMap")
    pulled = payload["image"] if run.name == "fetch" else None
    name = (
        f"{run.delivery}-{run.name}-{digest([run.input, run.stage, run.attempt, run.try_, run.runner.image, pulled])}"
    )
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
    near = run.name in NEAR_MODELS
    image["image"] = payload["image"]
    pod["containers"] = [step, image] if run.name == "fetch" else [step]
    if near:
        pod["volumes"].append({"name": "models", "persistentVolumeClaim": {"claimName": payload["claim"]}})
        step["volumeMounts"].append({"name": "models", "mountPath": MOUNT})
        schedule(pod, payload["pod"])
        bind = {"hub": CONFIG, "near": payload["devices"]}
    elif run.name == "load":
        bind = {"servers": run.release}
    pulls = [*(payload["pod"]["image_pull_secrets"] if near else ()), *run.runner.image_pull_secrets]
    if pulls:
        pod["imagePullSecrets"] = [{"name": secret} for secret in dict.fromkeys(pulls)]
    mount_secrets(pod, _secrets(json.loads(run.input)))
    return (
        Resource(Ref(CONFIG_MAP, name), "step", run.delivery, given | {"bind": bind}),
        Resource(Ref(JOB, name), "step", run.delivery, job | {"bind": bind}),
    )


def job_state(ref: Ref, world: World) -> Readiness:
    """Current("started") or Current("ended"); Failed when it cannot start, or was ended from outside."""
    seen = world.objects.get(ref)
    if seen is None:
        return Failed(
            Finding("todo", f"the Job {ref.name} is gone", "somebody deleted it while it was waited for", "run again"),
            retryable=True,
        )
    mine = [
        pod for pod in world.beside["Pod"] if pod["metadata"]["labels"].get("batch.kubernetes.io/job-name") == ref.name
    ]
    return pods.step(
        mine, world.beside["Event"], world.beside["Node"], ref.name, finished=bool(seen.status["finished"])
    )


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
