"""Preflight: what can be refused before anything is touched. Every finding at once."""

from __future__ import annotations

from collections.abc import Iterator

from model_delivery.base.findings import Finding, Refused
from model_delivery.base.secrets import KubeSecret, SecretRef, read_secret
from model_delivery.places import Place
from model_delivery.places.host.binding import listening
from model_delivery.places.host.engines import load_engine
from model_delivery.run.record import load
from model_delivery.spec import DeliverySpec
from model_delivery.targets import Target
from model_delivery.targets.spec import ProcessTarget, T9kTarget
from model_delivery.values.release import Desired, Release
from model_delivery.values.resources import RECORD_REF
from model_delivery.values.rollout import stages

LIMITS = ("cpu", "memory", "nvidia.com/gpu")


def preflight(spec: DeliverySpec, place: Place, target: Target) -> None:
    """Refused (exit code 3) with every reason why ``spec`` cannot be delivered to ``place`` as it stands."""
    if isinstance(spec.target, ProcessTarget):
        found = [*_not_on_a_host(spec), *_secrets(spec), *_address(spec, place)]
        load_engine(spec.target.engine)
    else:
        from model_delivery.places.cluster.place import Cluster
        from model_delivery.places.cluster.rights import preflight_cluster

        if not isinstance(place, Cluster):
            raise TypeError(f"target {spec.target.kind} lives in a cluster")
        found = [*_nowhere_yet(spec), *_no_secret_of_ours(spec), *preflight_cluster(spec, place, secrets(spec))]
    old = Desired(spec.name, (Release("old", {}),), {"old": 100})
    try:
        stages(spec.rollout.strategy, old, Release("new", {}), tuple(spec.rollout.steps), target.can)
    except Refused as refused:
        found += refused.findings
    if found:
        raise Refused(*found)


def secrets(spec: DeliverySpec) -> dict[str, SecretRef]:
    """Every reference to a secret, by the spec's field."""
    refs = {"model.token": spec.model.token, "serving.api_key": spec.serving.api_key}
    refs |= {f"model.fallback.{n}.token": other.token for n, other in enumerate(spec.model.fallbacks())}
    refs |= {f"serving.env.{name}": value for name, value in spec.serving.env.items() if not isinstance(value, str)}
    return {field: ref for field, ref in refs.items() if ref is not None}


def _nowhere_yet(spec: DeliverySpec) -> Iterator[Finding]:
    notebook = spec.storage.notebook and not isinstance(spec.target, T9kTarget)
    wanted = {"approval: manual": spec.approval == "manual", "storage.notebook": notebook}
    for what, asked in wanted.items():
        if asked:
            yield _not_yet(spec, what)


def _not_yet(spec: DeliverySpec, what: str) -> Finding:
    why = f"target {spec.target.kind} of this version cannot do it"
    return Finding("todo", f"{what} is not there yet", why, f"remove {what} from the spec")


def _not_on_a_host(spec: DeliverySpec) -> Iterator[Finding]:
    yield from _nowhere_yet(spec)
    wanted = {
        "serving.replicas above 1": spec.serving.replicas.max > 1,
        "serving.pod": bool(spec.serving.pod.model_dump(exclude_defaults=True)),
        "runner.image": spec.runner.image is not None,
    }
    wanted |= {f"serving.resources.limits: {name}": name not in LIMITS for name in spec.serving.resources.limits}
    for what, asked in wanted.items():
        if asked:
            yield _not_yet(spec, what)


def _secrets(spec: DeliverySpec) -> Iterator[Finding]:
    for field, ref in secrets(spec).items():
        if isinstance(ref, KubeSecret):
            yield Finding(
                "todo", f"{field} names a Kubernetes secret", "a host has none", "use {env: NAME} or {file: PATH}"
            )
            continue
        try:
            read_secret(ref)
        except Refused as refused:
            yield from refused.findings


def _no_secret_of_ours(spec: DeliverySpec) -> Iterator[Finding]:
    for field, ref in secrets(spec).items():
        if not isinstance(ref, KubeSecret):
            why = "a pod sees neither the environment nor the files of the machine that delivers"
            yield Finding(
                "todo", f"{field} is not a Kubernetes secret", why, "make one, and use {kube: {name: …, key: …}}"
            )


def _address(spec: DeliverySpec, place: Place) -> Iterator[Finding]:
    if not isinstance(spec.target, ProcessTarget):
        return
    port = spec.target.port
    seen = place.get(spec.name, RECORD_REF)
    address = load(seen.resource.spec).address if seen else None
    if address is not None and address.port != port:
        why = f"it is up on port {address.port}, the spec says {port}"
        yield Finding(
            "todo", f"the port of {spec.name} cannot change while it is up", why, f"`deliver down {spec.name}` first"
        )
    elif address is None and listening("127.0.0.1", port):
        yield Finding(
            "todo",
            "the service's port is taken",
            f"something else listens on 127.0.0.1:{port}",
            "choose another target.port, or stop what listens there",
        )
