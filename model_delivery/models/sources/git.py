"""Any git remote, with its large files in git-LFS.

git brings the small ones and the pointers, LFS's batch API says where the rest is.
"""

from __future__ import annotations

import base64
import json
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile, gettempdir
from typing import BinaryIO, ClassVar, Literal
from urllib.parse import urlsplit

from model_delivery.base import Finding, Permanent, Refused, Retryable, Secret, short, within
from model_delivery.models.sources.http import (
    NAME_A_TOKEN,
    NotGiven,
    authorities,
    body,
    content,
    http_trouble,
    request,
    unreachable,
)
from model_delivery.models.sources.spec import Local, Remote, RemoteModel, Revision, origin
from model_delivery.values import File, Snapshot

POINTER = re.compile(
    rb"version https://git-lfs\.github\.com/spec/v1\n(?:.*\n)*?oid sha256:([0-9a-f]{64})\nsize (\d+)\n"
)
LARGEST_POINTER = 1024
LARGEST_ANSWER = 1 << 20
REPOSITORY = "git"
TOKEN = "MODEL_DELIVERY_GIT_TOKEN"  # noqa: S105 - a variable's name
SYMBOLIC_LINK, SUBMODULE = "120000", "160000"
LFS_JSON = "application/vnd.git-lfs+json"
OF_ANOTHER_REPOSITORY = [
    f"GIT_{name}" for name in ("DIR", "WORK_TREE", "INDEX_FILE", "OBJECT_DIRECTORY", "ALTERNATE_OBJECT_DIRECTORIES")
]
STALL, LONGEST = 60.0, 3600.0
FETCH = ["fetch", "--progress", "--depth=1", "--no-tags", "--no-recurse-submodules", "--end-of-options"]
NO_SUCH = re.compile("not found|couldn't find remote ref|does not exist|does not appear to be a git repository")
NOT_ALLOWED = re.compile("Authentication failed|could not read Username|Permission denied|returned error: 40[13]")
UNREACHABLE = re.compile(
    "Could not resolve host|Failed to connect|Connection refused|timed out|unable to access|early EOF|reset by peer"
    "|hung up unexpectedly|Network is unreachable|No route to host|RPC failed"
)


_clones = threading.Lock()


