"""What an engine in a pod compiled stays on its claim or its node, where a spec says
so.
"""

from __future__ import annotations

import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from model_delivery.steps.gc import STEP, GcInput
from model_delivery.targets.deployment import DeploymentPayload
from model_delivery.targets.kserve import KServe, KServeKey, KServePayload
from model_delivery.targets.kubernetes.caches import FOLDER, MOUNT, WHOLE
from model_delivery.targets.process import Process, ProcessKey
from model_delivery.targets.t9k import T9k, T9kKey
from model_delivery.values import Lock
from tests.parts.asked import asked
from tests.unit.test_deployment import LOCK, PLAIN


def payload(lock: Lock = LOCK, **serving: Any) -> DeploymentPayload:
    made = PLAIN.payload(asked(**serving), lock)
    assert isinstance(made, DeploymentPayload)
    return made


def pod(made: DeploymentPayload) -> dict[str, Any]:
    found: dict[str, Any] = made.deployment["spec"]["template"]["spec"]
    return found


def test_a_spec_that_says_nothing_of_a_cache_makes_the_release_that_it_always_made() -> None:
    assert payload() == payload(cache="none")
    assert "cache" not in asked().model_dump(mode="json")["serving"]
    assert payload().caches == ()
    assert "initContainers" not in pod(payload())


def test_a_claim_is_mounted_once_and_its_models_stay_read_only() -> None:
    made = pod(payload(cache="claim"))
    claims = [volume for volume in made["volumes"] if "persistentVolumeClaim" in volume]
    assert claims == [{"name": "models", "persistentVolumeClaim": {"claimName": "m-models"}}]
    mounts = {mount["mountPath"]: mount for mount in made["containers"][0]["volumeMounts"]}
    assert mounts["/mnt/model-delivery"]["readOnly"] is True
    assert mounts[MOUNT]["subPath"] == payload(cache="claim").caches[0]
    assert mounts[MOUNT]["subPath"].startswith(f"{FOLDER}/m/")


def test_what_changes_the_code_changes_the_folder_and_a_name_does_not() -> None:
    first, *others = (
        payload(cache="claim").caches,
        payload(cache="claim", args=("--dtype", "half")).caches,
        payload(cache="claim", env={"VLLM_USE_V2": "1"}).caches,
        payload(LOCK.model_copy(update={"image": "registry.example/vllm@sha256:" + "2" * 64}), cache="claim").caches,
    )
    assert len({first, *others}) == 4
    assert payload(cache="claim", model_names=("x",)).caches == first


def test_a_nodes_folder_is_made_where_it_is_missing() -> None:
    made = payload(cache="node")
    (volume,) = (volume for volume in pod(made)["volumes"] if "hostPath" in volume)
    assert volume["hostPath"] == {"path": "/var/cache/model-delivery", "type": "DirectoryOrCreate"}
    (mount,) = (mount for mount in pod(made)["containers"][0]["volumeMounts"] if mount["name"] == volume["name"])
    assert mount["subPath"].startswith("m/")
    assert made.caches == ()
    assert pod(made)["volumes"][0]["persistentVolumeClaim"]["readOnly"] is True


def test_the_container_that_tries_asks_for_no_device_and_is_as_restricted_as_the_engine() -> None:
    made = pod(payload(cache="claim", resources={"limits": {"nvidia.com/gpu": 1, "memory": "8Gi"}}))
    (tries,), (engine,) = made["initContainers"], made["containers"]
    assert tries["resources"] == {"limits": {"memory": "8Gi"}, "requests": {"memory": "8Gi"}}
    assert engine["resources"]["limits"] == {"nvidia.com/gpu": "1", "memory": "8Gi"}
    assert (tries["image"], tries["securityContext"]) == (engine["image"], engine["securityContext"])
    assert {mount["mountPath"] for mount in tries["volumeMounts"]} == {"/tmp", WHOLE}  # noqa: S108


