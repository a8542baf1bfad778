"""What a release must be able to do, and how it is rolled out, as a spec says it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Self
from zoneinfo import available_timezones

from pydantic import Field, create_model, field_validator, model_validator

from model_delivery.base import Duration, Part, Rate, Text
from model_delivery.values.metrics import FIGURES, LATENCIES, Figure, Metric

RANDOM = re.compile(r"(?i)(?:^|\s)[hr]")  # croniter's own; Prefect has none


class SmokeGate(Part):
    prompt: Text = "What is the capital of France?"
    expect: Text = "Paris"
    max_tokens: int = Field(64, ge=1)

    @model_validator(mode="after")
    def _expected(self) -> Self:
        if "prompt" in self.model_fields_set and "expect" not in self.model_fields_set:
            raise ValueError("a prompt of your own needs `expect`: a text that a right answer holds")
        return self


def _field(metric: Metric) -> tuple[Any, float | None]:
    kind: Any = Annotated[float, Field(ge=0)] if metric.unit else Annotated[float, Field(ge=0, le=1)]
    return (Duration if metric in LATENCIES else kind) | None, metric.default


_FIELDS: Any = {figure.bound: _field(figure.metric) for figure in FIGURES.values() if figure.metric.bounded}


class Slo(create_model("Slo", __base__=Part, **_FIELDS)):  # type: ignore[misc]
    """Bounds on what the load test measures; a key is metric, percentile and direction
    (docs: metrics).
    """

    def bounds(self) -> Iterator[tuple[Figure, float]]:
        """Every figure that is bounded, and its bound in the metric's unit."""
        for figure in FIGURES.values():
            value = getattr(self, figure.bound, None)
            if value is not None:
                yield figure, round(value.seconds * 1000, 6) if isinstance(value, Duration) else float(value)


class ThroughputGate(Part):
    """``profile``: a name, or (once loaded) a profile's content.

    ``users``: a closed loop; ``rate``: an open one. ``control``: where a figure is
    refused, the serving release is loaded alike, unless somebody uses it.
    """

    profile: str | dict[str, Any] = "chat"
    users: int | None = Field(None, ge=1, le=4096)
    rate: Rate | None = None
    warmup: Duration = Duration("10s")
    duration: Duration = Duration("60s")
    repeats: int = Field(1, ge=1, le=20)
    max_regression: Annotated[float, Field(gt=0)] | None = None
    control: bool = True
    slo: Slo = Slo()

    def load(self) -> dict[str, Any]:
        """How it loads, without how that is judged."""
        return self.model_dump(exclude={"max_regression", "control"})

    @model_validator(mode="after")
    def _one_load(self) -> ThroughputGate:
        if self.duration.seconds <= 0:
            raise ValueError("duration must be more than 0s: nothing would be asked")
        if self.users is not None and self.rate is not None:
            raise ValueError("users and rate exclude each other: users is a closed loop, rate an open one")
        if self.max_regression is not None and self.repeats < 2:
            raise ValueError(
                "max_regression needs repeats of 2 at least (3 or more see smaller changes): one run shows no noise"
            )
        return self


class Gates(Part):
    """null leaves a gate out."""

    smoke: SmokeGate | None = SmokeGate()
    throughput: ThroughputGate | None = ThroughputGate(users=16)


class Rollout(Part):
    strategy: Literal["canary", "blue-green", "recreate"] = "blue-green"
    steps: tuple[Annotated[int, Field(ge=1, le=99)], ...] = (10, 50)
    soak: Duration = Duration("60s")
    watch: Duration = Duration("10m")
    when_full: Literal["refuse", "recreate"] = "refuse"
    standby: Duration = Duration("30m")
    standby_mode: Literal["sleep", "run", "off"] = "run"
    keep: int = Field(3, ge=1)
    history: int = Field(200, ge=1)

    @property
    def sleeps(self) -> bool:
        """Shall what served before sleep, where its engine can?"""
        return self.standby_mode == "sleep"


class Schedule(Part):
    """``cron``: minute, hour, day, month and weekday, or ``@daily`` and the like, as
    Prefect reads them.
    """

    cron: Text
    timezone: Text = "UTC"

    @field_validator("cron")
    @classmethod
    def _comes(cls, cron: str) -> str:
        from croniter import CroniterBadDateError, croniter  # few specs have a schedule; every command reads this file

        form = "write minute, hour, day, month and weekday, such as 0 3 * * *"
        words = cron.split()
        if not (len(words) == 5 or cron.startswith("@")) or not croniter.is_valid(cron) or RANDOM.search(cron):
            raise ValueError(f"{cron!r:.60} is no cron schedule: {form}")
        try:
            for weekday in words[4:] and (words[4], "*"):  # Prefect fails on 30 February whatever the weekday
                croniter(" ".join((*words[:4], weekday))).get_next()
        except CroniterBadDateError:
            raise ValueError(f"{cron!r:.60} never comes: no such day is in such a month") from None
        return cron

    @field_validator("timezone")
    @classmethod
    def _known(cls, zone: str) -> str:
        known = available_timezones()
        if zone in known:
            return zone
        near = [name for name in known if name.casefold() == zone.casefold()]
        hint = f"did you mean {near[0]}?" if near else "write UTC or a city's, such as America/Los_Angeles"
        raise ValueError(f"{zone!r:.60} is no time zone; {hint}")
