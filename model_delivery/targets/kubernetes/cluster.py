"""What all targets in a cluster have in common: the base classes of their specs, keys and
answers.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from model_delivery.base import Finding, KubeSecret, Permanent, Refused, SecretRef, Text, document, manifest
from model_delivery.diagnosis import pod_starts, pods
from model_delivery.targets.kubernetes import adoption, steps
from model_delivery.targets.kubernetes.kinds import CLAIM, SECRET
from model_delivery.targets.kubernetes.release import (
    MOUNT,
    AdoptedPayload,
    ClusterPayload,
    claim_name,
    common,
    devices,
    in_cluster,
    pods_of,
    servers,
)
from model_delivery.targets.protocol import (
    Adoption,
    Asked,
    Get,
    Site,
    StepRun,
    Target,
    TargetKey,
    TargetSpec,
    UpAt,
    not_yet,
)
from model_delivery.values import (
    Absent,
    Current,
    Desired,
    Kind,
    Lock,
    Observed,
    Readiness,
    Ref,
    Release,
    Resource,
    Server,
    Start,
    StepState,
    Storage,
    World,
)

NEW = "new"
DOCKER, OLD_DOCKER = ".dockerconfigjson", ".dockercfg"
ALWAYS = ("", "apps", "batch", "discovery.k8s.io", "coordination.k8s.io")  # the groups that every target needs


class ClusterKey(TargetKey):
    place = "cluster"
    context: Text | None = None
    namespace: Text = "default"


class ClusterTarget(TargetSpec, ClusterKey):
    image: Text = "vllm/vllm-openai:v0.33.0"

    @property
    def engine(self) -> None:
        return None


@dataclass(frozen=True)
class InCluster(Target):
    """A target whose objects lie in the namespace of a cluster that its key names; the
    first of its kinds can be adopted.

    ``payloads``: of a release that is made here, and of one that was adopted;
    ``engine_port``: of somebody's container that names none. ``shapes_pods``: may its
    pods have init containers and hooks?
    """

    adopts = True
    notebooks: ClassVar[bool] = False
    shapes_pods: ClassVar[bool] = False
    payloads: ClassVar[tuple[type[ClusterPayload], type[AdoptedPayload]]]
    engine_port: ClassVar[int]
    key: ClusterKey

    def root(self, storage: Storage) -> str | None:
        return MOUNT

    def main(self, delivery: str, release: Release) -> Ref:
        return Ref(self.kinds[0], in_cluster(release).origin(f"{delivery}-{release.id}").name)

    def keeper(self, delivery: str, release: Release) -> Ref | None:
        return self.main(delivery, release)

    def storage(self, name: str, lock: Lock, storage: Storage) -> tuple[Resource, ...]:
        """The claim that holds the models; without ``storage.size``, three times the
        model.
        """
        made = manifest("storage.yaml", "PersistentVolumeClaim")
        size = storage.size or f"{max(1, math.ceil(3 * lock.snapshot.size / 2**30))}Gi"
        made["spec"] |= {"accessModes": [storage.access], "resources": {"requests": {"storage": str(size)}}}
        made["spec"] |= {"storageClassName": storage.storage_class} if storage.storage_class else {}
        made["bind"] = {"any_size": storage.size is None}
        return (Resource(Ref(CLAIM, claim_name(name, storage)), "storage", name, made),)

    def step(self, run: StepRun) -> tuple[Resource, ...]:
        return steps.resources(run)

    def step_state(self, ref: Ref, world: World) -> StepState:
        return steps.state(ref, world)

    def readiness(self, release: Release, world: World) -> Readiness:
        ref = self.main(world.delivery, release)
        seen = world.objects.get(ref)
        return self.ready(release, world, seen) if seen else Absent(f"the {ref.kind} is not there")

    def start(self, release: Release, world: World) -> Start | None:
        return pod_starts.start(pods_of(world, release.id), world.beside["Event"])

    def servers(self, release: Release, world: World) -> tuple[Server, ...]:
        well = [pod for pod in pods.living(pods_of(world, release.id)) if pods.is_ready(pod)]
        return tuple(servers(well, in_cluster(release).origin("").port))

    def ready(self, release: Release, world: World, seen: Observed) -> Readiness:
        """By the release's main object, as it is seen, and its pods."""
        raise NotImplementedError

    def pending(
        self, release: Release, world: World, name: str, status: Mapping[str, Any], *noise: str
    ) -> pods.Pending:
        """Why it is not ready, by its pods. ``name``: of what is told by events;
        ``status``: as a Deployment has it; ``noise``: events that say nothing.
        """
        claim = world.objects.get(Ref(CLAIM, in_cluster(release).claim))
        events = [event for event in world.beside["Event"] if event.get("reason") not in noise]
        beside = {**world.beside, "Event": events}
        return pods.engine(pods_of(world, release.id), beside, status, claim.status if claim else {}, name)

    def asked_at(self, release: Release, world: World, seen: Observed) -> Readiness:
        return self.ready(release, world, seen)

    def route(self, name: str) -> Ref:
        """The object that takes the delivery's name."""
        raise NotImplementedError

    def routed(self, want: Desired, world: World) -> Readiness:
        if want.address is None or not self.directs(want):
            return Current("")
        ref = self.route(want.delivery)
        seen = world.objects.get(ref)
        return self.moved(want, world, seen) if seen else Absent(f"the {ref.kind} is not there")

    def directs(self, want: Desired) -> bool:
        """Is there anything that the route must know?"""
        return bool(want.shares)

    def moved(self, want: Desired, world: World, seen: Observed) -> Readiness:
        """Does the route, as it is seen, give everybody the share that is wanted?"""
        raise NotImplementedError

    def read(self, live: Observed, get: Get) -> adoption.Found:
        """What an object of the first of ``kinds`` serves. Refused where it is of a form
        that cannot stay.
        """
        raise NotImplementedError

    def uses(self, asked: Asked) -> tuple[Kind, ...]:
        """The kinds that not every cluster has, and ``asked`` needs."""
        return self.kinds

    def misfits(self, asked: Asked, place: Site) -> Iterator[Finding]:
        """What this target alone can refuse."""
        yield from ()

    def preflight(self, asked: Asked, secrets: Mapping[str, SecretRef], place: Site, up_at: UpAt) -> Iterator[Finding]:
        """Where rights or the namespace are missing, nothing else can be known."""
        wanted = {"storage.notebook": asked.storage.notebook and not self.notebooks}
        cache, read_only = asked.serving.cache, asked.storage.access == "ReadOnlyMany"
        wanted["serving.cache"] = cache != "none" and not self.shapes_pods
        wanted["serving.readahead"] = asked.serving.readahead and not self.shapes_pods
        wanted["serving.cache: claim, on one that is only read,"] = cache == "claim" and read_only
        yield from not_yet(self.key.kind, wanted)
        yield from _foreign(secrets)
        missing = [*self._rights(asked, place)] or [*self._namespace(place)]
        yield from missing
        if not missing:
            yield from _fields(asked, place)
            yield from self._secrets(asked, place, secrets)
            yield from self.misfits(asked, place)

    def _rights(self, asked: Asked, place: Site) -> Iterator[Finding]:
        """Rules for the API of a target, or of an option, are needed by it alone. A list
        that the server itself calls incomplete proves nothing missing.
        """
        held, used = place.rights(), {(kind.group, kind.plural) for kind in self.uses(asked)}
        for group, resource, verb in wanted_rules() if held is not None else ():
            needed = group in ALWAYS or (group, resource) in used
            if needed and not any(_allows(rule, group, resource, verb) for rule in held or ()):
                name = f"{resource}.{group}".rstrip(".")
                yield Finding(
                    "cluster.right-missing",
                    f"we may not {verb} {name} in namespace {self.key.namespace}",
                    "the rule is missing",
                    "kubectl apply -f manifests/rbac/role.yaml, and bind it to who delivers",
                )

    @property
    def where(self) -> str:
        return f"context {self.key.context or 'default'}"

    def _namespace(self, place: Site) -> Iterator[Finding]:
        """A namespaced role may not see it: then what is in it will tell."""
        name = self.key.namespace
        try:
            seen = place.look_up(f"/api/v1/namespaces/{name}")
        except Permanent:
            return
        if seen is not None and seen.get("status", {}).get("phase") == "Terminating":
            what, fix = (
                f"the namespace {name} is being deleted",
                "wait until it has gone, make it again, then run again",
            )
            yield Finding("cluster.namespace-ending", what, self.where, fix)
        if seen is None:
            yield Finding(
                "cluster.no-namespace",
                f"there is no namespace {name}",
                self.where,
                "make it, or correct target.namespace",
            )

    def _secrets(self, asked: Asked, place: Site, refs: Mapping[str, SecretRef]) -> Iterator[Finding]:
        for field, ref in refs.items():
            try:
                if isinstance(ref, KubeSecret):
                    place.secret(ref)
            except Refused as refused:
                yield from (replace(finding, what=f"{field}: {finding.what}") for finding in refused.findings)
        for name in (*asked.serving.pod.image_pull_secrets, *asked.runner.image_pull_secrets):
            there = place.look_up(SECRET.path(self.key.namespace, name))
            if there is not None and not _has_logins(there):
                yield Finding(
                    "secret.no-logins",
                    f"the pull secret {name} holds no logins",
                    f"its {DOCKER} is missing, empty or no JSON",
                    "kubectl create secret docker-registry …",
                )
            if there is None:
                yield Finding(
                    "secret.no-pull-secret",
                    f"the pull secret {name} is not there",
                    f"namespace {self.key.namespace}",
                    "kubectl create secret docker-registry …",
                )

    def adopt(self, asked: Asked, lock: Lock, named: str, get: Get) -> Adoption:
        ref, route = Ref(self.kinds[0], named), self.route(asked.name)
        live, there = adoption.live_object(ref, asked.name, get), get(route)
        found = self.read(live, get)
        wrong = [*adoption.unlike(asked, found), *adoption.kept_secrets(found, kept := adoption.kept_metadata(live))]
        if there is not None and route != ref:
            wrong += adoption.taken_name(route, asked.name, there)
        if wrong:
            raise Refused(*wrong)
        origin = {
            "kind": ref.kind.name,
            "name": named,
            "uid": live.status["uid"],
            "metadata": kept,
            "port": found.port(self.engine_port),
            "folder": found.folder,
            "routes": {route.kind.name: there.status["uid"]} if there else {},
        }
        own = {
            "chat_template": None,
            "args": found.words,
            "claim": found.claim,
            "devices": devices([found.container]),
            "image": found.container.get("image"),
            "live": found.spec,
            "adopted": origin | found.origin,
        }
        payload = self.payloads[1].model_validate(common(asked, lock) | own | found.beside)
        return Adoption(str(ref), payload, found.replicas, (*adoption.differences(found, self._anew(asked, lock)),))

    def _anew(self, asked: Asked, lock: Lock) -> adoption.Found:
        """What ``asked`` would make, read as if it were there."""
        release = Release(NEW, self.payload(asked.served(lock.snapshot), lock))
        made = self.compose(Desired(asked.name, (release,), {NEW: 100}, self.address(asked.name)))
        there = {resource.ref: Observed(resource, "", {}) for resource in made}
        return self.read(next(seen for ref, seen in there.items() if ref.kind == self.kinds[0]), there.get)


