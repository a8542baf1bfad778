"""The claim that holds the models."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from model_delivery.base.manifests import manifest
from model_delivery.targets.kubernetes.kinds import CLAIM
from model_delivery.targets.kubernetes.payload import in_cluster
from model_delivery.targets.kubernetes.pod import claim_name
from model_delivery.values.release import Lock, Release
from model_delivery.values.resources import Ref, Resource, World
from model_delivery.values.serving import Storage


def models_claim(name: str, lock: Lock, storage: Storage) -> Resource:
    """Without ``storage.size``, three times the model."""
    made = manifest("storage.yaml", "PersistentVolumeClaim")
    size = storage.size or f"{max(1, math.ceil(3 * lock.snapshot.size / 2**30))}Gi"
    made["spec"] |= {"accessModes": [storage.access], "resources": {"requests": {"storage": str(size)}}}
    made["spec"] |= {"storageClassName": storage.storage_class} if storage.storage_class else {}
    made["bind"] = {"any_size": storage.size is None}
    return Resource(Ref(CLAIM, claim_name(name, storage)), "storage", name, made)


def claim_status(release: Release, world: World) -> Mapping[str, Any] | None:
    """Of the claim that the release reads its model from, where it has been looked at."""
    claim = world.objects.get(Ref(CLAIM, in_cluster(release).claim))
    return claim.status if claim else None
