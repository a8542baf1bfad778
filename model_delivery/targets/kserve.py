"""KServe in Standard mode: a ServingRuntime and an InferenceService a release; its Deployment and Service are made by KServe."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar
from urllib.parse import urlsplit

from model_delivery.base.findings import Finding
from model_delivery.diagnosis import pods
from model_delivery.models.store import folder_name
from model_delivery.targets.kubernetes.manifests import manifest
from model_delivery.targets.kubernetes.near import Routed, chat_config, claim_status, settings
from model_delivery.targets.kubernetes.pod import PORT, claim_name, devices, serve, verbatim
from model_delivery.targets.kubernetes.route import owned, pods_of
from model_delivery.values.kind import Demand, Kind
from model_delivery.values.readiness import Current, Failed, InProgress, Readiness
from model_delivery.values.release import Lock, Payload, Release
from model_delivery.values.resources import Ref, Resource, World
from model_delivery.values.serving import Serving, Storage


def _demand(body: Mapping[str, Any]) -> Demand:
    predictor = body["spec"]["predictor"]
    containers = [predictor["model"]] if "model" in predictor else predictor["containers"]
    return {body["metadata"]["name"]: (int(predictor.get("minReplicas", 1)), devices(containers))}


INFERENCE_SERVICE = Kind(
    "InferenceService",
    "serving.kserve.io",
    "v1beta1",
    "inferenceservices",
    foreground=True,
    optional=True,
    eventful=True,
    bare=True,
    demand=_demand,
)
SERVING_RUNTIME = Kind("ServingRuntime", "serving.kserve.io", "v1alpha1", "servingruntimes", steady=True, optional=True)
KINDS = (INFERENCE_SERVICE, SERVING_RUNTIME)
FILE = "kserve.yaml"
MODELS = "/mnt/models"  # where KServe's webhook mounts the folder of storageUri
MODES = ("Standard", "RawDeployment")
TRANSIENT = ("RuntimeNotRecognized",)  # the manager may see the service before the runtime
CREATE = "FailedCreate"
NOISE = ("VirtualServiceCRDNotFound", "UpdateFailed")  # events that say nothing of the service


class KServe(Routed):
    """The predictor's own Service is the endpoint of a release."""

    backend: ClassVar[str] = "-predictor"
    port: ClassVar[int] = 80

    def main(self, delivery: str, release: str) -> Ref:
        return Ref(INFERENCE_SERVICE, f"{delivery}-{release}")

    def payload(self, name: str, lock: Lock, serving: Serving, storage: Storage) -> Payload:
        """The pod's containers and volumes stand in the runtime, the rest of it in the service's predictor."""
        runtime, service = manifest(FILE, "ServingRuntime"), manifest(FILE, "InferenceService")
        predictor = service["spec"]["predictor"]
        template: dict[str, Any] = {"metadata": {}, "spec": runtime["spec"] | predictor}
        serve(template, name, lock, serving, storage, MODELS)
        predictor |= {key: value for key, value in template["spec"].items() if key not in runtime["spec"]} | template[
            "metadata"
        ]
        (engine,) = runtime["spec"]["containers"]
        predictor["model"] |= {
            "resources": engine.pop("resources"),
            "storageUri": f"pvc://{claim_name(name, storage)}/{folder_name(lock.snapshot)}",
        }
        runtime["spec"]["containers"] = [json.loads(verbatim(json.dumps(engine)))]
        return {"runtime": runtime, "service": service, **settings(name, lock, serving, storage)}

    def release(self, delivery: str, release: Release) -> Iterator[Resource]:
        if (adopted := release.adopted) is not None:
            live = copy.deepcopy(dict(release.payload["live"]))
            if live["predictor"].get("minReplicas", 1) != release.replicas:
                live["predictor"] |= {"minReplicas": release.replicas}
            made = {"metadata": copy.deepcopy(adopted["metadata"]), "spec": live}
            theirs = Resource(Ref(INFERENCE_SERVICE, adopted["name"]), "release", delivery, made, release.id)
            yield owned(theirs, adopted["uid"], bare=True)
            return
        main = self.main(delivery, release.id)
        runtime, service = (
            copy.deepcopy(dict(release.payload["runtime"])),
            copy.deepcopy(dict(release.payload["service"])),
        )
        predictor = service["spec"]["predictor"]
        predictor |= {
            "minReplicas": release.replicas,
            "maxReplicas": release.replicas,
            "labels": {"model-delivery/object": main.name},
        }
        predictor["model"]["runtime"] = main.name
        yield from chat_config(delivery, release, main.name, runtime["spec"], runtime["spec"]["containers"][0])
        yield Resource(Ref(SERVING_RUNTIME, main.name), "release", delivery, runtime, release.id)
        yield Resource(main, "release", delivery, service, release.id)

    def readiness(self, release: Release, world: World) -> Readiness:
        """KServe's ``observedGeneration`` is its Deployment's, and it goes on saying Ready while its pods are refused: so the pods are counted."""
        own = self.main(world.delivery, release.id)
        ref = Ref(own.kind, release.adopted["name"]) if release.adopted else own
        seen = world.objects.get(ref)
        if seen is None:
            return InProgress("the InferenceService is not there yet")
        if (refused := _refused(ref, seen.status)) is not None:
            return Failed(refused)
        its = [pod for pod in pods_of(world, own.name) if "deletionTimestamp" not in pod["metadata"]]
        found = [one for one in seen.status.get("conditions") or () if one["type"] == "PredictorReady"]
        ready: Mapping[str, Any] = found[0] if found else {}
        told = ": ".join(str(ready[key]) for key in ("reason", "message") if ready.get(key))
        if len(its) >= release.replicas and all(map(pods.is_ready, its)):
            up = ready.get("status") == "True"
            port = release.adopted["port"] if release.adopted else PORT
            return (
                Current(self._endpoint(ref, seen.status, port))
                if up
                else InProgress(f"its pods are ready, KServe is not: {told}")
            )
        events = [one for one in world.beside["Event"] if one.get("reason") not in NOISE]
        failure = _failure(ready, events, ref) if len(its) < release.replicas else {}
        state = pods.engine(its, events, world.beside["Node"], failure, claim_status(release, world), ref.name)
        if its or failure or not isinstance(state, InProgress):
            return state
        return InProgress(told or f"KServe says nothing of it: {state.why} (does its controller manager run?)")

    def _endpoint(self, ref: Ref, status: Mapping[str, Any], port: int) -> str:
        """A Service without an address of its own (a setting of KServe's) leads straight to the engine's port: KServe's address has a port then."""
        direct = urlsplit(str((status.get("address") or {}).get("url", ""))).port is not None
        return f"http://{ref.name}{self.backend}.{self.namespace}.svc" + (f":{port}" if direct else "")


