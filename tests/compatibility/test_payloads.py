"""What the version before typed payloads stored is read, and makes the very objects that
it made: an upgrade restarts nothing.

``payloads.json`` was written by that version (see ``about`` in it).
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from model_delivery.base.manifests import document
from model_delivery.places.cluster.objects import from_object, to_object
from model_delivery.run.plan import unchanged_digest
from model_delivery.spec import DeliverySpec, parse_spec
from model_delivery.targets import AnyKey, AnyPayload, StepRun, Target, TargetKey
from model_delivery.targets.deployment import DeploymentAdopted
from model_delivery.targets.kubernetes.release import IDENTITY
from model_delivery.values import Address, Desired, Lock, Payload, Pod, Ref, Release, Replicas, Resource, digest
from tests.parts.kinds import BY_NAME

STORED = json.loads((Path(__file__).parent / "payloads.json").read_text())
ENTRIES: dict[str, dict[str, Any]] = {
    **STORED["specs"],
    **{f"adopted {kind}": e for kind, e in STORED["adopted"].items()},
}
COMMAND: list[str] = document("step.yaml", "Job")["spec"]["template"]["spec"]["containers"][0]["command"]
DRAINS = re.compile(r'(--shutdown-timeout(?:", "| )|terminationGracePeriodSeconds(?:": |: null → ))\d+')
KEY: TypeAdapter[TargetKey] = TypeAdapter(AnyKey)
PAYLOAD: TypeAdapter[Payload] = TypeAdapter(AnyPayload)


class Entry:
    """One delivery as it was stored."""

    def __init__(self, title: str) -> None:
        self.stored = ENTRIES[title]
        self.key = KEY.validate_python(self.stored["key"])
        self.payload = PAYLOAD.validate_python(self.stored["payload"])
        self.lock = Lock.model_validate(self.stored["lock"])

    @property
    def spec(self) -> DeliverySpec:
        return parse_spec(self.stored["spec"])

    @property
    def target(self) -> Target:
        return self.key.target()

    def shown(self, resource: Resource) -> dict[str, Any]:
        ref = [str(resource.ref.kind), resource.ref.name]
        made = {"ref": ref, "role": resource.role, "delivery": resource.delivery, "release": resource.release}
        if self.key.namespace is None:
            return made | {"spec": dict(resource.spec)}
        bind = {"bind": resource.spec["bind"]} if "bind" in resource.spec else {}
        return made | {"object": to_object(resource, self.key.namespace)} | bind


def as_before(made: dict[str, Any]) -> dict[str, Any]:
    """A route by a gateway is the delivery's, not a release's, and may change with a
    version: the next ``up`` heals it. It has no time limit by now, and names who gets no
    traffic.
    """
    if made["ref"][0] == "HTTPRoute":
        (rule,) = made["object"]["spec"]["rules"]
        assert rule.pop("timeouts") == {"request": "0s"}
        rule["backendRefs"] = [ref for ref in rule["backendRefs"] if ref["weight"]]
    return made


@pytest.fixture(params=ENTRIES)
def entry(request: pytest.FixtureRequest) -> Entry:
    return Entry(request.param)


def without_version(content: dict[str, Any]) -> dict[str, Any]:
    """The package's version stands in a Deployment's labels; open streams got 30 s."""
    made = json.loads(DRAINS.sub(r"\g<1>0", json.dumps(content)))
    made.get("deployment", {}).get("metadata", {}).get("labels", {}).pop("app.kubernetes.io/version", None)
    return dict(made)


def test_a_stored_payload_keeps_its_content_and_its_id(entry: Entry) -> None:
    content = entry.payload.content()
    if isinstance(entry.payload, DeploymentAdopted):
        del content["service"]  # an older version made it from the manifest
    assert content == entry.stored["payload"]
    assert digest(content) == entry.stored["release"]
    assert PAYLOAD.validate_python(entry.payload.content()) == entry.payload


def test_a_stored_payload_makes_the_same_objects(entry: Entry) -> None:
    table, name = entry.stored["resources"], entry.stored["spec"]["name"]
    host, port = entry.stored["address"]
    for title, want in entry.stored["composed"].items():
        releases = tuple(Release(id_, entry.payload, replicas) for id_, replicas in want["releases"])
        address = Address(host, port) if want["address"] else None
        made = [entry.shown(r) for r in entry.target.compose(Desired(name, releases, want["traffic"], address))]
        assert list(map(as_before, made)) == [table[number] for number in want["resources"]], title


def test_the_service_of_a_deployment_that_was_adopted_is_what_it_was_whatever_the_manifest_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from model_delivery.targets import deployment

    monkeypatch.setattr(deployment, "manifest", lambda *_: pytest.fail("a live release is made from a manifest"))
    entry = Entry("adopted deployment")
    *_, service = entry.payload.resources("llama", Release("r1", entry.payload))  # type: ignore[attr-defined]
    assert service.spec["spec"]["ports"] == [{"name": "http", "port": 8000, "targetPort": 9000, "protocol": "TCP"}]


def test_a_spec_is_known_again_and_comes_to_the_same_payload(entry: Entry) -> None:
    assert unchanged_digest(entry.spec, entry.lock) == entry.stored["unchanged_digest"]
    target = entry.spec.target.key().target()
    if entry.payload.by_hand is None:
        made = target.payload(entry.spec, entry.lock)
        assert without_version(made.content()) == without_version(entry.stored["payload"])
        return
    live = {kind: BY_NAME[kind] for kind in (found["kind"] for found in entry.stored["live"])}
    there = {Ref(live[o["kind"]], o["metadata"]["name"]): from_object(o, live[o["kind"]]) for o in entry.stored["live"]}
    count = Replicas(min=entry.stored["replicas"], max=entry.stored["replicas"])  # as it runs: refused otherwise
    serving = entry.spec.serving.model_copy(update={"replicas": count})
    asked = entry.spec.model_copy(update={"serving": serving})
    found = target.adopt(asked, entry.lock, entry.stored["named"], there.get)
    assert (found.what, found.replicas) == (entry.stored["what"], entry.stored["replicas"])
    assert _shown(found.differs) == _shown(entry.stored["differs"])
    assert found.payload == entry.payload


def test_a_stored_key_is_the_specs_own(entry: Entry) -> None:
    key = entry.spec.target.key()
    assert entry.key.admits(key)
    address = key.target().address(entry.stored["spec"]["name"])
    assert [address.host, address.port] == entry.stored["address"]


def as_then(step: str, resources: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Without what our Jobs have more since, and with what they have less. The image was
    pulled by the fetch's own pod.
    """
    if len(resources) == 3:
        puller, job = (found["object"]["spec"]["template"]["spec"] for found in resources[1:])
        job["containers"] += puller["containers"]
        del resources[1]
    for resource in resources:
        if step == "smoke" and "bind" in resource:
            assert resource["bind"].pop("replicas")
        if "spec" in resource.get("object", {}):
            pod = resource["object"]["spec"]["template"]["spec"]
            assert pod["containers"][0]["env"].pop()["name"] == "MODEL_DELIVERY_MARK"
            if step in ("smoke", "load"):
                pod["securityContext"] |= dict.fromkeys(IDENTITY, 1000)
    return resources


