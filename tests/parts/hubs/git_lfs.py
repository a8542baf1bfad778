"""A git remote with LFS of the tests' own: git's smart HTTP by git's own
``http-backend``, LFS's batch API and its objects by this server.

``/org/model.git/…`` is git's, ``POST /org/model.git/info/lfs/objects/batch`` answers with
addresses ``/lfs/OID``, which want the header ``X-Ticket`` that the batch gave. With
``token`` set, git and the batch want it as Basic password. ``missing`` names a file whose
object is gone.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from tests.parts.hubs import Hub, HubHandler, files_of, serving

LFS = (".safetensors", ".bin")
TICKET = "a-ticket-of-the-batch"


@dataclass
class GitServer(Hub):
    root: Path = Path()

    @property
    def remote(self) -> str:
        return f"{self.url}/org/model.git"

    def commit_files(self, files: dict[str, bytes], links: dict[str, str] | None = None) -> str:
        """A commit of ``files`` on main, the large ones as LFS pointers; returns its
        id.
        """
        work = self.root / "work"
        for old in [
            path for path in work.rglob("*") if ".git" not in path.parts and (path.is_symlink() or path.is_file())
        ]:
            old.unlink()
        for name, body in files.items():
            path = work / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(pointer(body) if name.endswith(LFS) else body)
        for name, target in (links or {}).items():
            (work / name).symlink_to(target)
        self.files = dict(files)
        for command in (["add", "-A"], ["commit", "-qm", "files"], ["push", "-q", "origin", "HEAD:main"]):
            git(work, *command)
        return git(work, "rev-parse", "HEAD").strip()

    def by_oid(self, oid: str) -> str:
        return next(
            (
                name
                for name, body in self.files.items()
                if hashlib.sha256(body).hexdigest() == oid and name != self.missing
            ),
            "",
        )


def pointer(body: bytes) -> bytes:
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{hashlib.sha256(body).hexdigest()}\nsize {len(body)}\n".encode()


def git(folder: Path, *args: str) -> str:
    identity = ["-c", "user.name=tests", "-c", "user.email=tests@localhost", "-c", "commit.gpgsign=false"]
    return subprocess.run(["git", *identity, *args], cwd=folder, check=True, capture_output=True, text=True).stdout


class Handler(HubHandler):
    hub: GitServer

    def do_GET(self) -> None:
        self.serve(b"")

    def do_POST(self) -> None:
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.serve(body)

    def serve(self, body: bytes) -> None:
        hub, path = self.hub, urlsplit(self.path).path
        if self.refused():
            return
        if path.startswith("/lfs/"):
            name = hub.by_oid(path.removeprefix("/lfs/"))
            if self.headers.get("X-Ticket") == TICKET:
                self.send(name)
            else:
                self.refuse(403, "")
        elif (
            hub.token
            and self.headers.get("Authorization") != "Basic " + base64.b64encode(f"token:{hub.token}".encode()).decode()
        ):
            self.answer(401, b"", {"WWW-Authenticate": 'Basic realm="git"'})
        elif path == "/org/model.git/info/lfs/objects/batch":
            self.batch(json.loads(body))
        else:
            self.backend(path, body)

    def batch(self, asked: dict[str, list[dict[str, object]]]) -> None:
        objects = []
        for one in asked["objects"]:
            oid = str(one["oid"])
            if self.hub.by_oid(oid):
                action = {"href": f"{self.hub.url}/lfs/{oid}", "header": {"X-Ticket": TICKET}, "expires_in": 3600}
                objects.append({**one, "actions": {"download": action}})
            else:
                objects.append({**one, "error": {"code": 404, "message": "Object does not exist"}})
        self.answer(
            200,
            json.dumps({"transfer": "basic", "objects": objects}).encode(),
            {"Content-Type": "application/vnd.git-lfs+json"},
        )

    def backend(self, path: str, body: bytes) -> None:
        environ = os.environ | {
            "GIT_PROJECT_ROOT": str(self.hub.root),
            "GIT_HTTP_EXPORT_ALL": "1",
            "PATH_INFO": path,
            "QUERY_STRING": urlsplit(self.path).query,
            "REQUEST_METHOD": self.command,
            "CONTENT_TYPE": self.headers.get("Content-Type", ""),
            "CONTENT_LENGTH": str(len(body)),
            "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding", ""),
            "GIT_PROTOCOL": self.headers.get("Git-Protocol", ""),
        }
        done = subprocess.run(["git", "http-backend"], input=body, env=environ, capture_output=True, check=False)
        head, _, said = done.stdout.partition(b"\r\n\r\n")
        headers = dict(line.split(": ", 1) for line in head.decode().splitlines())
        self.answer(int(headers.pop("Status", "200").split()[0]), said, headers)


@contextmanager
def running_git(model: Path, folder: Path) -> Iterator[GitServer]:
    """A remote whose main branch holds the files of ``model``; its repositories lie in
    ``folder``.
    """
    bare, work = folder / "org" / "model.git", folder / "work"
    bare.mkdir(parents=True)
    work.mkdir()
    git(bare, "init", "-q", "--bare", "-b", "main")
    git(work, "init", "-q", "-b", "main")
    git(work, "remote", "add", "origin", str(bare))
    hub = GitServer({}, root=folder)
    hub.commit_files(files_of(model))
    with serving(Handler, hub):
        yield hub
