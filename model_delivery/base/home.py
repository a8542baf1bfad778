"""Where the state lies, and the data that comes with the package."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path

from model_delivery.base.findings import BadInput, Finding, Permanent, Refused

FULL = (errno.ENOSPC, errno.EDQUOT)


def default_home() -> Path:
    """``$MODEL_DELIVERY_HOME``, else the platform's state folder. BadInput where nobody
    says where that is.
    """
    if home := os.environ.get("MODEL_DELIVERY_HOME"):
        return Path(home).absolute()
    try:
        state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    except RuntimeError as error:
        what, fix = "there is no state folder", "name one in MODEL_DELIVERY_HOME, or set HOME"
        raise BadInput(Finding("host.no-home", what, str(error), fix)) from None
    return Path(state).absolute() / "model-delivery"


def usable_home() -> Path:
    """The state folder. Refused where there is none, and none can be made."""
    home = default_home()
    if not (home / "deliveries").is_dir() and (why := unwritable(home)):
        raise Refused(no_state_folder(home, why))
    return home


def no_state_folder(home: Path, why: str) -> Finding:
    what = f"the state folder {home} cannot be used"
    return Finding("host.no-state-folder", what, why, "make it writable, or name another in MODEL_DELIVERY_HOME")


def disk_full(error: Exception) -> Finding | None:
    """What it is where a disk is full, whatever met it: no fault of ours."""
    if not (isinstance(error, OSError) and error.errno in FULL):
        return None
    why = ": ".join(map(str, filter(None, (error.strerror, error.filename))))
    fix = "make room (for the state folder, and where temporary files lie), then run again: it goes on where it was"
    return Finding("host.disk-full", "the disk is full", why, fix)


def proven(path: Path, home: Path) -> Path:
    """``path``, no part of which below ``home`` is a link; else Permanent: what it leads
    to would be written over, or removed.
    """
    for part in (path, *path.parents):
        if part == home:
            break
        if part.is_symlink():
            why, fix = "it could lead anywhere, and what lies there would go", "remove it, or put back what it replaced"
            raise Permanent(Finding("host.link", f"{part} is a link", why, fix))
    return path


def unwritable(folder: Path) -> str:
    """Why nothing can be written into a folder, which may not be there yet; empty where
    it can. What is tried leaves nothing behind.
    """
    there = next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))
    try:
        with tempfile.TemporaryFile(dir=there):
            return ""
    except OSError as error:
        return f"{error.strerror}: {there}"


def packaged(folder: str) -> Path:
    """A folder of data inside the package: ``manifests`` or ``engines``; in a checkout it
    is a link to the one at the top.
    """
    return Path(__file__).parent.parent / folder
