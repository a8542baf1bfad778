"""Any git remote, with its large files in git-LFS: git brings the small ones and the pointers, LFS's batch API says where the rest is."""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import urlsplit

import urllib3

from model_delivery.base.findings import Finding, Permanent, Refused, Retryable
from model_delivery.base.secrets import Secret
from model_delivery.models.sources import Local, Remote
from model_delivery.models.sources.http import NotGiven, authorities, http_trouble, pool
from model_delivery.models.sources.listing import pinned, select, wanted
from model_delivery.models.sources.model import GitModel
from model_delivery.values.resources import digest
from model_delivery.values.snapshot import File, Snapshot

POINTER = re.compile(
    rb"version https://git-lfs\.github\.com/spec/v1\n(?:.*\n)*?oid sha256:([0-9a-f]{64})\nsize (\d+)\n"
)
LARGEST_POINTER = 1024
SYMBOLIC_LINK, SUBMODULE = "120000", "160000"
LFS_JSON = "application/vnd.git-lfs+json"
OF_ANOTHER_REPOSITORY = (
    "GIT_DIR",
    "GIT_WORK_TREE",
    "GIT_INDEX_FILE",
    "GIT_OBJECT_DIRECTORY",
    "GIT_ALTERNATE_OBJECT_DIRECTORIES",
)
NO_SUCH = ("not found", "couldn't find remote ref", "does not exist", "does not appear to be a git repository")
NOT_ALLOWED = (
    "Authentication failed",
    "could not read Username",
    "Permission denied",
    "returned error: 403",
    "returned error: 401",
)
UNREACHABLE = (
    "Could not resolve host",
    "Failed to connect",
    "Connection refused",
    "timed out",
    "unable to access",
    "early EOF",
    "reset by peer",
)


