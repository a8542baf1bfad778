"""A release of a cluster as a file: made again in another namespace, and later in its
own, with the image and the weights that it had, wherever tag and branch lead now.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from tests.cluster.control.lab import ENGINE, NAME, Lab, delivering_lab, written
from tests.parts.cluster import Cluster
from tests.parts.cluster.played import PlayedNode
from tests.unit.test_registry import Registry, running

SMOKE_ONLY = {"smoke": {"max_tokens": 16}, "throughput": None}
OTHER = "sha256:" + "b" * 64


@pytest.fixture
def lab(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, node: PlayedNode) -> Iterator[Lab]:
    with delivering_lab(cluster, tmp_path, monkeypatch, node) as made:
        yield made


def serving(lab: Lab) -> tuple[str | None, str, str]:
    """Release, commit and the image that its pod really has."""
    serves = lab.record.serving
    (commit,) = {ended.commit for ended in lab.record.ended if ended.release == serves}
    (image,) = [
        player.pod["spec"]["containers"][0]["image"]
        for player in lab.node.players.values()
        if player.pod["metadata"]["labels"].get("model-delivery/release") == serves
        and player.pod["metadata"]["namespace"] == lab.namespace
        and player.is_alive()
    ]
    return serves, commit, image


def test_a_lock_makes_the_same_release_in_another_namespace_and_again_in_its_own(lab: Lab, tmp_path: Path) -> None:
    with running(Registry()) as registry, lab.cluster.namespace() as elsewhere:
        first, second = (f"{registry.host}/a/b@{digest}" for digest in (registry.digest, OTHER))
        lab.node.entrypoints |= dict.fromkeys((first, second), lab.node.entrypoints[ENGINE])
        file = written(lab.spec(gates=SMOKE_ONLY, target={"image": f"{registry.host}/a/b:v1"}), tmp_path)
        lab.deliver("up", file)
        made = serving(lab)
        assert made[2] == first
        locked, there = tmp_path / "lock.yaml", tmp_path / "there.yaml"
        locked.write_text(lab.deliver("lock", NAME, "-n", lab.namespace).stdout)
        there.write_text(locked.read_text().replace(f"namespace: {lab.namespace}\n", f"namespace: {elsewhere}\n"))

        registry.digest = OTHER
        lab.hub.older[lab.hub.commit] = dict(lab.hub.files)
        lab.hub.files["generation_config.json"] = b'{"temperature": 0.5}'
        asked = len(registry.asked)
        assert f"{NAME}: unchanged" in lab.deliver("up", locked).stdout
        assert f"{NAME}: promoted" in lab.deliver("up", there).stdout
        assert serving(replace(lab, namespace=elsewhere)) == made
        assert len(registry.asked) == asked, "nothing is asked of it that the file says"

        lab.deliver("up", file)
        release, commit, image = serving(lab)
        assert image == second
        assert (release, commit) != made[:2]
        again = lab.deliver("up", file, "--release", str(made[0]))
        assert f"{NAME}: promoted (release {made[0]})" in again.stdout
        assert serving(lab) == made


def test_a_lock_with_another_image_is_refused_before_anything_is_touched(lab: Lab, tmp_path: Path) -> None:
    lab.deliver("up", written(lab.spec(gates=SMOKE_ONLY), tmp_path))
    locked = yaml.safe_load(lab.deliver("lock", NAME, "-n", lab.namespace).stdout)
    with lab.cluster.namespace() as elsewhere:
        locked["target"] |= {"namespace": elsewhere, "image": f"registry.example/engine@{OTHER}"}
        file = tmp_path / "lock.yaml"
        file.write_text(yaml.safe_dump(locked))
        told = lab.deliver("up", file, code=2).stderr
        assert f"it is not target.image, registry.example/engine@{OTHER}" in told
        assert replace(lab, namespace=elsewhere).place.deliveries() == ()
