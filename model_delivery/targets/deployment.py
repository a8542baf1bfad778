"""Plain Kubernetes: a Deployment and a Service a release; a stable Service, or a gateway's HTTPRoute, in front."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from typing import Any

from model_delivery.diagnosis import pods
from model_delivery.targets.kubernetes.kinds import SERVICE
from model_delivery.targets.kubernetes.manifests import manifest
from model_delivery.targets.kubernetes.near import Routed, chat_config, claim_status, settings
from model_delivery.targets.kubernetes.pod import PORT, devices, pod_labels, serve, startup_seconds
from model_delivery.targets.kubernetes.route import owned, pods_of, selector
from model_delivery.values.kind import Demand, Kind
from model_delivery.values.readiness import Current, InProgress, Readiness
from model_delivery.values.release import Lock, Payload, Release
from model_delivery.values.resources import Ref, Resource, World
from model_delivery.values.serving import Serving, Storage


def _demand(body: Mapping[str, Any]) -> Demand:
    spec = body["spec"]
    return {body["metadata"]["name"]: (spec["replicas"], devices(spec["template"]["spec"]["containers"]))}


DEPLOYMENT = Kind("Deployment", "apps", "v1", "deployments", foreground=True, demand=_demand)
FILE = "deployment.yaml"
MARGIN_SECONDS = 60


class Deployment(Routed):
    """Without a gateway a Service selects one release, so that traffic cannot be weighed."""

    def main(self, delivery: str, release: str) -> Ref:
        return Ref(DEPLOYMENT, f"{delivery}-{release}")

    def payload(self, name: str, lock: Lock, serving: Serving, storage: Storage) -> Payload:
        made = manifest(FILE, "Deployment")
        serve(made["spec"]["template"], name, lock, serving, storage)
        made["metadata"]["labels"]["app.kubernetes.io/version"] = version("model-delivery")
        made["spec"]["progressDeadlineSeconds"] = startup_seconds(serving, lock) + MARGIN_SECONDS
        return {"deployment": made, "service": manifest(FILE, "Service"), **settings(name, lock, serving, storage)}

    def release(self, delivery: str, release: Release) -> Iterator[Resource]:
        if release.adopted is not None:
            yield from self._adopted(delivery, release, release.adopted)
            return
        main = self.main(delivery, release.id)
        made = copy.deepcopy(dict(release.payload["deployment"]))
        template = made["spec"]["template"]
        made["spec"] |= {
            "replicas": release.replicas,
            "selector": {"matchLabels": {"model-delivery/object": main.name}},
        }
        template["metadata"]["labels"] = pod_labels(delivery, release.id)
        yield from chat_config(delivery, release, main.name, template["spec"], template["spec"]["containers"][0])
        yield Resource(main, "release", delivery, made, release.id)
        service = copy.deepcopy(dict(release.payload["service"]))
        service["spec"]["selector"] = selector(delivery, release)
        yield Resource(Ref(SERVICE, main.name), "release", delivery, service, release.id)

    def _adopted(self, delivery: str, release: Release, adopted: Mapping[str, Any]) -> Iterator[Resource]:
        """Somebody's Deployment as it is, and a Service of ours before its pods."""
        made = {
            "metadata": copy.deepcopy(adopted["metadata"]),
            "spec": {**copy.deepcopy(dict(release.payload["live"])), "replicas": release.replicas},
        }
        yield owned(Resource(Ref(DEPLOYMENT, adopted["name"]), "release", delivery, made, release.id), adopted["uid"])
        service = manifest(FILE, "Service")
        service["spec"]["selector"] = selector(delivery, release)
        service["spec"]["ports"][0]["targetPort"] = adopted["port"]
        yield Resource(Ref(SERVICE, f"{delivery}-{release.id}"), "release", delivery, service, release.id)

    def readiness(self, release: Release, world: World) -> Readiness:
        ref = self.main(world.delivery, release.id)
        seen = world.objects.get(Ref(ref.kind, release.adopted["name"]) if release.adopted else ref)
        if seen is None:
            return InProgress("the Deployment is not there yet")
        status, wanted = seen.status, release.replicas
        current = (
            status.get("observedGeneration", 0) >= status["generation"] and status.get("updatedReplicas", 0) >= wanted
        )
        if current and status.get("availableReplicas", 0) >= wanted and not status.get("unavailableReplicas", 0):
            return Current(f"http://{ref.name}.{self.namespace}.svc:{PORT}")
        events, nodes = world.beside["Event"], world.beside["Node"]
        return pods.engine(pods_of(world, ref.name), events, nodes, status, claim_status(release, world), ref.name)
