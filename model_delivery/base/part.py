"""What all parts of a spec, and what is kept of a run, have in common."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, ValidationError


class Part(BaseModel):
    """Frozen; a field that is not known is an error; values are never echoed in messages
    (one may be a token).
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True, defer_build=True)


def _short_enough(text: str) -> str:
    """Linux starts no program with a longer one."""
    if len(text.encode(errors="surrogatepass")) > WORD_BYTES:
        raise ValueError(f"longer than {WORD_BYTES:,} bytes")
    return text


WORD_BYTES = 128_000
Text = Annotated[str, StringConstraints(strict=True, min_length=1, max_length=4096, pattern=r"^[^\x00]*$")]
Word = Annotated[str, StringConstraints(pattern=r"^[^\x00]*$"), AfterValidator(_short_enough)]
Moment = Annotated[float, Field(ge=0, lt=1 << 37, allow_inf_nan=False)]  # seconds since the epoch, for 4,000 years


def moment(seconds: float) -> str:
    """A Moment as people read it everywhere: ``2026-11-28 03:13:39Z``."""
    return datetime.fromtimestamp(seconds, tz=UTC).strftime("%Y-%m-%d %H:%M:%SZ")


Count = Annotated[int, Field(ge=0, lt=1 << 31)]
Host = Annotated[str, Field(pattern=r"^[A-Za-z0-9]([A-Za-z0-9.:-]{0,251}[A-Za-z0-9])?$")]
Port = Annotated[int, Field(ge=1, lt=1 << 16)]
URL = re.compile(r"https?://([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?(/[A-Za-z0-9._~/-]*)?")
WHOLE, NUMBER, MAPPING = "must be a whole number", "must be a number", "must be a mapping of fields"
PLAINLY = {
    "extra_forbidden": "there is no such field",
    "missing": "is missing",
    "literal_error": "must be {expected}",
    "string_type": "must be text",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "tuple_type": "must be a list",
    "list_type": "must be a list",
    "dict_type": MAPPING,
    "model_type": MAPPING,
    "model_attributes_type": MAPPING,
    "int_type": WHOLE,
    "int_parsing": WHOLE,
    "int_from_float": WHOLE,
    "float_type": NUMBER,
    "float_parsing": NUMBER,
    "greater_than": "must be more than {gt:g}",
    "greater_than_equal": "must be {ge:g} or more",
    "less_than": "must be less than {lt:g}",
    "less_than_equal": "must be {le:g} or less",
    "string_too_short": "must have {min_length} characters or more",
    "string_too_long": "must have at most {max_length} characters",
    "string_pattern_mismatch": "must be of the form {pattern}",
    "too_short": "must have {min_length} or more",
}
NAME = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"
DnsLabel = Annotated[str, StringConstraints(strict=True, max_length=40, pattern=NAME)]


def base_url(told: Any) -> str | None:
    """An address that somebody else told, without a slash at its end; None where it is
    not plainly scheme, host, port and path: keys go there, and it is pasted into shells.
    """
    seen = URL.fullmatch(told) if isinstance(told, str) and len(told) < 2048 else None
    return told.rstrip("/") if seen and int((seen[2] or ":1")[1:]) < 65536 else None


def did_you_mean(text: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """The nearest of what is known, as a question; empty where none is near."""
    near = difflib.get_close_matches(text, list(known), 1, cutoff)
    return f"did you mean {near[0]}?" if near else ""


def problems(error: ValidationError) -> list[str]:
    """One line for each, as ``field: what is wrong``."""
    lines = (f"{'.'.join(map(str, e['loc']))}: {plainly(e)}" for e in error.errors())
    return [line.lstrip(": ") for line in lines]


def plainly(problem: Mapping[str, Any]) -> str:
    """What pydantic says of a value, in words for people who know no pydantic."""
    words = PLAINLY.get(problem["type"])
    return words.format(**problem.get("ctx", {})) if words else str(problem["msg"]).removeprefix("Value error, ")
