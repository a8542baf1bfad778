"""KServe in Standard mode: a ServingRuntime and an InferenceService a release; its
Deployment and Service are made by KServe.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal
from urllib.parse import urlsplit

from model_delivery.base import Finding, Object, base_url, manifest
from model_delivery.diagnosis import pods
from model_delivery.models.manifest import folder_name
from model_delivery.targets.kubernetes import caches
from model_delivery.targets.kubernetes.adoption import (
    Found,
    engine_of,
    filled,
    folder_of,
    model_of,
    not_on_a_claim,
    noted_port,
    on_a_claim,
    refusal,
    relative,
)
from model_delivery.targets.kubernetes.cluster import ClusterTarget, absent_kinds
from model_delivery.targets.kubernetes.gateway import known
from model_delivery.targets.kubernetes.release import (
    AdoptedPayload,
    ClusterPayload,
    claim_name,
    common,
    devices,
    in_cluster,
    pods_of,
    scale,
    serve,
    verbatim,
)
from model_delivery.targets.kubernetes.route import Routed, RoutedKey
from model_delivery.targets.protocol import Asked, Get, Site, Target, not_yet
from model_delivery.values import (
    Current,
    Demand,
    Failed,
    InProgress,
    Kind,
    Lock,
    Observed,
    Readiness,
    Ref,
    Release,
    Resource,
    World,
)

GROUP = "serving.kserve.io"


def _demand(body: Mapping[str, Any]) -> Demand:
    predictor = body["spec"]["predictor"]
    containers = [predictor["model"]] if "model" in predictor else predictor["containers"]
    return {body["metadata"]["name"]: (int(predictor.get("minReplicas", 1)), devices(containers))}


INFERENCE_SERVICE = Kind(
    "InferenceService",
    GROUP,
    "v1beta1",
    "inferenceservices",
    foreground=True,
    optional=True,
    eventful=True,
    bare=True,
    demand=_demand,
)
LLM_SERVICE = Kind("LLMInferenceService", GROUP, "v1alpha1", "llminferenceservices")  # of KServe 0.16 and newer
SERVING_RUNTIME = Kind("ServingRuntime", GROUP, "v1alpha1", "servingruntimes", steady=True, optional=True)
MADE = Kind("Deployment", "apps", "v1", "deployments", foreground=True)
FILE, STOP = "kserve.yaml", "serving.kserve.io/stop"
MODELS = "/mnt/models"  # where KServe's webhook mounts the folder of storageUri
PVC = "pvc://"
BACKEND = "-predictor"  # the Service that KServe makes: the service's name, and this
MODES = ("Standard", "RawDeployment")
TRANSIENT = ("RuntimeNotRecognized",)  # the manager may see the service before the runtime
CREATE = "FailedCreate"
NOISE = ("VirtualServiceCRDNotFound", "UpdateFailed")  # events that say nothing of the service
LONGEST_NAME = 63 - len("isvc.-0123456789-predictor")


class KServeKey(RoutedKey):
    kind: Literal["kserve"] = "kserve"

    def target(self) -> Target:
        return KServe(self)


class KServeTarget(ClusterTarget, KServeKey):
    """A KServe InferenceService; without ``gateway`` traffic cannot be weighed."""

    keyed = KServeKey
    kind: Literal["kserve"]


class KServePayload(ClusterPayload):
    runtime: Object
    service: Object

    def resources(self, delivery: str, release: Release) -> Iterator[Resource]:
        name, count = f"{delivery}-{release.id}", release.replicas
        runtime, service = copy.deepcopy(self.runtime), copy.deepcopy(self.service)
        predictor = service["spec"]["predictor"]
        predictor |= {"minReplicas": count, "maxReplicas": count, "labels": self.origin(name).labels}
        predictor["model"]["runtime"] = name
        yield from self.chat_config(delivery, release, runtime["spec"], runtime["spec"]["containers"][0])
        for kind, made in ((SERVING_RUNTIME, runtime), (INFERENCE_SERVICE, service)):
            yield Resource(Ref(kind, name), "release", delivery, made, release.id)


class KServeAdopted(AdoptedPayload):
    adopts = INFERENCE_SERVICE

    def resources(self, delivery: str, release: Release) -> Iterator[Resource]:
        live = copy.deepcopy(self.live)
        scale(live["predictor"], release.replicas)
        yield self.theirs(delivery, release, live)


class KServe(Routed):
    """The predictor's own Service is the endpoint of a release."""

    spec, kinds, engine_port, shapes_pods = KServeTarget, (INFERENCE_SERVICE, SERVING_RUNTIME), 8080, True
    payloads = KServePayload, KServeAdopted
    backend, port = BACKEND, 80

    def keeper(self, delivery: str, release: Release) -> Ref | None:
        """Not the service: KServe hands its annotations down to its pods."""
        return Ref(SERVING_RUNTIME, f"{delivery}-{release.id}")

    def payload(self, asked: Asked, lock: Lock) -> ClusterPayload:
        """The pod's containers and volumes stand in the runtime, the rest of it in the
        service's predictor.
        """
        runtime, service = manifest(FILE, "ServingRuntime"), manifest(FILE, "InferenceService")
        predictor = service["spec"]["predictor"]
        template: Object = {"metadata": {}, "spec": runtime["spec"] | predictor}
        serve(template, asked, lock, MODELS)
        if asked.serving.cache == "node":
            caches.keep(template["spec"], runtime["spec"]["containers"][0], asked, lock)
        predictor |= {key: value for key, value in template["spec"].items() if key not in runtime["spec"]}
        predictor |= template["metadata"]
        (engine,) = runtime["spec"]["containers"]
        uri = f"{PVC}{claim_name(asked.name, asked.storage)}/{folder_name(lock.snapshot)}"
        predictor["model"] |= {"resources": engine.pop("resources"), "storageUri": uri}
        runtime["spec"]["containers"] = [json.loads(verbatim(json.dumps(engine)))]
        return KServePayload(runtime=runtime, service=service, **common(asked, lock))

    def ready(self, release: Release, world: World, seen: Observed) -> Readiness:
        """KServe's ``observedGeneration`` is its Deployment's, and it goes on saying
        Ready while its pods are refused: so the pods are counted.
        """
        ref = seen.resource.ref
        if (refused := _refused(ref, seen.status)) is not None:
            return Failed(refused)
        living = pods.living(pods_of(world, release.id))
        ready = pods.condition(seen.status, "PredictorReady")
        told, few = pods.reason_of(ready), len(living) < release.replicas
        if not few and all(map(pods.is_ready, living)):
            if ready.get("status") == "True":
                return Current(self._endpoint(ref, seen.status, in_cluster(release).origin("").port))
            return InProgress(f"its pods are ready, KServe is not: {told}")
        failure = _failure(ready, world.beside["Event"], ref) if few else {}
        state = self.pending(release, world, ref.name, failure, *NOISE)
        if living or failure or not isinstance(state, InProgress):
            return state
        return InProgress(told or f"KServe says nothing of it: {state.why} (does its controller manager run?)")

    def _endpoint(self, ref: Ref, status: Mapping[str, Any], port: int) -> str:
        """A Service without an address of its own (a setting of KServe's) leads straight
        to the engine's port: KServe's address has a port then.
        """
        direct = urlsplit(base_url((status.get("address") or {}).get("url")) or "").port is not None
        return f"http://{ref.name}{BACKEND}.{self.key.namespace}.svc" + (f":{port}" if direct else "")

    def misfits(self, asked: Asked, place: Site) -> Iterator[Finding]:
        """Is its API there, and can what KServe makes be called so?"""
        yield from super().misfits(asked, place)
        yield from not_yet(self.key.kind, {"serving.cache: claim (not node)": asked.serving.cache == "claim"})
        for kind in absent_kinds(place, self.kinds):
            yield Finding(
                "kserve.not-installed",
                f"the cluster has no {kind.plural} of {kind.api}",
                self.where,
                "install KServe, or use target: {kind: deployment, …}",
            )
        if known(place, LLM_SERVICE.path(self.key.namespace, asked.name)) is not None:
            yield Finding(
                "kserve.same-name",
                f"there is an LLMInferenceService {asked.name} in namespace {self.key.namespace}",
                "clients of two services of one name cannot be told apart",
                "choose another name",
            )
        if not asked.name[0].isalpha() or len(asked.name) > LONGEST_NAME:
            yield Finding(
                "kserve.name",
                f"the name {asked.name} does not fit KServe",
                "KServe wants a letter first, and labels its pods isvc.NAME-RELEASE-predictor: "
                f"at most {LONGEST_NAME} characters",
                "choose another name",
            )

    def read(self, live: Observed, get: Get) -> Found:
        ref, spec = live.resource.ref, live.resource.spec["spec"]
        predictor, annotations = spec["predictor"], live.resource.spec["metadata"].get("annotations") or {}
        mode = live.status.get("deploymentMode") or annotations.get("serving.kserve.io/deploymentMode") or MODES[0]
        if mode not in MODES:
            why = f"it is in mode {mode}, which never changes: its pods are Knative's"
            raise refusal(ref, why, "deliver it anew under another name with `deliver up`")
        _form(ref, spec)
        resolved, service = get(Ref(MADE, f"{ref.name}{BACKEND}")), f"{ref.name}{BACKEND}"
        pod = resolved.resource.spec["spec"]["template"]["spec"] if resolved else {}
        model = predictor.get("model")
        if model is None:
            container, words = engine_of(pod.get("containers") or predictor["containers"])
            claim, folder = on_a_claim(ref, pod or predictor, container, model_of(words))
        else:
            container, words = _resolved(ref, model, pod, get)
            claim, folder = _weights(ref, model, model_of(words))
        stopped = str(annotations.get(STOP, "")).lower() == "true"
        count = 0 if stopped else int(predictor.get("minReplicas", 1))
        known = {"pods": {"labels": {"app": f"isvc.{ref.name}-predictor"}}, "service": service}
        found = Found(spec, container, words, claim, folder, count, known)
        leads = noted_port(container, self.engine_port)
        if found.port(leads) != leads:
            why = f"its engine listens on {found.port(leads)}, and KServe leads what comes for it to {leads}"
            raise refusal(ref, why, "name the engine's port in the ports of its container, then adopt")
        return found


