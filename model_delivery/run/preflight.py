"""Preflight: what can be refused before anything is touched. Every finding at once."""

from __future__ import annotations

from collections.abc import Iterator

from model_delivery.base import UNSENDABLE, Finding, Refused, SecretRef, SystemClock, bearer, from_cluster
from model_delivery.places import Place
from model_delivery.run import record as records
from model_delivery.spec import DeliverySpec
from model_delivery.steps.load import profile
from model_delivery.targets import Target
from model_delivery.targets.kubernetes.gateway import UNSERVED
from model_delivery.values import RECORD_REF, Address, Desired, Payload, Release, old_vllm, stages

NOTHING = Payload(names=(), args=())
SETTLING = (0.5, 2.0, 0.0)  # seconds, for a Gateway that was made just before


def preflight(spec: DeliverySpec, place: Place, target: Target) -> None:
    """Refused (exit code 3) with every reason why ``spec`` cannot be delivered to
    ``place`` as it stands. BadInput for a load profile that is not there or too short.
    """
    if gate := spec.gates.throughput:
        profile(gate.profile, gate.duration, gate.warmup)
    findings = [*_of_target(spec, place, target), *_unsendable(spec, place)]
    if target.key.place == "cluster":
        from model_delivery.places.cluster.binding import exposed  # a host's verb does without Kubernetes' client

        findings += exposed()
    if version := old_vllm(spec.target.image or ""):
        what, why = f"vLLM {version} is too old", f"target.image {spec.target.image} does not know --shutdown-timeout"
        findings.append(Finding("engine.too-old", what, why, "use vLLM 0.18 or newer"))
    if spec.rollout.sleeps and not target.can.sleep:
        what, why = "rollout.standby_mode sleep is refused", f"no engine sleeps on target {target.key.kind}"
        findings.append(Finding("rollout.cannot-sleep", what, why, "use standby_mode: run, or off"))
    old, new = Release("old", NOTHING), Release("new", NOTHING)
    try:
        stages(spec.rollout.strategy, Desired(spec.name, (old,), {old.id: 100}), new, spec.rollout.steps, target.can)
    except Refused as refused:
        findings += refused.findings
    if findings:
        raise Refused(*findings)


def _of_target(spec: DeliverySpec, place: Place, target: Target) -> list[Finding]:
    findings: list[Finding] = []
    for seconds in SETTLING:
        findings = [*target.preflight(spec, secrets(spec), place, lambda: _up_at(spec, place))]
        if all(finding.code != UNSERVED for finding in findings):
            break
        SystemClock().sleep(seconds)
    return findings


def _unsendable(spec: DeliverySpec, place: Place) -> Iterator[Finding]:
    """A key that no header can carry; the target says what else is wrong with it."""
    try:
        with from_cluster(place.secret):
            bearer(spec.serving.api_key)
    except Refused as refused:
        yield from (finding for finding in refused.findings if finding.what == UNSENDABLE)


def secrets(spec: DeliverySpec) -> dict[str, SecretRef]:
    """Every reference to a secret, by the spec's field."""
    refs = {"model.token": spec.model.token, "serving.api_key": spec.serving.api_key}
    refs |= {f"model.fallback.{n}.token": other.token for n, other in enumerate(spec.model.fallbacks())}
    refs |= {f"serving.env.{name}": value for name, value in spec.serving.env.items() if not isinstance(value, str)}
    return {field: ref for field, ref in refs.items() if ref is not None}


def _up_at(spec: DeliverySpec, place: Place) -> Address | None:
    """Where the delivery is up already."""
    seen = place.get(spec.name, RECORD_REF)
    return records.load(seen.resource.spec).address if seen else None
