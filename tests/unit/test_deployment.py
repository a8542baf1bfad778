"""Target deployment as values: what a release and a route are made of, and when traffic
has really moved.
"""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest

from model_delivery.base import KubeSecret, Refused
from model_delivery.places.cluster.objects import from_object, to_object
from model_delivery.spec import parse_spec
from model_delivery.targets import StepRun
from model_delivery.targets.deployment import Deployment, DeploymentKey
from model_delivery.values import (
    Address,
    Current,
    Desired,
    Failed,
    File,
    InProgress,
    Lock,
    Observed,
    Ref,
    Release,
    Resource,
    Runner,
    Snapshot,
    Storage,
    Where,
    World,
    digest,
)
from model_delivery.verbs.plan import render
from tests.parts.asked import asked
from tests.parts.kinds import BY_NAME

SNAPSHOT = Snapshot(
    source="huggingface", key="a--b", commit="c" * 40, files=(File(path="model.safetensors", size=14 * 10**9),)
)
LOCK = Lock(snapshot=SNAPSHOT, image="registry.example/vllm@sha256:" + "1" * 64)
PLAIN = Deployment(DeploymentKey(namespace="ns"))
WEIGHED = Deployment(DeploymentKey(namespace="ns", gateway="gateways/public", hostname="m.example"))


def release(target: Deployment, name: str = "", **more: Any) -> Release:
    payload = target.payload(asked(**more), LOCK)
    return Release(name or digest(payload.content()), payload)


def composed(target: Deployment, *releases: Release, **shares: int) -> dict[str, dict[str, Any]]:
    want = Desired("m", releases, shares, target.address("m"))
    return {str(r.ref): to_object(r, "ns") for r in target.compose(want)}


def engine(made: dict[str, dict[str, Any]], name: str = "r1") -> dict[str, Any]:
    container: dict[str, Any] = made[f"Deployment/m-{name}"]["spec"]["template"]["spec"]["containers"][0]
    return container


def test_one_number_is_behind_every_deadline() -> None:
    made = composed(PLAIN, release(PLAIN, "r1", startup_timeout="901s"))
    container = engine(made)
    probe = container["startupProbe"]
    assert 901 <= probe["failureThreshold"] * probe["periodSeconds"] < 901 + probe["periodSeconds"]
    assert {"name": "VLLM_ENGINE_READY_TIMEOUT_S", "value": "901"} in container["env"]
    assert made["Deployment/m-r1"]["spec"]["progressDeadlineSeconds"] > 901
    large = release(PLAIN).payload.startup_seconds
    assert large == 600 + 600 + 300 + 140


def test_a_users_text_stays_as_it_is() -> None:
    made = composed(PLAIN, release(PLAIN, "r1", args=["--x", "$(HOME) {{ .a }} $$"], env={"A": "$(B)"}))
    assert "$$(HOME) {{ .a }} $$$$" in engine(made)["args"]
    assert {"name": "A", "value": "$$(B)"} in engine(made)["env"]


def test_what_a_pod_is_asked_for() -> None:
    pod = {
        "node_selector": {"gpu": "h100"},
        "image_pull_secrets": ["pull"],
        "shm": "8Gi",
        "service_account": "sa",
        "priority_class": "high",
    }
    asked = {
        "resources": {"limits": {"nvidia.com/gpu": 2, "cpu": 4}},
        "pod": pod,
        "api_key": {"kube": {"name": "api", "key": "k"}},
    }
    made = composed(PLAIN, release(PLAIN, "r1", **asked, chat_template="{{ x }}"))
    spec = made["Deployment/m-r1"]["spec"]["template"]["spec"]
    assert (spec["nodeSelector"], spec["imagePullSecrets"], spec["serviceAccountName"]) == (
        {"gpu": "h100"},
        [{"name": "pull"}],
        "sa",
    )
    assert spec["enableServiceLinks"] is False
    assert {v["name"]: v.get("emptyDir") for v in spec["volumes"]}["shm"] == {"medium": "Memory", "sizeLimit": "8Gi"}
    assert engine(made)["resources"]["limits"] == {"nvidia.com/gpu": "2", "cpu": "4"}
    assert {"name": "VLLM_API_KEY", "valueFrom": {"secretKeyRef": {"name": "api", "key": "k"}}} in engine(made)["env"]
    assert made["ConfigMap/m-r1"]["data"] == {"chat_template.jinja": "{{ x }}"}
    assert "--chat-template" in engine(made)["args"]