def _form(ref: Ref, spec: Mapping[str, Any]) -> None:
    """Refused where its predictor is not all of it, or is none that can be read."""
    anew = "deliver it anew under another name with `deliver up`"
    for part in ("transformer", "explainer"):
        if spec.get(part):
            raise refusal(ref, f"a {part} stands in front of its engine, and our address would lead past that", anew)
    predictor = spec["predictor"]
    if predictor.get("workerSpec"):
        raise refusal(ref, "its engine runs on several nodes at once (workerSpec)", anew)
    if not (predictor.get("model") or predictor.get("containers")):
        said = ", ".join(key for key, value in predictor.items() if isinstance(value, Mapping)) or "nothing"
        raise refusal(ref, f"its predictor has neither a model nor containers, but {said}", anew)


def _resolved(ref: Ref, model: Mapping[str, Any], pod: Object, get: Get) -> tuple[Object, tuple[str, ...]]:
    """The engine's container and words, as KServe made them of runtime and model; where
    it has not yet, as it would.
    """
    runtime = get(Ref(SERVING_RUNTIME, str(model.get("runtime"))))
    base, words = engine_of(runtime.resource.spec["spec"]["containers"] if runtime else [{}])
    words = filled([*words, *(model.get("args") or ())], {"Name": ref.name})
    env = [*(base.get("env") or ()), *(model.get("env") or ())]
    made = {"env": env, "envFrom": model.get("envFrom")} if env or model.get("envFrom") else {}
    if pod:
        now, words = engine_of(pod["containers"])
        base = base if runtime else now
        made = {key: now[key] for key in ("image", "ports", "env", "envFrom") if key in now}
    return base | made | {"resources": model.get("resources") or base.get("resources", {})}, words


