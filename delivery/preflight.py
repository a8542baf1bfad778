"""Preflight: what can be refused before anything is touched. Every finding at once."""

from __future__ import annotations

from collections.abc import Iterator

from delivery.engines import load_engine
from delivery.findings import Finding, Refused
from delivery.places.binding import listening
from delivery.places.host import Host
from delivery.record import Record
from delivery.release import Desired, Release
from delivery.rollout import stages
from delivery.secrets import read_secret
from delivery.session import RECORD
from delivery.sources.origin import fallbacks, token_of
from delivery.spec import DeliverySpec, KubeSecret, ProcessTarget
from delivery.targets import Target

LIMITS = ("cpu", "memory", "nvidia.com/gpu")


def preflight(spec: DeliverySpec, host: Host, target: Target) -> None:
    """Refused (exit code 3) with every reason why ``spec`` cannot be delivered to this host as it stands."""
    found = [*_not_on_a_host(spec), *_secrets(spec), *_address(spec, host)]
    if isinstance(spec.target, ProcessTarget):
        load_engine(spec.target.engine)
    old = Desired(spec.name, (Release("old", {}),), {"old": 100})
    try:
        stages(spec.rollout.strategy, old, Release("new", {}), tuple(spec.rollout.steps), target.can)
    except Refused as refused:
        found += refused.findings
    if found:
        raise Refused(*found)


def _not_on_a_host(spec: DeliverySpec) -> Iterator[Finding]:
    serving, throughput = spec.serving, spec.gates.throughput
    wanted = {
        "serving.replicas above 1": serving.replicas.max > 1,
        "serving.pod": bool(serving.pod.model_dump(exclude_defaults=True)),
        "runner.image": spec.runner.image is not None,
        "approval: manual": spec.approval == "manual",
        "storage.notebook": bool(getattr(spec.storage, "notebook", False)),
        "gates.throughput.max_regression": throughput is not None and throughput.max_regression is not None,
    }
    wanted |= {f"serving.resources.limits: {name}": name not in LIMITS for name in serving.resources.limits}
    for what, asked in wanted.items():
        if asked:
            yield Finding(
                f"{what} is not there yet", f"target {spec.target.kind} of this version cannot do it", f"remove {what} from the spec"
            )


def _secrets(spec: DeliverySpec) -> Iterator[Finding]:
    refs = {"model.token": token_of(spec.model), "serving.api_key": spec.serving.api_key}
    refs |= {f"model.fallback.{n}.token": token_of(other) for n, other in enumerate(fallbacks(spec.model))}
    refs |= {f"serving.env.{name}": value for name, value in spec.serving.env.items() if not isinstance(value, str)}
    for field, ref in refs.items():
        if isinstance(ref, KubeSecret):
            yield Finding(f"{field} names a Kubernetes secret", "a host has none", "use {env: NAME} or {file: PATH}")
        elif ref is not None:
            try:
                read_secret(ref)
            except Refused as refused:
                yield from refused.findings


def _address(spec: DeliverySpec, host: Host) -> Iterator[Finding]:
    if not isinstance(spec.target, ProcessTarget):
        return
    port = spec.target.port
    seen = host.get(spec.name, RECORD)
    address = Record.model_validate(seen.resource.spec).address if seen else None
    if address is not None and address.port != port:
        why = f"it is up on port {address.port}, the spec says {port}"
        yield Finding(f"the port of {spec.name} cannot change while it is up", why, f"`deliver down {spec.name}` first")
    elif address is None and listening("127.0.0.1", port):
        yield Finding(
            "the service's port is taken",
            f"something else listens on 127.0.0.1:{port}",
            "choose another target.port, or stop what listens there",
        )
