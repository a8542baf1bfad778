"""Kinds by the name that a manifest gives."""

from __future__ import annotations

from model_delivery.targets import cluster_kinds
from model_delivery.targets.kubernetes.kinds import CLAIM

BY_NAME = {kind.name: kind for kind in (*cluster_kinds(), CLAIM)}
