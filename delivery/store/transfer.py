"""Moves one file's bytes into place: resumed where it was cut, hashed on the way, and only then given its name."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import stamina
import urllib3

from delivery.findings import Finding, Permanent, Retryable, Trouble
from delivery.sources import File, Local, Remote
from delivery.sources.http import http_trouble

CHUNK = 1 << 20
FICLONE = 0x40049409
Count = Callable[[int], None]


class Hash(Protocol):
    def update(self, data: bytes, /) -> None: ...
    def hexdigest(self) -> str: ...


def part_of(target: Path) -> Path:
    return target.with_name(f".{target.name}.part")


def transfer(file: File, where: Remote | Local, target: Path, count: Count) -> tuple[str, int]:
    """Bring ``file`` to ``target``; returns its sha256 and how many bytes were moved now.

    Retryable when the source broke off, Permanent when it gave other bytes than it had listed (they are thrown away).
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    part = part_of(target)
    moved = _copy(where.path, part, count) if isinstance(where, Local) else _download_patiently(file, where, part, count)
    sha256, wrong = _compare(file, part)
    if wrong:
        part.unlink()
        raise Permanent(
            Finding(f"{file.path} is not what was listed", wrong, "run again; if it stays so, the source or what lies between is broken")
        )
    with part.open("rb") as done:
        os.fsync(done.fileno())
    part.chmod(0o644)
    part.replace(target)
    return sha256, moved


def _compare(file: File, part: Path) -> tuple[str, str]:
    size = part.stat().st_size
    sha256, blob = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    with part.open("rb") as done:
        while chunk := done.read(CHUNK):
            sha256.update(chunk)
            if file.sha256 is None:
                blob.update(chunk)
    if size != file.size:
        return "", f"it has {size} bytes, the list says {file.size}"
    if file.sha256 is not None and sha256.hexdigest() != file.sha256:
        return "", f"its sha256 is {sha256.hexdigest()}, the list says {file.sha256}"
    if file.sha256 is None and blob.hexdigest() != file.git_sha1:
        return "", f"its git hash is {blob.hexdigest()}, the list says {file.git_sha1}"
    return sha256.hexdigest(), ""


def _copy(path: Path, part: Path, count: Count) -> int:
    """A reflink where the file system can, else a copy: never a hard link, the next edit would reach the store."""
    with path.open("rb") as source, part.open("wb") as out:
        with suppress(OSError):
            fcntl.ioctl(out.fileno(), FICLONE, source.fileno())
            count(path.stat().st_size)
            return path.stat().st_size
        while chunk := source.read(CHUNK):
            out.write(chunk)
            count(len(chunk))
    return path.stat().st_size


def _download_patiently(file: File, where: Remote, part: Path, count: Count) -> int:
    moved = 0
    for attempt in stamina.retry_context(on=Retryable, attempts=6, timeout=60, wait_initial=0.5, wait_max=10):
        with attempt:
            moved += _download(file, where, part, count)
    return moved


def _download(file: File, where: Remote, part: Path, count: Count) -> int:
    have = part.stat().st_size if part.exists() else 0
    if have > file.size:
        part.unlink()
        have = 0
    if have == file.size:
        return 0
    headers = {**where.headers, "Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    moved, asked = 0, where.url
    try:
        with _pool().request("GET", where.url, headers=headers, preload_content=False) as answer:
            _accept(answer, asked)
            resumed = answer.status == 206
            with part.open("ab" if resumed else "wb") as out:
                for chunk in answer.stream(CHUNK):
                    out.write(chunk)
                    moved += len(chunk)
                    count(len(chunk))
                    if out.tell() > file.size:
                        break
    except (urllib3.exceptions.HTTPError, OSError) as error:
        raise _broken(error, asked, file, part) from error
    if part.stat().st_size < file.size:
        raise Retryable(
            Finding(
                f"{file.path} broke off",
                f"{part.stat().st_size} of {file.size} bytes from {asked}",
                "run again: it goes on where it was cut",
            )
        )
    return moved


def _broken(error: Exception, asked: str, file: File, part: Path) -> Trouble:
    if isinstance(error, OSError) and error.errno is not None and not isinstance(error, ConnectionError):
        free = shutil.disk_usage(part.parent).free
        return Permanent(
            Finding(
                f"{file.path} cannot be written",
                f"{error.strerror}; {free} bytes are free in {part.parent}",
                "make room, then run again: it goes on where it was cut",
            )
        )
    return Retryable(Finding(f"{file.path} broke off", f"{type(error).__name__} from {asked}", "run again: it goes on where it was cut"))


def _accept(answer: urllib3.BaseHTTPResponse, asked: str) -> None:
    if answer.status in (200, 206):
        return
    trouble = http_trouble(answer.status, asked)
    after = answer.headers.get("Retry-After", "")
    if isinstance(trouble, Retryable) and after.isdigit():
        time.sleep(min(int(after), 30))
    raise trouble


def _pool() -> urllib3.PoolManager:
    """Proxies as the environment says; a redirect to another host loses the token (urllib3 removes Authorization there)."""
    timeout = urllib3.Timeout(connect=10, read=30)
    retries = urllib3.Retry(total=None, connect=0, read=0, redirect=5, status=0, other=0)
    proxy = os.environ.get("HTTPS_PROXY") or os.environ.get("https_proxy")
    options: Any = {
        "timeout": timeout,
        "retries": retries,
        "ca_certs": os.environ.get("SSL_CERT_FILE") or os.environ.get("REQUESTS_CA_BUNDLE"),
    }
    return urllib3.ProxyManager(proxy, **options) if proxy else urllib3.PoolManager(**options)