class Git:
    """One commit deep. LFS is asked for an address whenever one is needed, as addresses expire."""

    def __init__(self, model: GitModel) -> None:
        self.model = model
        self.name, self.key = f"git {model.repo}", digest(model.repo, 16)
        self._lock = threading.Lock()

    def resolve(self, token: Secret | None) -> Snapshot:
        """The revision's commit and files. Refused: a symbolic link or a submodule among the wanted ones."""
        with TemporaryDirectory(prefix="model-delivery-git-") as scratch:
            commit = self._clone(Path(scratch), self.model.revision, token)
            files, links = [], []
            for mode, sha1, size, path in self._tree(Path(scratch), commit):
                if mode in (SYMBOLIC_LINK, SUBMODULE):
                    links.append(path)
                else:
                    files.append(self._file(Path(scratch), sha1, int(size), path))
        odd = wanted(links, self.model.include, self.model.exclude)
        if odd:
            why = "they are symbolic links or submodules, and could lead anywhere"
            raise Refused(Finding("todo", f"{', '.join(odd[:5])}: not files", why, "exclude them in model.exclude"))
        chosen = select(pinned(files, self.model.pins), self.model.include, self.model.exclude, self.model.allow)
        return Snapshot(source="git", key=self.key, commit=commit, files=chosen)

    def locate(self, commit: str, file: File, scratch: Path, token: Secret | None) -> Remote | Local:
        if file.git_sha1 is None:
            return self._lfs(file, token)
        with self._lock:
            bare = scratch / "git"
            if not (bare / "complete").exists():
                if self._clone(bare, commit, token) != commit:
                    raise NotGiven(
                        Finding(
                            "todo",
                            f"{self.model.repo} no longer gives commit {commit}",
                            "its branch has moved",
                            "run again",
                        )
                    )
                (bare / "complete").touch()
            target = scratch / f"{file.git_sha1}.blob"
            with target.open("wb") as out:
                self._git(bare, "cat-file", "blob", file.git_sha1, out=out.fileno())
        return Local(target)

    def _clone(self, bare: Path, revision: str, token: Secret | None) -> str:
        """One commit into ``bare``; a server that gives no commit by its name is asked for the branch."""
        self._git(None, "init", "--quiet", "--bare", str(bare))
        fetch = (
            "fetch",
            "--quiet",
            "--depth=1",
            "--no-tags",
            "--no-recurse-submodules",
            "--end-of-options",
            self.model.repo,
        )
        try:
            self._git(bare, *fetch, revision, token=token)
        except NotGiven:
            if revision == self.model.revision:
                raise
            self._git(bare, *fetch, self.model.revision, token=token)
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

    def _lfs(self, file: File, token: Secret | None) -> Remote:
        at = urlsplit(self.model.repo)
        if at.scheme not in ("http", "https"):
            why = f"{self.model.repo} is reached by {at.scheme or 'ssh'}"
            raise NotGiven(
                Finding(
                    "todo",
                    "git-LFS needs a remote of http or https",
                    why,
                    "give the repository's https address in model.repo",
                )
            )
        url = self.model.repo.rstrip("/").removesuffix(".git") + ".git/info/lfs/objects/batch"
        asked = {
            "operation": "download",
            "transfers": ["basic"],
            "objects": [{"oid": file.sha256, "size": file.size}],
            "hash_algo": "sha256",
        }
        headers = {"Accept": LFS_JSON, "Content-Type": LFS_JSON} | ({"Authorization": _basic(token)} if token else {})
        try:
            answer = pool(url, 30.0).request("POST", url, body=json.dumps(asked).encode(), headers=headers)
        except urllib3.exceptions.HTTPError as error:
            fix = "check the network and HTTPS_PROXY"
            raise Retryable(
                Finding("todo", f"{at.netloc} cannot be reached", f"{url}: {type(error).__name__}", fix)
            ) from error
        if answer.status != 200:
            raise http_trouble(answer.status, f"{url} was asked for {file.path}", answer.headers.get("Retry-After", ""))
        return _action(answer.data, file, url)

    def _git(self, bare: Path | None, *args: str, token: Secret | None = None, out: int = subprocess.PIPE) -> bytes:
        """Run git without a terminal; the token goes by the environment, where no list of processes shows it."""
        environ = {name: value for name, value in os.environ.items() if name not in OF_ANOTHER_REPOSITORY}
        environ |= {"GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"}
        if bundle := authorities():
            environ.setdefault("GIT_SSL_CAINFO", bundle)
        if token:
            key, header = f"http.{self.model.repo}.extraHeader", f"Authorization: {_basic(token)}"
            environ |= {"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": key, "GIT_CONFIG_VALUE_0": header}
        command = ["git", *(["--git-dir", str(bare)] if bare else []), *args]
        try:
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.PIPE, env=environ, check=False
            )
        except FileNotFoundError:
            raise Permanent(Finding("todo", "git is not installed", f"{self.name} needs it", "install git")) from None
        if done.returncode == 0:
            return done.stdout or b""
        said = done.stderr.decode(errors="replace").strip()
        raise self._trouble(said)

    def _trouble(self, said: str) -> Retryable | NotGiven:
        asked = f"{self.model.repo}@{self.model.revision}: {said.splitlines()[-1][:200] if said else 'git failed'}"
        if any(sign in said for sign in NOT_ALLOWED):
            return NotGiven(
                Finding(
                    "todo", f"{self.model.repo} may not be read", asked, "name a token that may read it in model.token"
                )
            )
        if any(sign in said for sign in NO_SUCH):
            return NotGiven(
                Finding(
                    "todo",
                    f"{self.model.repo}@{self.model.revision} was not found",
                    asked,
                    "correct model.repo and model.revision",
                )
            )
        if any(sign in said for sign in UNREACHABLE):
            return Retryable(
                Finding("todo", f"{self.model.repo} cannot be reached", asked, "check the network and HTTPS_PROXY")
            )
        return NotGiven(Finding("todo", f"git cannot read {self.model.repo}", asked, "try `git ls-remote` on it"))


def _basic(token: Secret) -> str:
    """As GitHub, GitLab, Gitea and the hubs take it: any user's name, the token as password."""
    return "Basic " + base64.b64encode(f"token:{token.reveal()}".encode()).decode()


def _action(body: bytes, file: File, url: str) -> Remote:
    """The address out of a batch answer (git-lfs docs/api/batch.md)."""
    try:
        (one,) = json.loads(body)["objects"]
        if "error" in one:
            why = f"{url} says: {one['error'].get('message', '')} ({one['error'].get('code', '')})"
            raise NotGiven(
                Finding("todo", f"git-LFS does not have {file.path}", why, "push it again, or use another source")
            )
        action = one["actions"]["download"]
        return Remote(str(action["href"]), {str(k): str(v) for k, v in action.get("header", {}).items()})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        what = f"{url} gave no answer of git-LFS's batch API"
        raise NotGiven(Finding("todo", what, type(error).__name__, "is git-LFS enabled on that server?")) from error