def _has_logins(pull_secret: Mapping[str, Any]) -> bool:
    data = pull_secret.get("data") or {}
    try:
        logins = json.loads(base64.b64decode(data.get(DOCKER) or data.get(OLD_DOCKER) or ""))
    except (ValueError, RecursionError):
        return False
    return isinstance(logins, dict) and bool(logins)


def wanted_rules() -> list[tuple[str, str, str]]:
    """Group, resource and verb of every rule of the shipped Role that a run cannot do
    without: a watch only tells when to look, and few engines must be started anew.
    """
    return [
        (group, resource, verb)
        for rule in document("rbac/role.yaml", "Role")["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
        if verb != "watch" and (resource, verb) != ("pods", "delete")
    ]


def _allows(rule: Mapping[str, Any], *wanted: str) -> bool:
    parts = zip(("apiGroups", "resources", "verbs"), wanted, strict=True)
    return not rule.get("resourceNames") and all({value, "*"} & set(rule.get(part) or ()) for part, value in parts)


def _foreign(secrets: Mapping[str, SecretRef]) -> Iterator[Finding]:
    for field, ref in secrets.items():
        if not isinstance(ref, KubeSecret):
            yield Finding(
                "secret.not-in-a-cluster",
                f"{field} is not a Kubernetes secret",
                "a pod sees neither the environment nor the files of the machine that delivers",
                "make one, and use {kube: {name: …, key: …}}",
            )


def _fields(asked: Asked, place: Site) -> Iterator[Finding]:
    access, most = asked.storage.access, asked.serving.replicas.max
    if not asked.model.in_cluster:
        yield Finding(
            "source.not-in-a-cluster",
            f"model.source {asked.model.source} is not there yet in a cluster",
            "a claim's folder is not listed yet",
            "use a hub",
        )
    if asked.runner.image is None and place.own_image() is None:
        yield Finding(
            "step.no-image",
            "no image for the steps",
            "runner.image is null, and this does not run in a pod of the cluster",
            "name the image of Model Delivery in runner.image",
        )
    if most > 1 and access.startswith("ReadWriteOnce"):
        yield Finding(
            "claim.one-node",
            f"storage.access {access} serves one node only",
            f"serving.replicas.max is {most}: pods on other nodes could not mount it",
            "use ReadWriteMany, or one replica",
        )


def is_absent(place: Site, path: str) -> bool:
    """Not where we may not look."""
    try:
        return place.look_up(path) is None
    except Permanent:
        return False


def absent_kinds(place: Site, kinds: Sequence[Kind]) -> list[Kind]:
    """Of ``kinds``, what the cluster's API does not have."""

    def served(api: str) -> set[str]:
        return {resource["name"] for resource in (place.look_up(f"/apis/{api}") or {}).get("resources", ())}

    known = {api: served(api) for api in {kind.api for kind in kinds}}
    return [kind for kind in kinds if kind.plural not in known[kind.api]]
