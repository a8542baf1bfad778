"""What an engine in a pod compiled stays on its claim or its node, where a spec says
so.
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from model_delivery.steps.gc import STEP, GcInput
from model_delivery.targets.deployment import DeploymentPayload
from model_delivery.targets.kserve import KServe, KServeKey
from model_delivery.targets.kubernetes.caches import FOLDER, LINKED, MOUNT
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
    assert volume["hostPath"]["type"] == "DirectoryOrCreate"
    assert volume["hostPath"]["path"].startswith("/var/cache/model-delivery/m/")
    assert made.caches == ()
    assert pod(made)["volumes"][0]["persistentVolumeClaim"]["readOnly"] is True


def test_the_container_that_tries_asks_for_no_device_and_is_as_restricted_as_the_engine() -> None:
    made = pod(payload(cache="claim", resources={"limits": {"nvidia.com/gpu": 1, "memory": "8Gi"}}))
    (tries,), (engine,) = made["initContainers"], made["containers"]
    assert tries["resources"] == {"limits": {"memory": "8Gi"}, "requests": {"memory": "8Gi"}}
    assert engine["resources"]["limits"] == {"nvidia.com/gpu": "1", "memory": "8Gi"}
    assert (tries["image"], tries["securityContext"]) == (engine["image"], engine["securityContext"])
    assert {mount["mountPath"] for mount in tries["volumeMounts"]} == {"/tmp", MOUNT}  # noqa: S108


@pytest.mark.parametrize("usable", [True, False])
def test_the_caches_are_linked_only_where_they_can_be_written(tmp_path: Path, *, usable: bool) -> None:
    (script,) = pod(payload(cache="claim"))["initContainers"][0]["command"][2:]
    kept, tmp = tmp_path / "kept", tmp_path / "tmp"
    tmp.mkdir()
    if usable:
        kept.mkdir()
    else:
        kept.write_text("a file")
    moved = script.replace("/tmp/", f"{tmp}/").replace(MOUNT, str(kept))  # noqa: S108
    done = subprocess.run(["sh", "-c", moved], capture_output=True, text=True, check=True)
    assert ("[engine.cache-unusable]" in done.stdout) is not usable, done.stderr
    for name, path in LINKED.items():
        link = tmp / Path(path).relative_to("/tmp")  # noqa: S108
        assert link.is_symlink() is usable
        assert not usable or link.resolve() == kept / name
    assert not usable or not [path for path in kept.rglob("*") if path.is_file()], "what was tried leaves nothing"


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


def test_kserve_has_none_yet() -> None:
    target = KServe(KServeKey(namespace="ns"))
    told = next(target.preflight(asked(cache="claim"), {}, None, lambda: None))  # type: ignore[arg-type]
    assert (told.code, "serving.cache" in told.what) == ("target.not-there-yet", True)
