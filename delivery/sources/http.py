"""What the HTTP answers of hubs mean."""

from __future__ import annotations

import time
from email.utils import parsedate_to_datetime

from delivery.findings import Finding, Refused, Retryable, Trouble

LONGEST_WAIT = 120.0


class NotGiven(Refused):
    """This hub does not give it; another one might."""


class Busy(Retryable):
    """The hub asks for patience; ``after`` is how much, in seconds, None when it does not say."""

    after: float | None = None


def http_trouble(status: int, asked: str, retry_after: str = "") -> Trouble:
    """What an HTTP status of a hub means; ``asked`` says what was asked for, ``retry_after`` is that header."""
    if status == 429 or status >= 500:
        what = "the hub says: too many requests" if status == 429 else f"the hub failed with status {status}"
        busy = Busy(Finding(what, asked, "wait, or name a token in model.token" if status == 429 else "run again later"))
        busy.after = seconds(retry_after)
        return busy
    if status in (401, 403):
        return NotGiven(Finding(f"the hub refuses with status {status}", asked, "name a token that may read it in model.token"))
    return NotGiven(Finding(f"the hub answers with status {status}", asked, "check model.repo and model.revision"))


def seconds(retry_after: str) -> float | None:
    """What a Retry-After header asks for (seconds or a date, RFC 9110 10.2.3), at most two minutes; None when it says nothing."""
    if retry_after.isdigit():
        return min(float(retry_after), LONGEST_WAIT)
    try:
        until = parsedate_to_datetime(retry_after).timestamp()
    except ValueError:
        return None
    return max(0.0, min(until - time.time(), LONGEST_WAIT))
