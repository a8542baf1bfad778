"""What all parts of a spec, and what is kept of a run, have in common."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError


class Part(BaseModel):
    """Frozen; a field that is not known is an error; values are never echoed in messages
    (one may be a token).
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True, defer_build=True)


Text = Annotated[str, StringConstraints(strict=True, min_length=1, max_length=4096, pattern=r"^[^\x00]*$")]
NAME = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"
DnsLabel = Annotated[str, StringConstraints(strict=True, max_length=40, pattern=NAME)]


def problems(error: ValidationError) -> list[str]:
    """One line for each, as ``field: what is wrong``."""
    lines = (f"{'.'.join(map(str, e['loc']))}: {e['msg'].removeprefix('Value error, ')}" for e in error.errors())
    return [line.lstrip(": ") for line in lines]
