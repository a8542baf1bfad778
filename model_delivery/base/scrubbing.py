"""What is told holds no secret that this process has read, however it is written."""

from __future__ import annotations

import base64
import html
import json
import re
from collections.abc import Iterator
from functools import cache
from html.entities import html5
from urllib.parse import quote

SHORTEST = 4  # characters: of a shorter one every text would be full
LONGEST = 1024  # of a longer one (a file of logins) only whole texts in the usual escapes are known
BEYOND, PIECE = 1 << 13, 1 << 12  # characters that are read beyond a cut; of them may be a piece of a secret
_known: tuple[str, ...] = ()
_escaped: dict[str, re.Pattern[str]] = {}


def learn(secret: str) -> None:
    """From here on it is scrubbed, also as JSON, Python, HTML, addresses and base64 write
    it, alone or within more.
    """
    global _known  # noqa: PLW0603 - a process has read a secret or it has not
    if len(secret) < SHORTEST or secret in _escaped or secret in _known:
        return
    forms = {secret, json.dumps(secret)[1:-1], repr(secret)[1:-1], html.escape(secret), quote(secret, safe="")}
    forms |= {*_in_base64(secret.encode(errors="replace"))}
    if len(secret) <= LONGEST:
        _escaped[secret] = re.compile("".join(map(_any_form, secret)))
    _known = tuple(sorted({*_known, *forms}, key=len, reverse=True))


def scrub(text: str) -> str:
    for secret in _known:
        text = text.replace(secret, "***")
    if any(mark in text for mark in "\\%&"):
        for pattern in _escaped.values():
            text = pattern.sub("***", text)
    return text


def plain(text: str) -> str:
    """Scrubbed, and without what steers a terminal; its lines stay."""
    text = scrub(text)
    return text if text.isprintable() else "".join(c if c.isprintable() or c in "\n\t" else " " for c in text)


def short(text: str, most: int) -> str:
    """Its first ``most`` characters, its last where that is negative, scrubbed before
    they are cut: nobody knows a secret by a piece of it.
    """
    room = abs(most) + BEYOND
    told = scrub(text[:room] if most > 0 else text[-room:])
    if len(text) > room:
        told = told[:-PIECE] if most > 0 else told[PIECE:]
    return told[:most] if most > 0 else told[most:]


def _in_base64(secret: bytes) -> Iterator[str]:
    """The characters that are the secret's alone, for each place where it can begin: so
    that it is known within ``user:secret`` too.
    """
    for before in range(3):
        text = base64.b64encode(bytes(before) + secret).decode()
        own = text[-(-before * 8 // 6) : (before + len(secret)) * 8 // 6]
        yield from (own, own.replace("+", "-").replace("/", "_"), quote(own, safe=""))


@cache
def _any_form(character: str) -> str:
    """A pattern for one character as it is, or in any escape, by itself or again
    escaped.
    """
    units = re.findall("....", character.encode("utf-16-be", "surrogatepass").hex())
    octets = character.encode(errors="replace")
    code, names = ord(character), "|".join(re.escape(name) for name, text in html5.items() if text == character)
    slashes, zeros, again = r"\\{1,8}", "0{0,8}", "(?:amp;){0,3}"  # bounded: a text may be made of them
    forms = [
        rf"\\{{0,8}}{re.escape(character)}",
        "".join(f"{slashes}u{unit}" for unit in units),
        rf"{slashes}u\{{{zeros}{code:x}\}}",
        f"{slashes}(?:x|u0000|U0000){code:02x}",
        "".join(f"{slashes}x{octet:02x}" for octet in octets),
        "".join(f"{slashes}{zeros}{octet:o}" for octet in octets),
        "".join(f"%(?:25){{0,3}}{octet:02x}" for octet in octets),
        f"&{again}#(?:{zeros}{code}|x{zeros}{code:x});?",
        *([f"&{again}(?:{names})"] if names else []),
    ]
    return f"(?:{forms[0]}|(?i:{'|'.join(forms[1:])}))"