def test_the_secrets_of_an_engine_are_known_whatever_they_are_for() -> None:
    api, hub = ({"kube": {"name": name, "key": "k"}} for name in ("api", "hub"))
    refs = release(PLAIN, "r1", api_key=api, env={"HF_TOKEN": hub}).payload.secrets
    assert {ref.model_dump_json() for ref in refs} == {
        KubeSecret.model_validate(ref).model_dump_json() for ref in (api, hub)
    }


def test_a_payload_that_is_composed_again_is_the_same_and_is_not_touched() -> None:
    one = release(PLAIN, "r1")
    before = json.dumps(one.payload.content(), sort_keys=True)
    assert composed(PLAIN, one, r1=100) == composed(PLAIN, one, r1=100)
    assert json.dumps(one.payload.content(), sort_keys=True) == before


def test_every_object_says_whose_it_is() -> None:
    for target, shares in ((PLAIN, {"r1": 100}), (WEIGHED, {"r1": 90, "r2": 10})):
        for made in composed(target, release(target, "r1"), release(target, "r2"), **shares).values():
            assert made["metadata"]["namespace"] == "ns"
            said = made["metadata"]["labels"]
            assert said["model-delivery/delivery"] == "m"
            assert said["model-delivery/role"] == ("release" if "model-delivery/release" in said else "route")


def test_traffic_without_a_gateway_is_one_releases() -> None:
    made = composed(PLAIN, release(PLAIN, "r1"), r1=100)
    assert made["Service/m"]["spec"]["selector"] == {"model-delivery/object": "m-r1"}
    assert composed(PLAIN)["Service/m"]["spec"]["selector"] == {"model-delivery/object": "m-none"}
    assert PLAIN.can.weights == "none"
    with pytest.raises(Refused, match="cannot weigh"):
        composed(PLAIN, release(PLAIN, "r1"), release(PLAIN, "r2"), r1=50, r2=50)


def test_traffic_with_a_gateway_is_weighed() -> None:
    route = composed(WEIGHED, release(WEIGHED, "r1"), release(WEIGHED, "r2"), r1=90, r2=10)["HTTPRoute/m"]["spec"]
    assert route["parentRefs"] == [{"name": "public", "namespace": "gateways"}]
    assert route["hostnames"] == ["m.example"]
    assert {(b["name"], b["weight"]) for b in route["rules"][0]["backendRefs"]} == {("m-r1", 90), ("m-r2", 10)}
    assert WEIGHED.address("m") == Address("m.example", 80)


def seen(*objects: dict[str, Any], **beside: Any) -> World:
    """The world as the place reads it of these manifests, with what the server adds."""
    versions = itertools.count(1)
    observed: dict[Ref, Observed] = {}
    for made in objects:
        meta = {**made["metadata"], "resourceVersion": str(next(versions)), "generation": 2}
        one = from_object({**made, "metadata": meta}, BY_NAME[made["kind"]])
        observed[one.resource.ref] = one
    return World("m", observed, 0.0, {"Pod": (), "Event": (), "EndpointSlice": (), "Node": (), **beside})


def test_a_deployment_is_ready_when_its_newest_state_is() -> None:
    one = release(PLAIN, "r1")
    made = composed(PLAIN, one)["Deployment/m-r1"]
    good = {"observedGeneration": 2, "replicas": 1, "updatedReplicas": 1, "availableReplicas": 1}
    assert PLAIN.readiness(one, seen(made | {"status": good})) == Current("http://m-r1.ns.svc:8000")
    for stale in (
        {"observedGeneration": 1},
        {"availableReplicas": 0},
        {"updatedReplicas": 0},
        {"unavailableReplicas": 1},
    ):
        assert isinstance(PLAIN.readiness(one, seen(made | {"status": good | stale})), InProgress), stale
    assert isinstance(PLAIN.readiness(one, seen()), InProgress)


def test_a_service_has_moved_when_its_endpoints_have() -> None:
    one = release(PLAIN, "r1")
    want = Desired("m", (one,), {"r1": 100}, PLAIN.address("m"))
    service = composed(PLAIN, one, r1=100)["Service/m"]
    pod = {"metadata": {"name": "m-r1-x", "labels": {"model-delivery/object": "m-r1"}}, "status": {}}

    def slices(*names: str, ready: bool = True) -> tuple[dict[str, Any], ...]:
        endpoints = [{"targetRef": {"name": name}, "conditions": {"ready": ready}} for name in names]
        return ({"metadata": {"labels": {"kubernetes.io/service-name": "m"}}, "endpoints": endpoints},)

    assert PLAIN.routed(want, seen(service, Pod=(pod,), EndpointSlice=slices("m-r1-x"))) == Current(
        "http://m.ns.svc:8000"
    )
    for late in (slices("m-r0-x"), slices("m-r1-x", "m-r0-x"), slices("m-r1-x", ready=False), ()):
        assert isinstance(PLAIN.routed(want, seen(service, Pod=(pod,), EndpointSlice=late)), InProgress)


