"""Quantities that keep the text the user wrote: ``Duration("500ms").seconds``,
``Size("100Gi").bytes``, ``Rate("4/s").per_second``.
"""

from __future__ import annotations

import re
from typing import Any, ClassVar, Self

from pydantic import GetCoreSchemaHandler
from pydantic_core import core_schema

TEN_YEARS = 3650 * 86400


class _Quantity(str):
    """A string of one number and one unit; pydantic reads, checks and writes it as that
    string.
    """

    __slots__ = ()
    pattern: ClassVar[re.Pattern[str]]
    example: ClassVar[str]

    def __new__(cls, text: Any) -> Self:
        if not isinstance(text, str) or not cls.pattern.fullmatch(text):
            raise ValueError(f"{text!r:.60} is not a {cls.__name__.lower()}: write {cls.example}")
        return super().__new__(cls, text)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        text = core_schema.str_schema(strict=True, pattern=f"^(?:{cls.pattern.pattern})$")
        return core_schema.no_info_plain_validator_function(
            cls, json_schema_input_schema=text, serialization=core_schema.to_string_ser_schema()
        )

    @property
    def _parts(self) -> tuple[float, str]:
        number, unit = self.pattern.findall(self)[0]
        return float(number), unit


class Duration(_Quantity):
    """``250ms``, ``60s``, ``10m``, ``2h``, ``1d``; ten years at most."""

    __slots__ = ()
    pattern = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
    example = "500ms, 30s, 10m, 2h or 1d"

    def __new__(cls, text: Any) -> Self:
        duration = super().__new__(cls, text)
        if duration.seconds > TEN_YEARS:
            raise ValueError(f"{text!r:.60} is longer than ten years")
        return duration

    @property
    def seconds(self) -> float:
        number, unit = self._parts
        return number * {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}[unit]


class Size(_Quantity):
    """Kubernetes' binary and decimal sizes: ``100Gi``, ``512Mi``, ``1G``."""

    __slots__ = ()
    pattern = re.compile(r"(\d+(?:\.\d+)?)(Ki|Mi|Gi|Ti|Pi|k|M|G|T|P|)")
    example = "100Gi, 512Mi or 1T"

    @property
    def bytes(self) -> int:
        number, unit = self._parts
        power = " KMGTP".index(unit[0].upper()) if unit else 0
        return int(number * (1024 if unit.endswith("i") else 1000) ** power)


class Rate(_Quantity):
    """Requests per second (``4/s``) or per minute (``30/m``)."""

    __slots__ = ()
    pattern = re.compile(r"(\d+(?:\.\d+)?)/(s|m)")
    example = "4/s or 30/m"

    @property
    def per_second(self) -> float:
        number, unit = self._parts
        return number / {"s": 1, "m": 60}[unit]
