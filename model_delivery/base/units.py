"""Quantities that keep the text the user wrote: ``Duration("500ms").seconds``,
``Size("100Gi").bytes``, ``Rate("4/s").per_second``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar, Self

from pydantic import GetCoreSchemaHandler
from pydantic_core import core_schema


class _Quantity(str):
    """A string of one number and one unit; pydantic reads, checks and writes it as that
    string.
    """

    __slots__ = ()
    pattern: ClassVar[re.Pattern[str]]
    example: ClassVar[str]
    most: ClassVar[str]
    units: ClassVar[Mapping[str, float]]

    def __new__(cls, text: Any) -> Self:
        if not isinstance(text, str) or not cls.pattern.fullmatch(text):
            raise ValueError(f"{text!r:.60} is not a {cls.__name__.lower()}: write {cls.example}")
        made = super().__new__(cls, text)
        if text != cls.most and made.amount > cls(cls.most).amount:
            raise ValueError(f"{text:.60} is more than {cls.most}")
        return made

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        text = core_schema.str_schema(strict=True, pattern=f"^(?:{cls.pattern.pattern})$")
        return core_schema.no_info_plain_validator_function(
            cls, json_schema_input_schema=text, serialization=core_schema.to_string_ser_schema()
        )

    @property
    def amount(self) -> float:
        """In seconds, bytes, or requests a second."""
        number, unit = self.pattern.findall(self)[0]
        return float(number) * self.units[unit]


class Duration(_Quantity):
    """``250ms``, ``60s``, ``10m``, ``2h``, ``1d``; ten years at most."""

    __slots__ = ()
    pattern = re.compile(r"([0-9]{1,18}(?:\.[0-9]{1,18})?)(ms|s|m|h|d)")
    example = "500ms, 30s, 10m, 2h or 1d"
    most = "3650d"
    units: ClassVar = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}

    @property
    def seconds(self) -> float:
        return self.amount


class Size(_Quantity):
    """Kubernetes' binary and decimal sizes: ``100Gi``, ``512Mi``, ``1G``."""

    __slots__ = ()
    pattern = re.compile(r"([0-9]{1,18}(?:\.[0-9]{1,18})?)(Ki|Mi|Gi|Ti|Pi|k|M|G|T|P|)")
    example = "100Gi, 512Mi or 1T"
    most = "1024Pi"
    units: ClassVar = {"": 1, **{f"{letter}i": 1024**n for n, letter in enumerate("KMGTP", 1)}}
    units |= {letter: 1000**n for n, letter in enumerate("kMGTP", 1)}

    @property
    def bytes(self) -> int:
        return int(self.amount)


class Rate(_Quantity):
    """Requests per second (``4/s``) or per minute (``30/m``)."""

    __slots__ = ()
    pattern = re.compile(r"([0-9]{1,18}(?:\.[0-9]{1,18})?)/(s|m)")
    example = "4/s or 30/m"
    most = "1000000/s"
    units: ClassVar = {"s": 1, "m": 1 / 60}

    @property
    def per_second(self) -> float:
        return self.amount
