"""The steps of a delivery in a cluster: a Job each, near the data."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from typing import Any

from model_delivery.base import Finding, KubeSecret, Refused, SecretRef, manifest
from model_delivery.diagnosis import pods
from model_delivery.targets.kubernetes.kinds import CONFIG_MAP, JOB
from model_delivery.targets.kubernetes.release import (
    CONFIG,
    IDENTITY,
    MOUNT,
    ClusterPayload,
    labelled,
    mount_secrets,
    pull_secrets,
    schedule,
)
from model_delivery.targets.protocol import StepRun
from model_delivery.values import Ended, Failed, Observed, Ref, Resource, StepState, World, digest

FETCH = "fetch"
PULL = "-image"  # of the Job that pulls beside it
BOUND = {"load": "servers", "smoke": "replicas"}  # of a release, which the place names in the step's input
NEAR_MODELS = (FETCH, "verify", "gc")  # steps that work in the models' claim


def resources(run: StepRun) -> tuple[Resource, ...]:
    """Near the data: a ConfigMap with its input, and the Job that runs it. Beside the
    fetch, a Job of its own pulls the serving image, which proves its pull secret: of
    a pod that pulls, a kubelet tells nothing and gives no log.
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
    image["image"] = pulled
    pod["containers"].remove(image)
    bind: dict[str, Any] = {BOUND[run.name]: run.release} if run.name in BOUND else {}
    where = run.runner.pod.model_dump(mode="json") if run.runner.pod else payload.pod
    if run.name not in NEAR_MODELS:  # the image's own user: whose files a claim holds does not matter
        pod["securityContext"] = {key: v for key, v in pod["securityContext"].items() if key not in IDENTITY}
    schedule(pod, where)
    template["metadata"] |= {"annotations": where["annotations"]} if where["annotations"] else {}
    pulls = run.runner.image_pull_secrets
    if run.name in NEAR_MODELS:
        pod["volumes"].append({"name": "models", "persistentVolumeClaim": {"claimName": payload.claim}})
        step["volumeMounts"].append({"name": "models", "mountPath": MOUNT})
        bind = {"hub": CONFIG, "near": payload.devices}
        pulls = (*payload.pod["image_pull_secrets"], *pulls)
    pull_secrets(pod, pulls)
    puller = copy.deepcopy(job)
    puller["spec"]["template"]["spec"] |= {"containers": [image], "volumes": []}
    mount_secrets(pod, _named_in(json.loads(run.input)))
    made = {Ref(CONFIG_MAP, name): given | {"bind": bind}}
    made |= (
        {Ref(JOB, name + PULL): puller | {"bind": {"near": payload.devices, "beside": [payload.claim]}}}
        if pulled
        else {}
    )
    made[Ref(JOB, name)] = job | {"bind": bind}
    return tuple(Resource(ref, "step", run.delivery, spec) for ref, spec in made.items())


def _named_in(given: Any) -> Iterator[SecretRef]:
    """Every reference to a Kubernetes Secret in a step's input."""
    if isinstance(given, dict) and set(given) == {"kube"}:
        yield KubeSecret.model_validate(given)
    elif isinstance(given, dict | list):
        for value in given.values() if isinstance(given, dict) else given:
            yield from _named_in(value)


def state(ref: Ref, world: World) -> StepState:
    seen = world.objects.get(ref)
    if seen is None:
        what, why = f"the Job {ref.name} is gone", "somebody deleted it while it was waited for"
        return Failed(Finding("step.job-gone", what, why, "run again"), retryable=True)
    pull = Ref(JOB, ref.name + PULL)
    both = [_job_state(job, world, world.objects[job]) for job in (ref, pull) if job in world.objects]
    return pods.together(*both)


def _job_state(ref: Ref, world: World, seen: Observed) -> StepState:
    own = labelled(world, "batch.kubernetes.io/job-name", ref.name)
    if ref.name.endswith(PULL) and pods.pulled(own):
        return Ended()
    events = [event for event in world.beside["Event"] if not _of_puller(event, ref.name)]
    return pods.step(own, {**world.beside, "Event": events}, ref.name, finished=bool(seen.status["finished"]))


def _of_puller(event: Mapping[str, Any], name: str) -> bool:
    """Of the Job that pulls beside the Job ``name``, whose name goes on."""
    return str(event["involvedObject"].get("name", "")).startswith(name + PULL)