@dataclass
class Tried:
    """The init container's script, with its folders below one of the test's."""

    top: Path

    @property
    def folder(self) -> Path:
        return self.top / "whole" / payload(cache="claim").caches[0]

    def again(self) -> str:
        """What it says of the cache."""
        script, *words = pod(payload(cache="claim"))["initContainers"][0]["command"][2:]
        for path, here in (("/tmp/", "tmp/"), (f"{WHOLE}/", "whole/"), ("/dev/termination-log", "said")):  # noqa: S108
            script, *words = (word.replace(path, f"{self.top}/{here}") for word in (script, *words))
        done = subprocess.run(["sh", "-c", script, *words], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    def links(self) -> dict[str, str]:
        there = {name: self.top / Path(path).relative_to("/") for name, path in LINKED.items()}
        return {name: str(path.readlink()) for name, path in there.items() if path.is_symlink()}


@pytest.fixture
def tried(tmp_path: Path) -> Tried:
    (tmp_path / "whole").mkdir()
    (tmp_path / "tmp").mkdir()
    return Tried(tmp_path)


LINKED = {"vllm": "/tmp/cache/vllm", "triton": "/tmp/.triton", "flashinfer": "/tmp/.cache/flashinfer"}  # noqa: S108
NEW, KEPT, UNWRITABLE, FOREIGN = "new", "kept", "unwritable", "foreign"
EVERY = {name: f"{MOUNT}/{name}" for name in LINKED}


def test_the_caches_are_linked_and_what_an_earlier_start_left_is_told(tried: Tried) -> None:
    assert (tried.again(), tried.links()) == (NEW, EVERY)
    assert not [path for path in tried.folder.rglob("*") if path.is_file()], "what was tried leaves nothing"
    assert tried.folder.stat().st_mode & 0o777 == 0o700
    assert (tried.top / "said").read_text() == f"{NEW}\n"
    (tried.folder / "triton" / "code").write_text("compiled")
    assert (tried.again(), tried.links()) == (KEPT, EVERY)


def test_many_that_start_at_once_all_find_it(tried: Tried) -> None:
    with ThreadPoolExecutor(8) as pool:
        assert {run.result() for run in [pool.submit(tried.again) for _ in range(32)]} == {NEW}


def test_what_cannot_be_written_or_is_anothers_is_left_out_and_the_pod_starts(tried: Tried) -> None:
    assert tried.again() == NEW
    triton = tried.folder / "triton"
    triton.rmdir()
    triton.write_text("a file")
    assert (tried.again(), tried.links()) == (UNWRITABLE, {}), "a link of a start before is gone too"
    triton.unlink()
    os.chown(tried.folder, 12345, 12345)
    assert (tried.again(), tried.links()) == (FOREIGN, {})


@pytest.mark.parametrize("cache", ["claim", "node"])
def test_what_starts_without_is_otherwise_the_same(cache: str) -> None:
    assert payload().without_cache() is None
    made = payload(cache=cache).without_cache()
    assert made is not None
    assert made.caches == ()
    claim = pod(made)["volumes"][0]["persistentVolumeClaim"]
    assert claim.pop("readOnly", True), "its engine's mount is read-only anyway"
    pod(made)["volumes"][0]["persistentVolumeClaim"] = claim | {"readOnly": True}
    assert made == payload()


def kserve(**serving: Any) -> KServePayload:
    made = KServe(KServeKey(namespace="ns")).payload(asked(**serving), LOCK)
    assert isinstance(made, KServePayload)
    return made


def test_kserves_pods_keep_one_on_their_node() -> None:
    made = kserve(cache="node")
    (tries,) = made.service["spec"]["predictor"]["initContainers"]
    assert {mount["mountPath"] for mount in tries["volumeMounts"]} == {"/tmp", WHOLE}  # noqa: S108
    assert MOUNT in [mount["mountPath"] for mount in made.runtime["spec"]["containers"][0]["volumeMounts"]]
    assert set(made.runtime["spec"]) == set(kserve().runtime["spec"]), "a ServingRuntime has no init containers"
    assert made.without_cache() == kserve()
    assert kserve().without_cache() is None


def test_gc_removes_what_no_release_needs_and_nothing_else(tmp_path: Path) -> None:
    kept, gone = f"{FOLDER}/m/{'a' * 16}", f"{FOLDER}/m/{'b' * 16}"
    linked, foreign, outside = tmp_path / FOLDER / "m" / ("c" * 16), tmp_path / FOLDER / "m" / "notes", tmp_path / "own"
    for folder in (kept, gone, foreign, outside):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "code").write_text("code")
    linked.symlink_to(outside)
    given = GcInput(root=str(tmp_path), wanted=(), dry_run=True, caches=(kept,))
    assert [item.path for item in STEP.run(given).items] == [gone]
    assert (tmp_path / gone).is_dir()
    assert [item.path for item in STEP.run(given.model_copy(update={"dry_run": False})).items] == [gone]
    assert not (tmp_path / gone).exists()
    assert all((tmp_path / folder / "code").exists() for folder in (kept, foreign, outside))


def test_an_older_images_gc_reads_what_it_is_given_where_no_cache_is_kept() -> None:
    assert set(GcInput(root="/", wanted=(), dry_run=True).model_dump()) == {"root", "wanted", "dry_run"}


@pytest.mark.parametrize("setting", [{"cache": "claim"}, {"readahead": True}])
@pytest.mark.parametrize("target", [T9k(T9kKey(namespace="ns")), Process(ProcessKey())])
def test_what_a_target_cannot_do_is_refused_by_name(target: Any, setting: dict[str, Any]) -> None:
    told = next(target.preflight(asked(**setting), {}, None, lambda: None))
    assert (told.code, f"serving.{next(iter(setting))}" in told.what) == ("target.not-there-yet", True)
