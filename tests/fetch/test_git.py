"""A model from a git remote with LFS."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from model_delivery.base import Permanent, Refused, Retryable
from model_delivery.models.manifest import model_folder
from model_delivery.models.sources import git as sources_git
from model_delivery.models.sources import http
from model_delivery.models.sources.git import GitModel
from model_delivery.models.store.commit import fetch as fetch_into
from model_delivery.models.store.transfer import Patience
from model_delivery.run.resolve import resolve_model
from model_delivery.steps.fetch import run as fetch
from tests.fetch.fetching import WEIGHTS, given, models, whole
from tests.parts.hubs.git_lfs import GitServer, git, running_git
from tests.parts.ports import free_port
from tests.parts.tiny_model import tiny_model


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[GitServer]:
    with running_git(tiny_model(tmp_path / "model", size=3_000_000), tmp_path / "git") as made:
        yield made


def model(hub: GitServer, **more: object) -> GitModel:
    return GitModel.model_validate({"source": "git", "repo": hub.remote, **more})


def test_small_files_come_by_git_and_large_ones_by_lfs(hub: GitServer, root: Path) -> None:
    done = fetch(given(root, model(hub)))
    whole(done, hub.files)
    assert Path(done.path).name == git(hub.root / "work", "rev-parse", "HEAD").strip()
    assert fetch(given(root, model(hub))).fetched_bytes == 0
    assert [path.name for path in Path(done.path).parent.iterdir() if path.is_dir()] == [Path(done.path).name]


def test_a_tag_and_a_commit_are_revisions(hub: GitServer, root: Path) -> None:
    first = git(hub.root / "work", "rev-parse", "HEAD").strip()
    git(hub.root / "work", "tag", "v1")
    git(hub.root / "work", "push", "-q", "origin", "v1")
    files = dict(hub.files)
    hub.commit_files({**files, "tokenizer.json": b'{"v": 2}'})
    hub.files = files
    whole(fetch(given(root, model(hub, revision="v1"))), files)
    assert fetch(given(root, model(hub, revision=first))).fetched_bytes == 0


def test_a_moved_branch_never_mixes_commits(hub: GitServer, root: Path) -> None:
    wanted, files = given(root, model(hub)), dict(hub.files)
    hub.commit_files({**files, "tokenizer.json": b'{"moved": true}'})
    whole(fetch(wanted), files)


def test_an_lfs_object_that_is_gone_is_named(hub: GitServer, root: Path) -> None:
    hub.missing = WEIGHTS
    with pytest.raises(Refused, match=r"git-LFS does not have model\.safetensors.*Object does not exist"):
        fetch(given(root, model(hub)))
    assert models(root) == []


def test_flipped_bytes_of_an_lfs_object_never_become_a_model(hub: GitServer, root: Path) -> None:
    hub.flipped = WEIGHTS
    with pytest.raises(Permanent, match=r"model\.safetensors is not what was listed"):
        fetch(given(root, model(hub)))
    assert models(root) == []


def test_a_private_remote_wants_the_named_token_and_no_file_holds_it(
    hub: GitServer, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.token = "git-secret-of-the-tests"  # noqa: S105
    with pytest.raises(Refused, match="may not be read"):
        given(root, model(hub))
    monkeypatch.setenv("MY_TOKEN", hub.token)
    whole(fetch(given(root, model(hub, token={"env": "MY_TOKEN"}))), hub.files)
    assert [path for path in tmp_path.rglob("*") if path.is_file() and b"git-secret" in path.read_bytes()] == []


def test_a_symbolic_link_in_the_tree_is_refused(hub: GitServer, root: Path) -> None:
    hub.commit_files(hub.files, links={"generation_config.json": "/etc/passwd"})
    with pytest.raises(Refused, match=r"generation_config\.json: not files"):
        given(root, model(hub))
    assert not root.exists()
    whole(fetch(given(root, model(hub, exclude=["generation*"]))), hub.files)


def test_a_branch_or_a_repository_that_is_not_there_is_named(hub: GitServer, root: Path) -> None:
    with pytest.raises(Refused, match="@nowhere was not found"):
        given(root, model(hub, revision="nowhere"))
    with pytest.raises(Refused, match=r"other\.git@main was not found"):
        given(root, model(hub, repo=f"{hub.url}/org/other.git"))


def test_a_remote_that_cannot_be_reached_can_be_tried_again(hub: GitServer, root: Path) -> None:
    with pytest.raises(Retryable, match="cannot be reached"):
        given(root, model(hub, repo=f"http://127.0.0.1:{free_port()}/x.git"))


@pytest.mark.parametrize("scheme", ["http", "https", "git", "ssh"])
def test_a_remote_that_says_nothing_is_given_up(root: Path, monkeypatch: pytest.MonkeyPatch, scheme: str) -> None:
    monkeypatch.setattr(sources_git, "STALL", 2.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        remote = f"{scheme}://127.0.0.1:{silent.getsockname()[1]}/org/x.git"
        with pytest.raises(Retryable, match=r"cannot be reached.*git fetch: TimeoutError"):
            given(root, GitModel.model_validate({"source": "git", "repo": remote}))
        assert remote.encode() not in b"".join(read_quietly(each) for each in Path("/proc").glob("[0-9]*/cmdline"))


def test_a_remote_whose_head_drips_is_given_up(hub: GitServer, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources_git, "STALL", 2.0)
    hub.dripping = "/info/refs"
    with pytest.raises(Retryable, match="cannot be reached"):
        given(root, model(hub))


def test_an_interrupt_ends_git_too(hub: GitServer, tmp_path: Path) -> None:
    hub.dripping = "/info/refs"
    command = [str(Path(sys.executable).with_name("deliver")), "fetch", f"git:{hub.remote}@main", str(tmp_path / "to")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as fetching:
        assert hub.stuck.wait(60)
        fetching.send_signal(signal.SIGINT)
        assert fetching.wait(10) == 5
    running = (read_quietly(each) for each in Path("/proc").glob("[0-9]*/cmdline"))
    assert hub.remote.encode() not in b"".join(running)


def test_an_answer_of_lfs_that_drips_is_given_up(hub: GitServer, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "LONGEST_READ", 1.0)
    snapshot = resolve_model(model(hub))
    hub.dripping_body = "/objects/batch"
    with pytest.raises(Retryable, match="cannot be reached"):
        fetch_into(model(hub), snapshot, model_folder(root, snapshot), Patience(tries=1))


def read_quietly(path: Path) -> bytes:
    with suppress(OSError):
        return path.read_bytes()
    return b""


@pytest.mark.parametrize("repo", ["--upload-pack=touch {marker}", "ext::sh -c 'touch {marker}'"])
def test_an_address_that_would_run_a_command_does_not(hub: GitServer, root: Path, tmp_path: Path, repo: str) -> None:
    marker = tmp_path / "owned"
    with pytest.raises(Refused):
        given(root, model(hub, repo=repo.format(marker=marker)))
    assert not marker.exists()


def test_small_files_of_equal_content_come_whole_whoever_else_reads_them(hub: GitServer, root: Path) -> None:
    merges = "".join(f"a{n} b{n}\n" for n in range(40_000)).encode()
    hub.commit_files(hub.files | {f"tokenizer_{n}.txt": merges for n in range(16)})
    for n in range(3):
        whole(fetch(given(root / str(n), model(hub))), hub.files)
