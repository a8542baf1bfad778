"""The cluster place: other managers, lost answers, claims, rights, credentials, and how
often it asks. All on a real control plane.
"""

from __future__ import annotations

import json
import ssl
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from model_delivery.base import Finding, KubeSecret, Permanent, Refused, SystemClock
from model_delivery.base.manifests import document
from model_delivery.places.cluster.client import Forbidden
from model_delivery.places.cluster.place import Cluster as Place
from model_delivery.run.lease import Lease
from model_delivery.run.preflight import preflight
from model_delivery.spec import DeliverySpec, parse_spec
from model_delivery.targets.deployment import DEPLOYMENT
from model_delivery.targets.kubernetes.cluster import wanted_rules
from model_delivery.targets.kubernetes.kinds import CLAIM, CONFIG_MAP
from model_delivery.values import ABSENT, RECORD_REF, RELEASE, Ref, Resource
from tests.parts.cluster import Cluster
from tests.parts.cutting_proxy import CuttingProxy, cutting_proxy
from tests.places.conftest import NAME, config, service


@pytest.fixture
def namespace(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("KUBECONFIG", str(cluster.kubeconfig))
    with cluster.namespace() as name:
        yield name


@pytest.fixture
def place(namespace: str) -> Place:
    return Place(None, namespace)


def through(cluster: Cluster, proxy: CuttingProxy, folder: Path) -> Path:
    """The administrator's kubeconfig, by way of the proxy."""
    said = json.loads(cluster.kubeconfig.read_text())
    said["clusters"][0]["cluster"]["server"] = f"https://127.0.0.1:{proxy.port}"
    file = folder / "proxied.kubeconfig"
    file.write_text(json.dumps(said))
    return file


def test_a_field_of_another_manager_is_told_and_taken_over_only_when_asked(
    cluster: Cluster, namespace: str, place: Place
) -> None:
    place.put(service(1))
    theirs = {"selector": {"model-delivery/object": "theirs"}, "ports": [{"port": 8000, "protocol": "TCP"}]}
    meta = {"name": NAME, "namespace": namespace}
    manifest = json.dumps({"apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": theirs})
    cluster.kubectl(
        "apply", "--server-side", "--force-conflicts", "--field-manager", "somebody", "-f", "-", input=manifest
    )
    with pytest.raises(Permanent, match=r'(?s)selector.*is held by "somebody".*--take-over') as conflict:
        place.put(service(1))
    assert conflict.value.exit_code == 1
    assert "take-over" in str(place.put(service(1), dry_run=True).diff)
    assert Place(None, namespace, take_over=True).put(service(1)).action == "updated"
    assert place.put(service(1)).action == "unchanged"


def test_a_users_object_of_the_same_name_is_refused_and_never_deleted(
    cluster: Cluster, namespace: str, place: Place
) -> None:
    cluster.kubectl("create", "service", "clusterip", NAME, "--tcp=80", "-n", namespace)
    with pytest.raises(Refused, match="Service m is there already"):
        place.put(service(1))
    assert place.delete(NAME, service(1).ref).action == "absent"
    assert cluster.kubectl("get", "service", NAME, "-n", namespace, "-o", "name")


def test_what_was_adopted_is_deleted_though_it_carries_no_label_of_ours_and_nobody_has_looked(
    cluster: Cluster, namespace: str, place: Place
) -> None:
    cluster.kubectl("create", "configmap", "theirs", "-n", namespace)
    ref = Ref(CONFIG_MAP, "theirs")
    seen = place.get(NAME, ref)
    assert seen is not None
    adopted = {"kind": "ConfigMap", "name": "theirs", "uid": seen.status["uid"], "pods": {"labels": {"app": "theirs"}}}
    place.put(Resource(Ref(RELEASE, "r1"), "record", NAME, {"payload": {"adopted": adopted}}, "r1"))
    assert Place(None, namespace).delete("other", ref).action == "absent"
    assert Place(None, namespace).delete(NAME, ref).action == "deleted"
    assert place.get(NAME, ref) is None


@pytest.mark.parametrize(
    "resource", [Resource(RECORD_REF, "record", NAME, {"a": 1}), config("r1", 1), service(1)], ids=lambda r: str(r.ref)
)
def test_an_answer_that_was_lost_is_read_again(
    cluster: Cluster, namespace: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, resource: Resource
) -> None:
    with cutting_proxy(cluster.port) as proxy:
        monkeypatch.setenv("KUBECONFIG", str(through(cluster, proxy, tmp_path)))
        place = Place(None, namespace)
        place.deliveries()
        proxy.cut_after(1)  # the read before the write comes through
        made = place.put(resource, expect=ABSENT)
        assert proxy.cuts == 1
        seen = place.get(NAME, resource.ref)
        assert seen is not None
        assert seen.version == made.version
        changed = Resource(
            resource.ref,
            resource.role,
            NAME,
            service(2).spec if resource.role == "route" else {"data": {"b": "2"}},
            resource.release,
        )
        proxy.cut_after(1)
        again = place.put(changed, expect=seen.version)
        assert proxy.cuts == 2
        now = place.get(NAME, resource.ref)
        assert now is not None
        assert now.version == again.version
        proxy.cut_after(1)
        assert place.delete(NAME, resource.ref).action == "deleted"
        assert proxy.cuts == 3
        assert place.get(NAME, resource.ref) is None


def test_an_api_server_that_restarts_is_waited_for(cluster: Cluster, place: Place) -> None:
    place.put(config("r1", 1))
    cluster.programs.stop("kube-apiserver", grace=0)
    with ThreadPoolExecutor(1) as pool:
        write = pool.submit(place.put, config("r1", 2))
        cluster.start_apiserver()  # here: a child ends with the thread that started it
        assert write.result().action == "updated"
    assert Ref(CONFIG_MAP, f"{NAME}-r1") in place.world(NAME).objects


def claim(size: str, **spec: Any) -> Resource:
    body = {
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": size}}, **spec},
        "bind": {"any_size": False},
    }
    return Resource(Ref(CLAIM, "models"), "storage", NAME, body)


def storage_class(name: str, **more: Any) -> dict[str, Any]:
    kind = {"apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": {"name": name}}
    return kind | {"provisioner": "kubernetes.io/host-path", "volumeBindingMode": "WaitForFirstConsumer", **more}


def test_a_claim_without_a_class_names_the_classes_there_are(cluster: Cluster, place: Place) -> None:
    cluster.apply(storage_class("late"))
    with pytest.raises(Refused, match=r"(?s)no default storage class.*late"):
        place.put(claim("1Gi"))
    with pytest.raises(Refused, match=r"(?s)no storage class fast.*late"):
        place.put(claim("1Gi", storageClassName="fast"))


def test_a_claim_is_made_once_and_neither_shrinks_nor_moves(cluster: Cluster, place: Place) -> None:
    cluster.apply(storage_class("late"), storage_class("other"), storage_class("growing", allowVolumeExpansion=True))
    assert place.put(claim("2Gi", storageClassName="late")).action == "created"
    assert place.put(claim("2Gi", storageClassName="late")).action == "unchanged"
    assert place.put(claim("2Gi")).action == "unchanged", "no class in the spec: whatever it has"
    with pytest.raises(Refused, match=r"(?s)cannot shrink.*2Gi"):
        place.put(claim("1Gi"))
    with pytest.raises(Refused, match=r"(?s)cannot change its class"):
        place.put(claim("2Gi", storageClassName="other"))
    with pytest.raises(Refused, match=r"(?s)cannot grow.*late"):
        place.put(claim("3Gi"))


def test_a_bound_claim_grows(cluster: Cluster, namespace: str, place: Place) -> None:
    cluster.apply(storage_class("at-once", allowVolumeExpansion=True, volumeBindingMode="Immediate"))
    place.put(claim("1Gi", storageClassName="at-once"))
    while cluster.kubectl("get", "pvc", "models", "-n", namespace, "-o", "jsonpath={.status.phase}") != "Bound":
        place.hint(NAME, 0.2)
    assert place.put(claim("2Gi", storageClassName="at-once")).action == "updated"
    assert (
        cluster.kubectl("get", "pvc", "models", "-n", namespace, "-o", "jsonpath={.spec.resources.requests.storage}")
        == "2Gi"
    )
    taking = Place(None, namespace, take_over=True).put(claim("3Gi", storageClassName="at-once"))
    assert (taking.action, taking.stays) == ("updated", ()), "its volume, which the cluster gave it, is no addition"
    assert cluster.kubectl("get", "pvc", "models", "-n", namespace, "-o", "jsonpath={.spec.volumeName}")


def test_a_users_claim_is_used_and_left_alone(cluster: Cluster, namespace: str, place: Place) -> None:
    cluster.apply(storage_class("late"))
    made = {"accessModes": ["ReadWriteOnce"], "storageClassName": "late", "resources": {"requests": {"storage": "2Gi"}}}
    meta = {"name": "models", "namespace": namespace}
    cluster.apply({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": meta, "spec": made})
    assert place.put(claim("1Gi")).action == "unchanged", "larger than asked is well"
    with pytest.raises(Refused, match=r"(?s)too small.*not ours"):
        place.put(claim("3Gi"))
    assert place.delete(NAME, claim("1Gi").ref).action == "absent"
    assert "model-delivery" not in cluster.kubectl(
        "get", "pvc", "models", "-n", namespace, "-o", "yaml", "--show-managed-fields"
    )


def test_a_secret_is_read_by_name_and_key(cluster: Cluster, namespace: str, place: Place) -> None:
    cluster.kubectl("create", "secret", "generic", "api", "--from-literal=key=s3cret", "-n", namespace)
    ref = KubeSecret.model_validate({"kube": {"name": "api", "key": "key"}})
    assert place.secret(ref).reveal() == "s3cret"
    with pytest.raises(Refused, match=r"(?s)api.*has no key other; it has: key"):
        place.secret(KubeSecret.model_validate({"kube": {"name": "api", "key": "other"}}))
    with pytest.raises(Refused, match=r"(?s)there is no such Secret"):
        place.secret(KubeSecret.model_validate({"kube": {"name": "none", "key": "key"}}))


def missing_rights(spec: DeliverySpec, place: Place) -> list[Finding]:
    """What preflight says of rights."""
    found = spec.target.key().target().preflight(spec, {}, place, lambda: None)
    return [finding for finding in found if finding.code == "cluster.right-missing"]


def deliverer(cluster: Cluster, namespace: str, role: dict[str, Any], name: str) -> Path:
    """The kubeconfig of a user who has that Role and nothing else."""
    meta = {"name": name, "namespace": namespace}
    user = {"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": name}
    bound = {"apiVersion": role["apiVersion"], "kind": "RoleBinding", "metadata": meta, "subjects": [user]}
    ref = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name}
    cluster.apply(role | {"metadata": meta}, bound | {"roleRef": ref})
    return cluster.kubeconfig_of(name, namespace=namespace)


KINDS = {"tensorstack.dev": "t9k", "serving.kserve.io": "kserve"}


def spec_of(namespace: str, gateway: str | None = None, kind: str = "deployment") -> DeliverySpec:
    target = {"kind": kind, "namespace": namespace} | ({} if kind == "t9k" else {"gateway": gateway})
    return parse_spec(
        {
            "apiVersion": "model-delivery/v1",
            "name": NAME,
            "model": {"source": "huggingface", "repo": "a/b"},
            "storage": {"notebook": kind == "t9k"},
            "target": target,
        }
    )


@pytest.fixture(scope="module")
def limited(cluster: Cluster) -> Iterator[tuple[str, Path]]:
    """A namespace, and the kubeconfig of a user whose Role there a test may change."""
    role = document("rbac/role.yaml", "Role")
    with cluster.namespace() as namespace:
        yield namespace, deliverer(cluster, namespace, role, "limited")


@pytest.mark.parametrize("missing", wanted_rules(), ids=lambda rule: f"{rule[2]} {rule[1]}")
def test_preflight_names_the_one_right_that_is_missing(
    cluster: Cluster, limited: tuple[str, Path], monkeypatch: pytest.MonkeyPatch, missing: tuple[str, str, str]
) -> None:
    namespace, kubeconfig = limited
    monkeypatch.setenv("KUBECONFIG", str(kubeconfig))
    rules = [{"apiGroups": [g], "resources": [r], "verbs": [v]} for g, r, v in wanted_rules() if (g, r, v) != missing]
    role = f"/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}/roles/limited"
    cluster.client.patch(
        role, json={"rules": rules}, headers={"Content-Type": "application/merge-patch+json"}
    ).raise_for_status()
    group, resource, verb = missing
    spec, place = spec_of(namespace, gateway="g", kind=KINDS.get(group, "deployment")), Place(None, namespace)
    named = f"we may not {verb} {resource}{f'.{group}' if group else ''} in namespace {namespace}"

    def refusal() -> list[str]:
        with pytest.raises(Refused) as refused:
            preflight(spec, place, spec.target.key().target())
        assert refused.value.exit_code == 3
        return [finding.what for finding in refused.value.findings]

    while refusal() != [named]:  # the authorizer follows its watch
        time.sleep(0.05)


def test_what_we_may_not_is_told_with_the_servers_words(
    cluster: Cluster, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(cluster.kubeconfig_of("nobody")))
    with pytest.raises(Forbidden, match=r'(?s)cannot get resource "configmaps".*role.yaml'):
        Place(None, namespace).put(config("r1", 1))


def test_an_expired_token_is_fetched_anew_and_a_dead_one_is_told(
    cluster: Cluster, namespace: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cluster.kubectl(
        "create", "rolebinding", "edit", "--clusterrole=edit", f"--serviceaccount={namespace}:default", "-n", namespace
    )
    token = tmp_path / "token"
    credential = {"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential"}
    said = json.loads(cluster.kubeconfig.read_text())
    script = f'printf \'{json.dumps(credential)[:-1]}, "status": {{"token": "%s"}}}}\' "$(cat {token})"'
    command = {
        "apiVersion": credential["apiVersion"],
        "command": "sh",
        "args": ["-c", script],
        "interactiveMode": "Never",
    }
    said["users"] = [{"name": "admin", "user": {"exec": command}}]
    file = tmp_path / "exec.kubeconfig"
    file.write_text(json.dumps(said))
    monkeypatch.setenv("KUBECONFIG", str(file))
    short, lasting = cluster.token(namespace, "default", 4), cluster.token(namespace, "default", 600)
    token.write_text(short)
    place = Place(None, namespace)
    while True:
        try:
            place.put(config("r1", 1))
            break
        except Forbidden:  # the authorizer follows its watch
            time.sleep(0.1)
    token.write_text(lasting)
    url, known = f"{cluster.url}/api/v1/namespaces/{namespace}/configmaps", {"Authorization": f"Bearer {short}"}
    while httpx.get(
        url, headers=known, verify=ssl.create_default_context(cafile=str(cluster.authority.ca)), trust_env=False
    ).is_success:
        place.hint(NAME, 0.5)
    assert place.put(config("r1", 2)).action == "updated"
    token.write_text(short)
    with pytest.raises(Permanent, match=r"(?s)does not know us.*expired.*run again"):
        Place(None, namespace).put(config("r1", 3))


def test_a_wait_in_a_storm_of_changes_asks_at_most_sixty_times_a_minute_lease_and_all(
    cluster: Cluster, namespace: str, place: Place
) -> None:
    meta = {"name": "p", "namespace": namespace, "labels": {"model-delivery/delivery": NAME}}
    cluster.apply(
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": meta,
            "spec": {"containers": [{"name": "engine", "image": "x"}]},
        }
    )
    over = threading.Event()

    def storm() -> None:
        number = 0
        while not over.wait(0.2):
            number += 1
            patch = {"metadata": {"annotations": {"n": str(number)}}}
            path = f"/api/v1/namespaces/{namespace}/pods/p"
            cluster.client.patch(path, json=patch, headers={"Content-Type": "application/merge-patch+json"})

    stormy = threading.Thread(target=storm)
    stormy.start()
    lease = Lease(place, NAME, "storm", SystemClock())
    lease.acquire("refuse")
    try:
        began, end = len(place.client.asked), time.monotonic() + 70
        first = lease.version
        with lease.kept():
            place.world(NAME)
            while time.monotonic() < end:
                place.hint(NAME, end - time.monotonic())
                place.world(NAME)
            asked = list(place.client.asked)[began:]
            assert lease.version != first, "and it was renewed"
    finally:
        over.set()
        stormy.join()
    assert max(sum(at <= other < at + 60 for other in asked) for at in asked) <= 60
    assert len(asked) > 30, "and it did look"


def test_what_others_added_stays_and_goes_with_take_over_but_an_autoscalers_replicas(
    cluster: Cluster, namespace: str, place: Place
) -> None:
    labels = {"app": "m"}
    template = {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "engine", "image": "e.example/e:1"}]}}
    spec = {"replicas": 1, "selector": {"matchLabels": labels}, "template": template}
    wanted = Resource(Ref(DEPLOYMENT, "m-r1"), "release", NAME, {"metadata": {}, "spec": spec}, "r1")
    place.put(wanted)
    side = [{"name": "side", "image": "registry.example/s:1"}, {"name": "engine", "env": [{"name": "A", "value": "1"}]}]
    theirs = {"spec": {"template": {"spec": {"nodeSelector": {"a": "b"}, "containers": side}}}}
    patched = ("patch", "deployment", "m-r1", "-n", namespace, "-p")
    cluster.kubectl(*patched, json.dumps(theirs), "--field-manager=somebody")
    cluster.kubectl(*patched, '{"spec": {"replicas": 3}}', "--subresource=scale", "--type=merge", "--field-manager=kube-controller-manager")  # fmt: skip
    now = place.put(wanted)
    assert (now.action, now.diff) == ("unchanged", ())
    (told,) = now.stays
    assert told.startswith("somebody added ")
    assert all(path in told for path in ("containers[engine].env[A]", "containers[side]", "nodeSelector"))
    assert "spec.replicas (harmless: an autoscaler" in now.harmless[0]
    taking = Place(None, namespace, take_over=True)
    assert taking.put(wanted, dry_run=True).action == taking.put(wanted).action == "updated"
    seen = place.get(NAME, wanted.ref)
    assert seen is not None
    assert seen.resource.spec["spec"]["replicas"] == 3
    pod = seen.resource.spec["spec"]["template"]["spec"]
    assert "nodeSelector" not in pod
    assert [(one["name"], one.get("env")) for one in pod["containers"]] == [("engine", None)]
    assert place.put(wanted).stays == ()
