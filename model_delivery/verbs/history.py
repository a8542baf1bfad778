"""How deliveries ended, and what is kept of each attempt."""

from __future__ import annotations

from pathlib import Path

from model_delivery.base import BadInput, Finding, replace_file
from model_delivery.places import Place
from model_delivery.run import evidence
from model_delivery.run.record import Ended
from model_delivery.run.restore import read


def history(place: Place, name: str) -> tuple[Ended, ...]:
    """How every attempt ended, newest last."""
    return read(place, name).record.ended


def save_reports(place: Place, name: str, folder: Path) -> tuple[Path, ...]:
    """Write what is kept of every attempt of ``name`` (reports, and in a cluster its
    engine's log), and in a cluster of engines that gave no token, below ``folder``.

    Each attempt has a folder of its own there.
    """
    saved, tried = [], history(place, name)
    kept = {f"{ended.release}-{ended.attempt}": evidence.files(place, name, ended) for ended in tried}
    if not place.keeps_files:
        releases = dict.fromkeys(ended.release for ended in tried)
        kept |= {f"{r}-{evidence.SILENT}": evidence.stored(place, name, r, evidence.SILENT) for r in releases}
    for attempt, files in kept.items():
        for file, content in files.items():
            target = folder / f"{name}-{attempt}" / file
            try:
                replace_file(target, content)
            except OSError as error:
                what = f"{target} cannot be written"
                raise BadInput(Finding("cli.unwritable-report", what, str(error), "name another DIR")) from None
            saved.append(target)
    return tuple(saved)
