"""What is told holds no secret that this process has read."""

from __future__ import annotations

import html
import json
from urllib.parse import quote

SHORTEST = 4  # characters: of a shorter one every text would be full
_known: tuple[str, ...] = ()


def learn(secret: str) -> None:
    """From here on it is scrubbed, also as JSON, Python, HTML and addresses write it."""
    global _known  # noqa: PLW0603 - a process has read a secret or it has not
    if len(secret) >= SHORTEST:
        forms = {secret, json.dumps(secret)[1:-1], repr(secret)[1:-1], html.escape(secret), quote(secret, safe="")}
        _known = tuple(sorted({*_known, *forms}, key=len, reverse=True))


def scrub(text: str) -> str:
    for secret in _known:
        text = text.replace(secret, "***")
    return text