def test_steps_and_storage_are_the_same(entry: Entry) -> None:
    """Of a spec with a ``serving.pod``, the names are: a Job that was begun is adopted as
    it is, though ours now take more of it.
    """
    name, spec = entry.stored["spec"]["name"], entry.spec
    assert [entry.shown(r) for r in entry.target.storage(name, entry.lock, spec.storage)] == entry.stored["storage"]
    for step, stored in entry.stored["steps"].items():
        given = json.dumps(stored["input"], separators=(",", ":"), ensure_ascii=False)
        run = StepRun(name, step, given, "dark", 1, 1, entry.payload, spec.runner, entry.stored["release"])
        made = json.dumps([entry.shown(resource) for resource in entry.target.step(run)])
        now, then = (json.dumps(words) for words in (COMMAND, ["python", "-m", "delivery.steps.run"]))
        made_now = as_then(step, json.loads(made.replace(now, then)))
        assert [r["ref"] for r in made_now] == [r["ref"] for r in stored["resources"]]
        if spec.serving.pod == Pod():
            assert made_now == stored["resources"], step


@pytest.mark.parametrize("package", ["delivery", "model_delivery"])
def test_a_step_runs_in_an_image_of_the_old_version_too(package: str, tmp_path: Path) -> None:
    """A record and a spec name the image that was current when they were written."""
    module = tmp_path / package / "steps" / "run.py"
    module.parent.mkdir(parents=True)
    module.write_text("import sys\nprint(__name__, *sys.argv[1:])\n")
    words = [sys.executable, "-S", *COMMAND[1:], "fetch", "/etc/model-delivery/input.json", "-"]
    environ = {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(words, cwd=module.parent, env=environ, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["__main__", "fetch", "/etc/model-delivery/input.json", "-"], done.stderr


@pytest.mark.parametrize("stored", [{}, {"names": [], "args": []}, {**ENTRIES["t9k-least"]["payload"], "more": 1}])
def test_a_payload_of_no_target_is_refused(stored: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        PAYLOAD.validate_python(stored)


def _shown(differs: Iterable[str]) -> list[str]:
    """But variables, which are told in other words since (where one comes from, too), and
    the time that open streams get.
    """
    return [DRAINS.sub(r"\g<1>0", line) for line in differs if not line.startswith("env.")]
