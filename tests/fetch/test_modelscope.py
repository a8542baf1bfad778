"""A model from ModelScope: the sha256 of every file, branches and tags, its default
branch.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from model_delivery.base import Permanent, Refused, Retryable
from model_delivery.models.sources.modelscope import ModelScopeModel
from model_delivery.steps.fetch import run as fetch
from tests.fetch.fetching import given, models, whole
from tests.parts.hubs import Hub
from tests.parts.hubs.modelscope import REPO, running_modelscope
from tests.parts.tiny_model import tiny_model


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with running_modelscope(tiny_model(tmp_path / "hub", size=3_000_000)) as made:
        monkeypatch.setenv("MODELSCOPE_ENDPOINT", made.url)
        yield made


def model(**more: object) -> ModelScopeModel:
    return ModelScopeModel.model_validate({"source": "modelscope", "repo": REPO, **more})


def test_its_default_branch_is_master_and_every_file_is_verified(hub: Hub, root: Path) -> None:
    done = fetch(given(root, model()))
    whole(done, hub.files)
    assert done.origins == {f"modelscope {REPO}": 3}
    assert fetch(given(root, model())).fetched_bytes == 0


def test_a_tag_is_a_revision_and_the_same_files_are_the_same_commit(hub: Hub, root: Path) -> None:
    fetch(given(root, model()))
    assert fetch(given(root, model(revision="v1"))).fetched_bytes == 0
    assert len(models(root)) == 1


def test_a_small_file_with_flipped_bytes_is_thrown_away(hub: Hub, root: Path) -> None:
    hub.flipped = "tokenizer.json"
    with pytest.raises(Permanent, match=r"tokenizer\.json is not what was listed"):
        fetch(given(root, model()))
    assert models(root) == []


def test_a_file_that_the_hub_cannot_give_is_no_success(hub: Hub, root: Path) -> None:
    hub.missing = "tokenizer.json"
    with pytest.raises(Refused, match="status 404"):
        fetch(given(root, model()))
    assert models(root) == []


def test_a_moved_branch_never_mixes_commits(hub: Hub, root: Path) -> None:
    before = given(root, model())
    hub.files["tokenizer.json"] = b'{"moved": 1}'
    with pytest.raises(Permanent, match=r"tokenizer\.json is not what was listed"):
        fetch(before)
    assert models(root) == []
    whole(fetch(given(root, model())), hub.files)


@pytest.mark.parametrize(
    ("status", "kind", "message"),
    [
        (404, Refused, "org/model@master was not found"),
        (403, Refused, "refuses with status 403"),
        (401, Refused, "refuses with status 401"),
        (500, Retryable, "failed with status 500"),
    ],
)
def test_a_hub_that_says_no_is_named(hub: Hub, root: Path, status: int, kind: type[Exception], message: str) -> None:
    hub.status, hub.busy_times = status, -1
    with pytest.raises(kind, match=message):
        given(root, model())
    assert not root.exists()


def test_a_revision_that_is_not_there_is_named_with_the_default(hub: Hub, root: Path) -> None:
    with pytest.raises(Refused, match="org/model@main was not found") as said:
        given(root, model(revision="main"))
    assert "master" in str(said.value)


def test_the_token_is_sent_and_never_shown(
    hub: Hub, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_TOKEN", "ms-secret-of-the-tests")
    fetch(given(root, model(token={"env": "MY_TOKEN"})))
    assert hub.tokens == {"Bearer ms-secret-of-the-tests"}
    assert [path for path in tmp_path.rglob("*") if path.is_file() and b"ms-secret" in path.read_bytes()] == []


def test_the_token_does_not_follow_the_list_to_another_port_of_the_same_host(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_TOKEN", "ms-secret-of-the-tests")
    with running_modelscope(tiny_model(tmp_path / "elsewhere")) as other:
        hub.status, hub.busy_times = 302, -1
        hub.headers["Location"] = f"{other.url}/api/v1/models/org/model/repo/files?Revision=master&Recursive=True"
        assert model(token={"env": "MY_TOKEN"}).resolve().files
    assert hub.tokens == {"Bearer ms-secret-of-the-tests"}
    assert other.tokens == {""}