class GitModel(RemoteModel):
    """Any git remote with LFS; ``repo`` is its URL."""

    source: Literal["git"]
    revision: Revision = "main"

    example: ClassVar[str] = "https://host/x.git@main"
    address: ClassVar[str] = r"(.+?\.git|(?:\w+://|(?!\w+://))[^/]*/[^@]*[^/@])@(.+)"  # @ after the host

    def resolve(self) -> Snapshot:
        """One commit deep. Refused: a symbolic link or a submodule among the wanted
        files.
        """
        with TemporaryDirectory(prefix="model-delivery-git-") as scratch:
            bare = Path(scratch) / REPOSITORY
            commit = self._clone(bare, self.revision)
            (bare / "complete").touch()
            files, links = list[File](), list[str]()
            for mode, sha1, size, path in self._tree(bare, commit):
                if mode in (SYMBOLIC_LINK, SUBMODULE):
                    links.append(path)
                else:
                    files.append(self._file(bare, sha1, int(size), path))
            if odd := self.wanted(links):
                why = "they are symbolic links or submodules, and could lead anywhere"
                what, fix = f"{', '.join(odd[:5])}: not files", "exclude them in model.exclude"
                raise Refused(Finding("source.link", what, why, fix))
            return self.snapshot(self.chosen(files, commit, Path(scratch)), commit)

    def read(self, commit: str, file: File, scratch: Path) -> bytes:
        return content(self.locate(commit, file, scratch), file)

    def locate(self, commit: str, file: File, scratch: Path) -> Remote | Local:
        """LFS is asked for an address whenever one is needed, as addresses expire."""
        if file.git_sha1 is None:
            return self._lfs(file)
        with _clones:
            bare = scratch / REPOSITORY
            if not (bare / "complete").exists():
                if self._clone(bare, commit) != commit:
                    what = f"{self.repo} no longer gives commit {commit}"
                    raise NotGiven(Finding("source.moved", what, "its branch has moved", "run again"))
                (bare / "complete").touch()
            target = scratch / f"{file.git_sha1}.blob"
            if not target.exists():  # files of equal content share it, while others read it
                with (part := scratch / "blob").open("wb") as out:
                    self._git(bare, "cat-file", "blob", file.git_sha1, out=out.fileno())
                part.replace(target)
        return Local(target)

    def _clone(self, bare: Path, revision: str) -> str:
        """One commit into ``bare``; a server that gives no commit by its name is asked
        for the branch.
        """
        secret = self.secret
        bare.mkdir(parents=True, exist_ok=True)
        self._git(bare, "init", "--quiet", "--bare")
        try:
            self._git(bare, *FETCH, self.repo, revision, token=secret)
        except NotGiven:
            if revision == self.revision:
                raise
            self._git(bare, *FETCH, self.repo, self.revision, token=secret)
        return self._git(bare, "rev-parse", "FETCH_HEAD^{commit}").decode().strip()

    def _tree(self, bare: Path, commit: str) -> Iterator[tuple[str, str, str, str]]:
        """Mode, sha1, size and path of each file."""
        for entry in self._git(bare, "ls-tree", "-r", "-l", "-z", commit).split(b"\0")[:-1]:
            facts, _, path = entry.partition(b"\t")
            mode, _, sha1, size = facts.decode().split()
            yield mode, sha1, size, path.decode(errors="surrogateescape")

    def _file(self, bare: Path, sha1: str, size: int, path: str) -> File:
        pointer = POINTER.fullmatch(self._git(bare, "cat-file", "blob", sha1)) if size < LARGEST_POINTER else None
        if pointer is None:
            return File(path=path, size=size, git_sha1=sha1)
        return File(path=path, size=int(pointer[2]), sha256=pointer[1].decode())

    def _lfs(self, file: File) -> Remote:
        from urllib3.exceptions import HTTPError

        repo, secret = self.repo, self.secret
        at = urlsplit(repo)
        if at.scheme not in ("http", "https"):
            why, fix = f"{repo} is reached by {at.scheme or 'ssh'}", "give the repository's https address in model.repo"
            raise NotGiven(Finding("source.lfs-not-http", "git-LFS needs a remote of http or https", why, fix))
        url = repo.rstrip("/").removesuffix(".git") + ".git/info/lfs/objects/batch"
        wish = {
            "operation": "download",
            "transfers": ["basic"],
            "objects": [{"oid": file.sha256, "size": file.size}],
            "hash_algo": "sha256",
        }
        where = Remote(url, {"Authorization": _basic(secret)} if secret else {})
        plain = {"Accept": LFS_JSON, "Content-Type": LFS_JSON}
        try:
            with request("POST", where, 30.0, plain, json.dumps(wish).encode()) as answer:
                said = body(answer, LARGEST_ANSWER)
        except (HTTPError, OSError) as error:
            raise unreachable(at.netloc, url, error) from error
        if answer.status != 200:
            raise http_trouble(answer.status, f"{url} was asked for {file.path}", answer.headers.get("Retry-After", ""))
        return _action(said, file, url)

    def _git(self, bare: Path, *args: str, token: Secret | None = None, out: int = subprocess.PIPE) -> bytes:
        """Run git without a terminal; given up when nothing comes for a minute, or no end
        in an hour.

        The token goes by the environment, where no list of processes shows it.
        """
        environ = {name: value for name, value in os.environ.items() if name not in OF_ANOTHER_REPOSITORY}
        environ |= {"GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"}
        if bundle := authorities():
            environ.setdefault("GIT_SSL_CAINFO", bundle)
        if token and urlsplit(self.repo).scheme in ("http", "https"):
            environ |= _credential(self.repo, token)
        command = ["git", "--git-dir", str(bare), *args]
        with TemporaryFile() as said, TemporaryFile() as given:
            try:
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=given if out == subprocess.PIPE else out,
                    stderr=said,
                    env=environ,
                    start_new_session=True,
                )
            except FileNotFoundError:
                finding = Finding("source.no-git", "git is not installed", f"{self.name} needs it", "install git")
                raise Permanent(finding) from None
            try:
                within(LONGEST, lambda: _follow(process, lambda: _size(said, bare.parent)))
            except TimeoutError as error:
                raise unreachable(self.repo, f"git {args[0]}", error) from error
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
            said.seek(max(0, said.seek(0, os.SEEK_END) - LARGEST_ANSWER))
            given.seek(0)
            if process.returncode == 0:
                return given.read()
            raise self._trouble(said.read().decode(errors="replace").strip())

    def _trouble(self, message: str) -> Retryable | Permanent:
        repo, address = self.repo, f"{self.repo}@{self.revision}"
        if "No space left on device" in message:
            what, fix = (
                f"there is no room to unpack {repo}",
                "make room, or set TMPDIR to where there is, and run again",
            )
            return Permanent(Finding("source.no-room", what, f"{gettempdir()} or the model's disk is full", fix))
        why = f"{address}: {short(message.splitlines()[-1], 200) if message else 'git failed'}"
        if NOT_ALLOWED.search(message):
            return NotGiven(Finding("source.not-allowed", f"{repo} may not be read", why, NAME_A_TOKEN))
        if NO_SUCH.search(message):
            fix = "correct model.repo and model.revision"
            return NotGiven(Finding("source.not-found", f"{address} was not found", why, fix))
        if UNREACHABLE.search(message):
            return unreachable(repo, why)
        return NotGiven(Finding("source.git-failed", f"git cannot read {repo}", why, "try `git ls-remote` on it"))


