"""Where an attempt's reports and its engine's log stay: on a host in files; in a cluster
in one ConfigMap, so that they outlive a run's pod.
"""

from __future__ import annotations

import base64
import errno
import gzip
import zlib
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from model_delivery.base import Trouble, read_file, short
from model_delivery.places import Place
from model_delivery.run.record import Candidate, Ended, Record
from model_delivery.values import REPORT, Ref, ReleaseId, Resource

LARGEST = 900 * 1024  # bytes: a ConfigMap holds 1 MiB
WORTH = ("report.json", "report.html", "engine.log", "metrics.prom", "throughput.png")
MOST = 1 << 24  # bytes of a report.json that is read
KEPT = 20  # attempts, beside those of the releases that a rollback can want
PREFIX = "configmap/"
OBJECT = "model-delivery/object"
SILENT = "silent"  # in an attempt's place: of an engine that gave no token
Attempt = int | str


def where(delivery: str, release: str, attempt: Attempt) -> str:
    """What a record says of an attempt's evidence in a cluster."""
    return f"{PREFIX}{delivery}-report-{release}-{attempt}"


def keep(place: Place, delivery: str, release: str, attempt: Attempt, files: Mapping[str, bytes]) -> None:
    """Into the cluster, each file by itself as gzip, and of all as much as fits, in the
    order of their worth.
    """
    packed, left = dict[str, str](), LARGEST
    for name in WORTH:
        data = gzip.compress(files.get(name, b""), mtime=0)
        if files.get(name) and len(data) <= left:
            packed[f"{name}.gz"], left = base64.b64encode(data).decode(), left - len(data)
    place.put(Resource(_ref(release, attempt), "record", delivery, packed, release))


def files(place: Place, delivery: str, tried: Ended | Candidate) -> dict[str, bytes]:
    """Every file that is kept of an attempt, by name; none when it is gone."""
    if tried.report is None:
        return {}
    if not tried.report.startswith(PREFIX):
        folder = Path(tried.report).parent
        return {name: (folder / name).read_bytes() for name in WORTH if (folder / name).is_file()}
    return stored(place, delivery, tried.release, tried.attempt)


def stored(place: Place, delivery: str, release: str, attempt: Attempt) -> dict[str, bytes]:
    """The files that a cluster keeps; none when they are gone, or damaged."""
    seen, found = place.get(delivery, _ref(release, attempt)), dict[str, bytes]()
    for name, packed in (seen.resource.spec if seen else {}).items():
        with suppress(OSError):
            found[name.removesuffix(".gz")] = _unpacked(packed)
    return found


def report_json(place: Place, delivery: str, tried: Ended | Candidate) -> bytes:
    """The attempt's report.json; OSError where it is gone, larger than a report is, or
    damaged.
    """
    if tried.report is None:
        raise FileNotFoundError(errno.ENOENT, "nothing is kept of that attempt")
    if not tried.report.startswith(PREFIX):
        return read_file(Path(tried.report).with_name("report.json"), MOST)
    seen = place.get(delivery, _ref(tried.release, tried.attempt))
    packed = seen.resource.spec.get("report.json.gz") if seen else None
    if not packed:
        raise FileNotFoundError(errno.ENOENT, "nothing is kept of that attempt")
    return _unpacked(packed)


def _unpacked(packed: Any) -> bytes:
    try:
        reader = zlib.decompressobj(wbits=31)
        content = reader.decompress(base64.b64decode(packed, validate=True), MOST)
    except (TypeError, ValueError, zlib.error):
        raise OSError(errno.EIO, "it is damaged") from None
    if not reader.eof:
        raise OSError(errno.EFBIG, "it is cut short or too large")
    return content


def forget(place: Place, delivery: str, ended: Ended) -> Ended:
    """Remove it from the cluster, and what the record says of it. A host's files are the
    user's to remove.
    """
    if ended.report is None or not ended.report.startswith(PREFIX):
        return ended
    for attempt in (ended.attempt, SILENT):
        place.delete(delivery, _ref(ended.release, attempt))
    return replace(ended, report=None)


def collected(place: Place, delivery: str, record: Record, live: set[ReleaseId]) -> Record:
    """Only the last attempts, and those of releases that a rollback can want, keep theirs
    in a cluster.
    """
    old = [ended.release not in live for ended in record.ended[:-KEPT]]
    kept = [forget(place, delivery, e) if gone else e for e, gone in zip(record.ended, old, strict=False)]
    return replace(record, ended=(*kept, *record.ended[len(old) :]))


def engine_log(place: Place, delivery: str, release: ReleaseId) -> bytes:
    """The end of the engine's log, at most 64 KiB, where the place does not keep it in
    files of its own.

    Of the container before, where it has just been restarted. Empty when it cannot be
    had.
    """
    if place.keeps_files:
        return b""
    try:
        return short(_engine_log(place, delivery, release).decode(errors="replace"), -65536).encode()
    except Trouble:  # whoever asks withdraws a release: that matters more
        return b""


def _engine_log(place: Place, delivery: str, release: ReleaseId) -> bytes:
    name = f"{delivery}-{release}"
    pods = place.world(delivery).beside.get("Pod", ())
    logs = [str(pod["log"]) for pod in pods if pod.get("log") and pod["metadata"]["labels"].get(OBJECT) == name]
    if logs:
        return logs[-1].encode()
    return b"\n".join(deque(place.engine_log(delivery, release, follow=False), maxlen=1000))


def _ref(release: str, attempt: Attempt) -> Ref:
    return Ref(REPORT, f"{release}-{attempt}")
