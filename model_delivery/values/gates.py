"""What a release must be able to do, and how it is rolled out, as a spec says it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from model_delivery.base.part import Part, Text
from model_delivery.base.units import Duration, Rate


class SmokeGate(Part):
    prompt: Text = "What is the capital of France?"
    expect: Text = "Paris"
    max_tokens: int = Field(64, ge=1)


Bound = Annotated[float, Field(ge=0)]


class Slo(Part):
    """Bounds on what the load test measures; a key is metric, percentile and direction (docs: metrics)."""

    error_rate_max: Annotated[float, Field(ge=0, le=1)] | None = 0.0
    ttft_p50_max: Duration | None = None
    ttft_p90_max: Duration | None = None
    ttft_p95_max: Duration | None = None
    ttft_p99_max: Duration | None = None
    itl_p50_max: Duration | None = None
    itl_p90_max: Duration | None = None
    itl_p95_max: Duration | None = None
    itl_p99_max: Duration | None = None
    tpot_p50_max: Duration | None = None
    tpot_p90_max: Duration | None = None
    tpot_p95_max: Duration | None = None
    tpot_p99_max: Duration | None = None
    e2e_p50_max: Duration | None = None
    e2e_p90_max: Duration | None = None
    e2e_p95_max: Duration | None = None
    e2e_p99_max: Duration | None = None
    output_tokens_per_second_min: Bound | None = None
    requests_per_second_min: Bound | None = None
    goodput_min: Bound | None = None


class ThroughputGate(Part):
    """``profile``: a name, or (once loaded) a profile's content. ``users``: a closed loop; ``rate``: an open one."""

    profile: str | dict[str, Any] = "chat"
    users: int | None = Field(None, ge=1, le=4096)
    rate: Rate | None = None
    warmup: Duration = Duration("10s")
    duration: Duration = Duration("60s")
    repeats: int = Field(1, ge=1, le=20)
    max_regression: Annotated[float, Field(gt=0)] | None = None
    slo: Slo = Slo()

    @model_validator(mode="after")
    def _one_load(self) -> ThroughputGate:
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
    keep: int = Field(3, ge=1)
    history: int = Field(200, ge=1)


class Schedule(Part):
    cron: Text
    timezone: Text = "UTC"
