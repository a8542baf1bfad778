"""A marked secret, found again however it is written."""

from __future__ import annotations

import base64
import re


def holds(content: bytes, mark: str) -> bool:
    """Its letters and digits, that is, as they are, or as base64, an address or
    hexadecimal digits would have them.
    """
    (core,) = re.findall(rb"[0-9a-f]{24,}", mark.encode())
    percent = "".join(f"%{octet:02x}" for octet in core).encode()
    forms = {core, core.hex().encode(), percent, percent.upper()}
    for before in range(3):
        text = base64.b64encode(bytes(before) + core)
        forms.add(text[-(-before * 8 // 6) : (before + len(core)) * 8 // 6])
    return any(form in content for form in forms)
