"""What all cluster targets have beside a release: the claim of the models, and the Jobs that run steps near them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

from pydantic import TypeAdapter

from delivery.diagnosis import pods
from delivery.findings import Finding, Refused
from delivery.release import Lock
from delivery.resources import Ref, Resource, World, digest
from delivery.spec import SecretRef, Storage
from delivery.targets import Failed, Readiness, StepRun
from delivery.targets.manifests import manifest
from delivery.targets.pod import CONFIG, MOUNT, claim_name, mount_secrets, schedule

SECRET_REF: TypeAdapter[SecretRef] = TypeAdapter(SecretRef)


def models_claim(name: str, lock: Lock, storage: Storage) -> Resource:
    """The claim that holds the models; without ``storage.size``, three times the model."""
    made = manifest("storage.yaml", "PersistentVolumeClaim")
    size = storage.size or f"{max(1, math.ceil(3 * lock.snapshot.size / 2**30))}Gi"
    made["spec"] |= {"accessModes": [storage.access], "resources": {"requests": {"storage": str(size)}}}
    made["spec"] |= {"storageClassName": storage.storage_class} if storage.storage_class else {}
    made["bind"] = {"any_size": storage.size is None}
    return Resource(Ref("PersistentVolumeClaim", claim_name(name, storage)), "storage", name, made)


def step_job(run: StepRun) -> tuple[Resource, ...]:
    """``StepRun.frozen.payload`` says the release's ``image``, ``claim``, ``pod`` (as JSON) and ``devices``."""
    if run.frozen is None:
        raise Refused(Finding(f"the {run.name} step has no release", "it needs its pod's settings", "this is a fault of Model Delivery"))
    settings, given = run.frozen.payload, manifest("step.yaml", "ConfigMap")
    pulled = settings["image"] if run.name == "fetch" else None
    name = f"{run.delivery}-{run.name}-{digest([run.input, run.stage, run.attempt, run.try_, run.runner.image, pulled])}"
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
        bind = {"servers": run.release} if run.name == "load" else {}
    pulls = [*(settings["pod"]["image_pull_secrets"] if run.name == "fetch" else ()), *run.runner.image_pull_secrets]
    if pulls:
        pod["imagePullSecrets"] = [{"name": secret} for secret in dict.fromkeys(pulls)]
    mount_secrets(pod, _secrets(json.loads(run.input)))
    return (
        Resource(Ref("ConfigMap", name), "step", run.delivery, given | {"bind": bind}),
        Resource(Ref("Job", name), "step", run.delivery, job | {"bind": bind}),
    )


def job_state(ref: Ref, world: World) -> Readiness:
    """Current("started") or Current("ended"); Failed when it cannot start, or was ended from outside."""
    seen = world.objects.get(ref)
    if seen is None:
        return Failed(Finding(f"the Job {ref.name} is gone", "somebody deleted it while it was waited for", "run again"), retryable=True)
    mine = [pod for pod in world.beside["Pod"] if pod["metadata"]["labels"].get("batch.kubernetes.io/job-name") == ref.name]
    return pods.step(mine, world.beside["Event"], world.beside["Node"], ref.name, finished=bool(seen.status["finished"]))


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
