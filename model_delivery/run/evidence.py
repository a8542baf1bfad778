"""Where an attempt's reports and its engine's log stay: on a host in files; in a cluster in one ConfigMap, so that they outlive a run's pod."""

from __future__ import annotations

import base64
import gzip
from collections import deque
from collections.abc import Mapping
from pathlib import Path

from model_delivery.base.findings import Trouble
from model_delivery.places import Place
from model_delivery.run.record import Candidate, Ended
from model_delivery.values.kind import REPORT
from model_delivery.values.resources import Ref, Resource

LARGEST = 900 * 1024  # bytes: a ConfigMap holds 1 MiB
WORTH = ("report.json", "report.html", "engine.log", "metrics.prom", "throughput.png")
KEPT = 20  # attempts, beside those of the releases that a rollback can want
PREFIX = "configmap/"


def where(delivery: str, release: str, attempt: int) -> str:
    """What a record says of an attempt's evidence in a cluster."""
    return f"{PREFIX}{delivery}-report-{release}-{attempt}"


def keep(place: Place, delivery: str, release: str, attempt: int, files: Mapping[str, bytes]) -> None:
    """Into the cluster, each file by itself as gzip, and of all as much as fits, in the order of their worth."""
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
    seen = place.get(delivery, _ref(tried.release, tried.attempt))
    packed = seen.resource.spec if seen else {}
    return {name.removesuffix(".gz"): gzip.decompress(base64.b64decode(data)) for name, data in packed.items()}


def forget(place: Place, delivery: str, ended: Ended) -> Ended:
    """Remove it from the cluster, and what the record says of it. A host's files are the user's to remove."""
    if ended.report is None or not ended.report.startswith(PREFIX):
        return ended
    place.delete(delivery, _ref(ended.release, ended.attempt))
    return ended.model_copy(update={"report": None})


def engine_log(place: Place, delivery: str, release: str) -> bytes:
    """The end of the engine's log, at most 64 KiB; of the container before, where it has just been restarted. Empty when it cannot be had."""
    try:
        return _engine_log(place, delivery, release)
    except Trouble:  # whoever asks withdraws a release: that matters more
        return b""


def _engine_log(place: Place, delivery: str, release: str) -> bytes:
    pods = place.world(delivery).beside.get("Pod", ())
    told = [
        str(pod["log"])
        for pod in pods
        if pod.get("log") and pod["metadata"]["labels"].get("model-delivery/object") == f"{delivery}-{release}"
    ]
    lines = (
        told[-1].encode() if told else b"\n".join(deque(place.engine_log(delivery, release, follow=False), maxlen=1000))
    )
    return lines[-65536:]


def _ref(release: str, attempt: int) -> Ref:
    return Ref(REPORT, f"{release}-{attempt}")
