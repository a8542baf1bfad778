"""The spec: what a user writes, read with positions, checked, and frozen."""

from __future__ import annotations

from model_delivery.spec.loading import load_spec, parse_spec
from model_delivery.spec.model import DeliverySpec

__all__ = ["DeliverySpec", "load_spec", "parse_spec"]