def test_a_route_has_moved_when_a_gateway_has_taken_this_state_of_it() -> None:
    one = release(WEIGHED, "r1")
    want = Desired("m", (one,), {"r1": 100}, WEIGHED.address("m"))
    route = composed(WEIGHED, one, r1=100)["HTTPRoute/m"]

    def said(generation: int, accepted: str = "True") -> dict[str, Any]:
        conditions = [
            {
                "type": "Accepted",
                "status": accepted,
                "reason": "NoMatchingParent",
                "message": "no",
                "observedGeneration": generation,
            },
            {"type": "ResolvedRefs", "status": "True", "reason": "ResolvedRefs", "observedGeneration": generation},
        ]
        return route | {"status": {"parents": [{"conditions": conditions}]}}

    assert WEIGHED.routed(want, seen(said(2))) == Current("http://m.example:80")
    assert isinstance(WEIGHED.routed(want, seen(said(1))), InProgress), "it speaks of the route before"
    assert isinstance(WEIGHED.routed(want, seen(route)), InProgress)
    assert isinstance(WEIGHED.routed(want, seen(said(2, "False"))), Failed)


def at_a_gateway(shares: dict[str, int], **told: tuple[str, str]) -> dict[str, Any]:
    """The live route of r1 and r2, with what its controller says of it."""
    route = composed(WEIGHED, release(WEIGHED, "r1"), release(WEIGHED, "r2"), r1=1, r2=1)["HTTPRoute/m"]
    (rule,) = route["spec"]["rules"]
    rule["backendRefs"] = [{"name": f"m-{name}", "weight": weight} for name, weight in shares.items()]
    judged = [
        {"type": kind, "status": status, "reason": reason, "observedGeneration": 2}
        for kind, (status, reason) in (
            {"Accepted": ("True", "Accepted"), "ResolvedRefs": ("True", "Yes")} | told
        ).items()
    ]
    return route | {"status": {"parents": [{"conditions": judged}]}}


@pytest.mark.parametrize(
    ("live", "words"),
    [
        (at_a_gateway({}), "it names no backend, and clients get 404"),
        (at_a_gateway({"r1": 0, "r2": 0}), "every weight is 0, and clients get 500"),
        (at_a_gateway({"r1": 100}), "m-r1 has 100"),
        (at_a_gateway({"r1": 0, "r2": 100}, ResolvedRefs=("False", "BackendNotFound")), "BackendNotFound"),
        (at_a_gateway({"r1": 0, "r2": 100}, Accepted=("Unknown", "Pending")), "no controller has judged"),
        (at_a_gateway({"r1": 0, "r2": 100}, Accepted=("False", "RuleMatchConflict")), "RuleMatchConflict"),
        (at_a_gateway({"r1": 0, "r2": 100}), ""),
        (at_a_gateway({"r1": 0, "r2": 100, "old": 0}), ""),
        (at_a_gateway({"r1": 0, "r2": 100, "old": 1}), "m-old has 1"),
    ],
)
def test_where_traffic_goes_is_told_as_a_gateway_takes_the_route(live: dict[str, Any], words: str) -> None:
    one, two = release(WEIGHED, "r1"), release(WEIGHED, "r2")
    match WEIGHED.routed(Desired("m", (one, two), {"r2": 100}, WEIGHED.address("m")), seen(live)):
        case Current():
            assert not words
        case InProgress(why):
            assert words
            assert words in why
        case Failed(finding):
            assert words in finding.what
            assert "the HTTPRoute that is older" in finding.fix


def test_a_release_without_traffic_is_known_to_the_gateway() -> None:
    made = composed(WEIGHED, release(WEIGHED, "r1"), release(WEIGHED, "r2"), r1=100)["HTTPRoute/m"]
    (rule,) = made["spec"]["rules"]
    assert {ref["name"]: ref["weight"] for ref in rule["backendRefs"]} == {"m-r1": 100, "m-r2": 0}
    assert rule["timeouts"] == {"request": "0s"}


