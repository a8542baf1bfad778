"""What all targets in a cluster have in common: the base classes of their specs, keys and
answers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from model_delivery.base import Finding, Refused, SecretRef, Text
from model_delivery.base.manifests import manifest
from model_delivery.diagnosis import pods
from model_delivery.targets.asked import Asked
from model_delivery.targets.kubernetes import adoption
from model_delivery.targets.kubernetes import preflight as before
from model_delivery.targets.kubernetes.adoption import Found
from model_delivery.targets.kubernetes.job import job_state, step_job
from model_delivery.targets.kubernetes.kinds import CLAIM
from model_delivery.targets.kubernetes.payload import AdoptedPayload, common, in_cluster, pods_of
from model_delivery.targets.kubernetes.pod import MOUNT, claim_name
from model_delivery.targets.protocol import Adoption, Get, Site, StepRun, Target, TargetKey, TargetSpec, UpAt, not_yet
from model_delivery.values import (
    Desired,
    Kind,
    Lock,
    Observed,
    Ref,
    Release,
    Resource,
    StepState,
    Storage,
    World,
)

NEW = "new"


class ClusterKey(TargetKey):
    place = "cluster"
    context: str | None = None
    namespace: str = "default"


class ClusterTarget(TargetSpec):
    context: Text | None = None
    namespace: Text = "default"
    image: Text = "vllm/vllm-openai:v0.33.0"

    @property
    def engine(self) -> None:
        return None


@dataclass(frozen=True)
class InCluster(Target):
    """A target whose objects lie in ``namespace`` of the cluster that ``context`` names.

    ``former``: the payload of a release that was adopted; ``engine_port``: of somebody's
    container that names none.
    """

    former: ClassVar[type[AdoptedPayload]]
    engine_port: ClassVar[int]
    namespace: str
    context: str | None = field(default=None, kw_only=True)

    def root(self, storage: Storage) -> str | None:
        return MOUNT

    def main(self, delivery: str, release: Release) -> Ref:
        return in_cluster(release).main(f"{delivery}-{release.id}", self.kinds[0])

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

    def pending(
        self, release: Release, world: World, name: str, status: Mapping[str, Any], *noise: str
    ) -> pods.Pending:
        """Why it is not ready, by its pods. ``name``: of what is told by events;
        ``status``: as a Deployment has it; ``noise``: events that say nothing.
        """
        its, claim = pods_of(world, release), world.objects.get(Ref(CLAIM, in_cluster(release).claim))
        events = [event for event in world.beside["Event"] if event.get("reason") not in noise]
        return pods.engine(its, events, world.beside["Node"], status, claim.status if claim else None, name)

    def step(self, run: StepRun) -> tuple[Resource, ...]:
        return step_job(run)

    def step_state(self, ref: Ref, world: World) -> StepState:
        return job_state(ref, world)

    def route(self, name: str) -> Ref:
        """The object that takes the delivery's name."""
        raise NotImplementedError

    def read(self, live: Observed, get: Get) -> Found:
        """What an object of kind ``adopts`` serves. Refused where it is of a form that
        cannot stay.
        """
        raise NotImplementedError

    def uses(self, asked: Asked) -> tuple[Kind, ...]:
        """The kinds that not every cluster has, and ``asked`` needs."""
        return self.kinds

    def lacks(self, asked: Asked) -> dict[str, bool]:
        """What no target in a cluster can do yet, and whether it is asked for."""
        return {"approval: manual": asked.approval == "manual", "storage.notebook": asked.storage.notebook}

    def misfits(self, asked: Asked, place: Site) -> Iterator[Finding]:
        """What this target alone can refuse."""
        yield from ()

    def preflight(self, asked: Asked, secrets: Mapping[str, SecretRef], place: Site, up_at: UpAt) -> Iterator[Finding]:
        """Where rights or the namespace are missing, nothing else can be known."""
        yield from not_yet(self.kind, self.lacks(asked))
        yield from before.foreign_secrets(secrets)
        missing = [*before.rights(place, self.namespace, self.uses(asked))]
        missing = missing or [*before.namespace(place, self.namespace, self.context)]
        yield from missing
        if not missing:
            yield from before.fields(asked, place)
            yield from before.secrets(asked, place, self.namespace, secrets)
            yield from self.misfits(asked, place)

    def adopt(self, asked: Asked, lock: Lock, named: str, get: Get) -> Adoption:
        ref, route = Ref(self.former.adopts, named), self.route(asked.name)
        live, there = adoption.live_object(ref, asked.name, get), get(route)
        found = self.read(live, get)
        wrong = [*adoption.unlike(asked, found)]
        if there is not None and route != ref:
            wrong += adoption.taken_name(route, asked.name, there)
        if wrong:
            raise Refused(*wrong)
        origin = {
            "kind": ref.kind.name,
            "name": named,
            "uid": live.status["uid"],
            "metadata": adoption.kept_metadata(live),
            "pods": found.pods,
            "port": found.port(self.engine_port),
            "folder": found.folder,
            "routes": {} if there is None else {route.kind.name: there.status["uid"]},
            "service": None,
        }
        own = {"chat_template": None, "args": found.words, "claim": found.claim, "devices": found.devices}
        own |= {"image": found.container.get("image"), "live": found.spec, "adopted": origin | found.more}
        payload = self.former.model_validate(common(asked, lock) | own | found.beside)
        differs = tuple(adoption.differences(found, self._anew(asked, lock)))
        return Adoption(str(ref), payload, found.replicas, differs)

    def _anew(self, asked: Asked, lock: Lock) -> Found:
        """What ``asked`` would make, read as if it were there."""
        release = Release(NEW, self.payload(asked, lock))
        made = self.compose(Desired(asked.name, (release,), {NEW: 100}, self.address(asked.name)))
        there = {resource.ref: Observed(resource, "", {}) for resource in made}
        main = next(seen for ref, seen in there.items() if ref.kind == self.adopts)
        return self.read(main, there.get)