def _failure(ready: Mapping[str, Any], events: Sequence[Mapping[str, Any]], ref: Ref) -> Mapping[str, Any]:
    """Why no pod can be made, as a Deployment would say it: by KServe's condition; where its manager is dead, that says nothing new, but events do.

    Of events only what waits, since they outlive what they tell.
    """
    mine = [
        one
        for one in events
        if one["involvedObject"].get("name", "").startswith(ref.name) and one.get("reason") == CREATE
    ]
    told = [one["message"] for one in mine if pods.HOOK.search(one.get("message", ""))]
    told = [ready["message"]] if ready.get("reason") == CREATE else told
    return {"conditions": [{"type": "ReplicaFailure", "status": "True", "message": told[-1]}]} if told else {}


def _refused(ref: Ref, status: Mapping[str, Any]) -> Finding | None:
    """What KServe says once and will not change its mind about."""
    mode = status.get("deploymentMode", MODES[0])
    if mode not in MODES:
        why = "the mode of an InferenceService never changes, and only Standard makes a Deployment"
        fix = f"kubectl delete inferenceservice {ref.name}, see the mode in KServe's inferenceservice-config, then run again"
        return Finding("todo", f"KServe has put {ref} into mode {mode}", why, fix)
    said = status.get("modelStatus") or {}
    failure = said.get("lastFailureInfo") or {}
    if said.get("transitionStatus") != "InvalidSpec" or failure.get("reason", "") in TRANSIENT:
        return None
    what = f"KServe cannot serve the model: {failure.get('reason', 'InvalidSpec')}"
    return Finding(
        "todo",
        what,
        str(failure.get("message", "")),
        f"kubectl describe inferenceservice {ref.name}, and see its ServingRuntime",
    )