def test_a_step_is_known_by_its_input_and_runner_and_names_no_secret_value() -> None:
    from model_delivery.models.sources.huggingface import HuggingFaceModel
    from model_delivery.run.frozen import Frozen

    payload = release(PLAIN, resources={"limits": {"nvidia.com/gpu": 1}}).payload
    model = HuggingFaceModel.model_validate(
        {"source": "huggingface", "repo": "a/b", "token": {"kube": {"name": "hf", "key": "token"}}}
    )
    frozen = Frozen(payload=payload, lock=LOCK, unchanged="", model=model, storage=Storage(), args=(), created=0)
    given = json.dumps({"model": model.model_dump(mode="json")})

    def step(image: str = "runner:1", try_: int = 1) -> tuple[Resource, ...]:
        return PLAIN.step(StepRun("m", "fetch", given, "fetch", 1, try_, frozen.payload, Runner(image=image)))

    config, puller, job = step()
    assert (config.ref.kind.name, job.ref.kind.name, config.ref.name) == ("ConfigMap", "Job", job.ref.name)
    assert step() == (config, puller, job)
    assert len({one[-1].ref for one in (step(), step("runner:2"), step(try_=2))}) == 3
    pod = job.spec["template" if "template" in job.spec else "spec"]["template"]["spec"]
    beside = puller.spec["spec"]["template"]["spec"]
    assert [(c["name"], c["image"]) for c in pod["containers"]] == [("step", "runner:1")]
    assert [(c["name"], c["image"]) for c in beside["containers"]] == [("image", LOCK.image)]
    assert "secret" not in json.dumps(beside), "it reads nothing"
    projected = next(v for v in pod["volumes"] if v["name"] == "secrets")["projected"]
    assert projected == {"sources": [{"secret": {"name": "hf", "items": [{"key": "token", "path": "hf/token"}]}}]}
    assert job.spec["bind"]["near"] == {"nvidia.com/gpu": 1}


@pytest.mark.parametrize("name", ["smoke", "load"])
def test_a_step_that_asks_the_service_runs_as_its_image_s_own_user(name: str) -> None:
    _, job = PLAIN.step(StepRun("m", name, "{}", "dark", 1, 1, release(PLAIN).payload, Runner(image="r:1")))
    context = job.spec["spec"]["template"]["spec"]["securityContext"]
    assert context == {
        "runAsNonRoot": True,
        "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": {"type": "RuntimeDefault"},
    }


@pytest.mark.parametrize("name", ["fetch", "verify", "smoke", "load"])
def test_where_pods_may_run_reaches_every_step_unless_the_runner_says_otherwise(name: str) -> None:
    taint = {"key": "gpu", "operator": "Exists"}
    there = {"tolerations": [taint], "node_selector": {"pool": "gpu"}, "priority_class": "high", "service_account": "x"}
    given = there | {"security_context": {"runAsUser": 1000800000}, "annotations": {"sidecar.istio.io/inject": "false"}}
    payload = release(PLAIN, pod=given).payload

    def pod(runner: Runner) -> tuple[dict[str, Any], dict[str, Any]]:
        _, *pulls, job = PLAIN.step(StepRun("m", name, "{}", "fetch", 1, 1, payload, runner))
        assert len(pulls) == (name == "fetch")
        template = job.spec["spec"]["template"]
        return template["spec"], template["metadata"]

    asked, meta = pod(Runner(image="r:1"))
    assert (asked["tolerations"], asked["nodeSelector"]) == ([taint], {"pool": "gpu"})
    assert (asked["priorityClassName"], asked["serviceAccountName"]) == ("high", "x")
    assert asked["securityContext"]["runAsUser"] == 1000800000
    assert meta["annotations"] == {"sidecar.istio.io/inject": "false"}
    other, _ = pod(Runner(image="r:1", pod=Where(node_selector={"pool": "cpu"})))
    assert (other["nodeSelector"], "tolerations" in other) == ({"pool": "cpu"}, False)


def test_what_is_rendered_trusts_the_allowed_code() -> None:
    asked = {"apiVersion": "model-delivery/v1", "name": "m", "target": {"kind": "deployment"}}
    model = {"source": "huggingface", "repo": "org/model"}
    for allow in ([], ["remote-code"]):
        made, _ = render(parse_spec({**asked, "model": {**model, "allow": allow}}), offline=True)
        (pods,) = (each["spec"]["template"]["spec"] for each in made if each["kind"] == "Deployment")
        assert ("--trust-remote-code" in pods["containers"][0]["args"]) == bool(allow)
