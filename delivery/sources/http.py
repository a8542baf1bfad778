"""What the HTTP statuses of hubs mean."""

from __future__ import annotations

from delivery.findings import Finding, Refused, Retryable, Trouble


def http_trouble(status: int, asked: str) -> Trouble:
    """What an HTTP status of a hub means."""
    if status == 429:
        return Retryable(Finding("the hub says: too many requests", asked, "wait, or name a token in model.token"))
    if status >= 500:
        return Retryable(Finding(f"the hub failed with status {status}", asked, "run again later"))
    if status in (401, 403):
        return Refused(Finding(f"the hub refuses with status {status}", asked, "name a token that may read it in model.token"))
    return Refused(Finding(f"the hub answers with status {status}", asked, "check model.repo and model.revision"))
