"""The one shape of bad news.

Trouble                       anything that ends a run; carries one or more findings
├── Retryable                 trying again may help (a task's default retries apply)
└── Permanent                 trying again as it stands cannot help
    ├── BadInput              the spec or the arguments are wrong: exit code 2
    ├── Refused               preflight refuses, nothing was touched: exit code 3
    ├── GateFailed            smoke, throughput or watch said no: exit code 4
    └── Interrupted           stopped from outside, safe to run again: exit code 5
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar, Self

from model_delivery.base.scrubbing import plain

UNKNOWN = "unknown.older-version"


@dataclass(frozen=True)
class Finding:
    """What happened, why, what to do next, and the lines that show it.

    ``code``: stable words, ``AREA.WHAT``, listed in docs/findings.md.
    """

    code: str
    what: str
    why: str = ""
    fix: str = ""
    evidence: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for part in ("what", "why", "fix"):
            object.__setattr__(self, part, plain(str(getattr(self, part))))
        object.__setattr__(self, "evidence", tuple(plain(str(line)) for line in self.evidence))

    def __str__(self) -> str:
        text = (self.what + (f": {self.why}" if self.why else "")).replace("\n", "\n    ")
        shown = "".join(f"\n    {line}" for line in self.evidence)
        return f"{text} [{self.code}]{shown}" + (f"\n  fix: {self.fix}" if self.fix else "")

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"evidence": list(self.evidence)}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        """Read back what ``to_json`` wrote (an older version wrote no code); unknown keys
        are a TypeError.
        """
        return cls(**({"code": UNKNOWN} | value | {"evidence": tuple(value.get("evidence", ()))}))


def together(findings: Iterable[Finding]) -> Iterator[Finding]:
    """For people: those with one remedy stand together, and the last of them says it."""
    grouped: dict[str, list[Finding]] = {}
    for finding in findings:
        grouped.setdefault(finding.fix, []).append(finding)
    for *others, last in grouped.values():
        yield from (replace(other, fix="") for other in others)
        yield last


class Trouble(Exception):
    """Ends a run. ``exit_code`` is what the command line returns for it."""

    exit_code: ClassVar[int] = 1

    def __init__(self, *findings: Finding) -> None:
        super().__init__(*findings)
        self.findings = tuple(dict.fromkeys(findings))

    @property
    def text(self) -> str:
        return "\n".join(map(str, together(self.findings)))

    def __str__(self) -> str:
        return f"exit code {self.exit_code}: {self.text}"


def trouble(exit_code: int, *findings: Finding) -> Trouble:
    """The Trouble that stands for ``exit_code``; Permanent for 1 and for codes that none
    stands for.
    """
    kinds = (BadInput, Refused, GateFailed, Interrupted)
    return next((kind for kind in kinds if kind.exit_code == exit_code), Permanent)(*findings)


class Retryable(Trouble):
    """Trying again may help: a hub that is overloaded, a connection that broke."""


class Permanent(Trouble):
    """Trying again, as it stands, cannot help."""


class BadInput(Permanent):
    """The spec or the arguments are wrong."""

    exit_code = 2


class Refused(Permanent):
    """Preflight refuses; nothing was touched."""

    exit_code = 3


class NoRoom(Refused):
    """The place cannot hold this beside what runs."""


class GateFailed(Permanent):
    """A gate said no; the previous release, if any, still serves."""

    exit_code = 4


class Interrupted(Permanent):
    """Stopped from outside; safe to run again."""

    exit_code = 5
