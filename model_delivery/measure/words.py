"""What a server says, made fit to be told, and whether it is an error."""

from __future__ import annotations

import json
from typing import Any

from model_delivery.base.scrubbing import short

ENDS = {"stop", "length", "tool_calls", "function_call", "eos_token", "stop_sequence"}
PARTS = {"id", "object", "created", "model", "choices", "usage", "system_fingerprint", "service_tier"}
ERRORS = ("error", "errors", "message", "detail", "exception")
NO_TEXT = {"role", "name", "id", "type", "object"}


def printable(text: str | bytes | bytearray, most: int = 200) -> str:
    """On one line, without a secret of ours and anything that steers a terminal or a
    page.
    """
    text = short(text if isinstance(text, str) else text.decode("utf-8", "replace"), 4 * most)
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())[:most]


def spoken(delta: dict[str, Any]) -> list[str]:
    """Its texts of any kind, empty ones too: content, reasoning, a refusal."""
    return [text for key, text in delta.items() if isinstance(text, str) and key not in NO_TEXT]


def message(error: Any) -> str:
    """The words of an error, in any of the forms that servers give it."""
    while isinstance(error, dict) and (key := next((key for key in (*ERRORS, "code") if error.get(key)), "")):
        error = error[key]
    return printable(error if isinstance(error, str | bytes) else json.dumps(error)) if error else ""


def fault(said: dict[str, Any]) -> Any:
    """The error in what should be an answer or a part of one; None for a sound one."""
    for choice in said.get("choices") or ():
        if isinstance(choice, dict):
            if error := choice.get("error"):
                return error
            if (reason := choice.get("finish_reason")) and isinstance(reason, str) and reason not in ENDS:
                return f"finish reason {reason!r}"
    if said.keys() <= PARTS:
        return said if said.get("object") == "error" else None
    part = isinstance(said.get("choices"), list) or said.get("usage")
    return said if any(said[key] for key in (ERRORS if part else said.keys() - PARTS) if key in said) else None