def _weights(ref: Ref, model: Mapping[str, Any], loaded: str) -> tuple[str, str]:
    """Claim and folder; what is ``loaded`` may lie deeper than what is mounted."""
    uri = str(model.get("storageUri") or "")
    claim, _, folder = uri.removeprefix(PVC).partition("/")
    inside = relative(loaded or MODELS, MODELS)
    if not uri.startswith(PVC) or inside is None:
        raise not_on_a_claim(ref, uri if inside is not None else loaded)
    return claim, folder_of(ref, f"{folder}/{inside}")


def _failure(ready: Mapping[str, Any], events: Sequence[Mapping[str, Any]], ref: Ref) -> Mapping[str, Any]:
    """Why no pod can be made, as a Deployment would say it: by KServe's condition; where
    its manager is dead, that says nothing new, but events do.

    Of events only what waits, since they outlive what they tell.
    """
    own = (event for event in pods.events_of(events, ref.name) if event.get("reason") == CREATE)
    messages = [event["message"] for event in own if pods.HOOK.search(event.get("message", ""))]
    return pods.not_made([ready["message"]] if ready.get("reason") == CREATE else messages)


def _refused(ref: Ref, status: Mapping[str, Any]) -> Finding | None:
    """What KServe says once and will not change its mind about."""
    mode = status.get("deploymentMode", MODES[0])
    if mode not in MODES:
        return Finding(
            "kserve.mode",
            f"KServe has put {ref} into mode {mode}",
            "the mode of an InferenceService never changes, and only Standard makes a Deployment",
            f"kubectl delete inferenceservice {ref.name}, see the mode in KServe's inferenceservice-config, "
            "then run again",
        )
    model = status.get("modelStatus") or {}
    failure = model.get("lastFailureInfo") or {}
    if model.get("transitionStatus") != "InvalidSpec" or failure.get("reason", "") in TRANSIENT:
        return None
    return Finding(
        "kserve.refused",
        f"KServe cannot serve the model: {failure.get('reason', 'InvalidSpec')}",
        str(failure.get("message", "")),
        f"kubectl describe inferenceservice {ref.name}, and see its ServingRuntime",
    )
