"""What the smoke test says of each replica of a release, by what has become of it."""

from __future__ import annotations

from model_delivery.diagnosis.pods import living
from model_delivery.measure.smoke import Check, SmokeReport
from model_delivery.values import World


def without_ended(smoked: SmokeReport | None, world: World) -> SmokeReport | None:
    """Of a replica that was ended meanwhile (evicted, scaled down, drained) nothing is
    known. One that died of itself is there still: its pod starts it anew.
    """
    if smoked is None or smoked.passed:
        return smoked
    there = {
        pod["metadata"]["name"] for pod in living(world.beside.get("Pod", ())) if pod["status"].get("phase") != "Failed"
    }

    def judged(check: Check) -> Check:
        if check.passed or not check.replica or check.replica in there:
            return check
        detail = f"not judged: its pod was ended meanwhile ({check.detail})"
        return check.model_copy(update={"passed": True, "detail": detail})

    return smoked.model_copy(update={"checks": tuple(map(judged, smoked.checks))})