def _follow(process: subprocess.Popen[bytes], size: Callable[[], int]) -> None:
    """Until it ends. TimeoutError when ``size`` stays as it is for ``STALL`` seconds."""
    seen, since = -1, time.monotonic()
    while True:
        with suppress(subprocess.TimeoutExpired):
            process.wait(1)
            return
        if (now := size()) != seen:
            seen, since = now, time.monotonic()
        elif time.monotonic() - since > STALL:
            raise TimeoutError("nothing came")


def _size(said: BinaryIO, folder: Path) -> int:
    """What git has said and written."""
    total = os.fstat(said.fileno()).st_size
    for path in folder.rglob("*"):
        with suppress(OSError):
            total += path.lstat().st_size
    return total


def _credential(repo: str, token: Secret) -> dict[str, str]:
    """Git's settings by which ``token`` goes to ``repo``'s scheme, host and port only:
    after a redirect git asks for that server's own. No other helper hears of it.
    """
    at = urlsplit(repo)
    helper = f"""!printf 'username=token\\npassword=%s\\n' "${TOKEN}" #"""
    settings = {"credential.helper": "", f"credential.{at.scheme}://{at.netloc}.helper": helper}
    environ = {TOKEN: token.reveal(), "GIT_CONFIG_COUNT": str(len(settings))}
    for number, (key, value) in enumerate(settings.items()):
        environ |= {f"GIT_CONFIG_KEY_{number}": key, f"GIT_CONFIG_VALUE_{number}": value}
    return environ


def _basic(token: Secret) -> str:
    """As GitHub, GitLab, Gitea and the hubs take it: any user's name, the token as
    password.
    """
    return "Basic " + base64.b64encode(f"token:{token.reveal()}".encode()).decode()


def _action(said: bytes, file: File, url: str) -> Remote:
    """The address out of a batch answer (git-lfs docs/api/batch.md)."""
    try:
        (item,) = json.loads(said)["objects"]
        if error := item.get("error"):
            what = f"git-LFS does not have {file.path}"
            why = f"{url} says: {error.get('message', '')} ({error.get('code', '')})"
            raise NotGiven(Finding("source.no-file", what, why, "push it again, or use another source"))
        action = item["actions"]["download"]
        where = Remote(str(action["href"]), {str(k): str(v) for k, v in action.get("header", {}).items()})
        if origin(where.url)[0] not in ("http", "https") or not f"{where.url}{dict(where.headers)}".isprintable():
            raise ValueError("no address of http(s)")
        return where
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        what = f"{url} gave no answer of git-LFS's batch API"
        fix = "is git-LFS enabled on that server?"
        raise NotGiven(Finding("source.no-lfs", what, type(error).__name__, fix)) from error
