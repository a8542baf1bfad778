"""Preflight: what can be refused before anything is touched. Every finding at once."""

from __future__ import annotations

from model_delivery.base.findings import Refused
from model_delivery.base.secrets import SecretRef
from model_delivery.models.sources.origin import fallbacks, token_of
from model_delivery.places import Place
from model_delivery.places.cluster.jobs import passwords
from model_delivery.places.host.engines import load_engine
from model_delivery.run.record import load
from model_delivery.spec import DeliverySpec
from model_delivery.targets import Target
from model_delivery.values.release import Desired, Payload, Release
from model_delivery.values.resources import RECORD_REF
from model_delivery.values.rollout import stages

NOTHING = Payload(names=(), args=())


def preflight(spec: DeliverySpec, place: Place, target: Target) -> None:
    """Refused (exit code 3) with every reason why ``spec`` cannot be delivered to
    ``place`` as it stands.
    """
    if spec.target.engine is not None:
        load_engine(spec.target.engine)
    seen = place.get(spec.name, RECORD_REF) if spec.target.key().place == "host" else None
    found = [*target.preflight(spec, secrets(spec), place, load(seen.resource.spec).address if seen else None)]
    if spec.target.key().place == "cluster":
        found += passwords()
    old = Desired(spec.name, (Release("old", NOTHING),), {"old": 100})
    try:
        stages(spec.rollout.strategy, old, Release("new", NOTHING), tuple(spec.rollout.steps), target.can)
    except Refused as refused:
        found += refused.findings
    if found:
        raise Refused(*found)


def secrets(spec: DeliverySpec) -> dict[str, SecretRef]:
    """Every reference to a secret, by the spec's field."""
    refs = {"model.token": token_of(spec.model), "serving.api_key": spec.serving.api_key}
    refs |= {f"model.fallback.{n}.token": token_of(other) for n, other in enumerate(fallbacks(spec.model))}
    refs |= {f"serving.env.{name}": value for name, value in spec.serving.env.items() if not isinstance(value, str)}
    return {field: ref for field, ref in refs.items() if ref is not None}
