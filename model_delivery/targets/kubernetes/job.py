"""A step near the data: a ConfigMap with its input, and the Job that runs it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from pydantic import TypeAdapter

from model_delivery.base import Finding, Refused, SecretRef
from model_delivery.base.manifests import manifest
from model_delivery.diagnosis import pods
from model_delivery.targets.kubernetes.kinds import CONFIG_MAP, JOB
from model_delivery.targets.kubernetes.payload import ClusterPayload
from model_delivery.targets.kubernetes.pod import CONFIG, MOUNT, mount_secrets, pull_secrets, schedule
from model_delivery.targets.protocol import StepRun
from model_delivery.values import Failed, Ref, Resource, StepState, World, digest

FETCH = "fetch"
NEAR_MODELS = (FETCH, "verify")  # steps that work in the models' claim
SECRET_REF: TypeAdapter[SecretRef] = TypeAdapter(SecretRef)


def step_job(run: StepRun) -> tuple[Resource, ...]:
    """The fetch Job's second container pulls the serving image, which proves its pull
    secret.
    """
    payload = run.payload
    if not isinstance(payload, ClusterPayload):
        what, why = f"the {run.name} step has no release", "it needs its pod's settings"
        raise Refused(Finding("step.no-release", what, why, "this is a fault of Model Delivery"))
    pulled = payload.image if run.name == FETCH else None
    identity = [run.input, run.stage, run.attempt, run.try_, run.runner.image, pulled]
    name = f"{run.delivery}-{run.name}-{digest(identity)}"
    given, job = manifest("step.yaml", "ConfigMap"), manifest("step.yaml", "Job")
    given["data"]["input.json"] = run.input
    template = job["spec"]["template"]
    template["metadata"]["labels"] = {"model-delivery/delivery": run.delivery, "model-delivery/role": "step"}
    pod = template["spec"]
    step, image = pod["containers"]
    step |= {"image": run.runner.image, "resources": dict(run.runner.resources)}
    step["args"][0] = run.name
    pod["volumes"][0]["configMap"]["name"] = name
    image["image"] = payload.image
    if pulled is None:
        pod["containers"].remove(image)
    bind: dict[str, Any] = {"servers": run.release} if run.name == "load" else {}
    pulls = run.runner.image_pull_secrets
    if run.name in NEAR_MODELS:
        pod["volumes"].append({"name": "models", "persistentVolumeClaim": {"claimName": payload.claim}})
        step["volumeMounts"].append({"name": "models", "mountPath": MOUNT})
        schedule(pod, payload.pod)
        bind = {"hub": CONFIG, "near": payload.devices}
        pulls = (*payload.pod["image_pull_secrets"], *pulls)
    pull_secrets(pod, pulls)
    mount_secrets(pod, _secrets(json.loads(run.input)))
    made = {Ref(CONFIG_MAP, name): given, Ref(JOB, name): job}
    return tuple(Resource(ref, "step", run.delivery, spec | {"bind": bind}) for ref, spec in made.items())


def job_state(ref: Ref, world: World) -> StepState:
    """Failed when it cannot start, or was ended from outside."""
    seen = world.objects.get(ref)
    if seen is None:
        what, why = f"the Job {ref.name} is gone", "somebody deleted it while it was waited for"
        return Failed(Finding("step.job-gone", what, why, "run again"), retryable=True)
    label, finished = "batch.kubernetes.io/job-name", bool(seen.status["finished"])
    own = [pod for pod in world.beside["Pod"] if pod["metadata"]["labels"].get(label) == ref.name]
    return pods.step(own, world.beside, ref.name, finished=finished)


def _secrets(given: Any) -> Iterator[SecretRef]:
    """Every reference to a Kubernetes Secret in a step's input."""
    if isinstance(given, dict) and set(given) == {"kube"}:
        yield SECRET_REF.validate_python(given)
    elif isinstance(given, dict | list):
        for value in given.values() if isinstance(given, dict) else given:
            yield from _secrets(value)
