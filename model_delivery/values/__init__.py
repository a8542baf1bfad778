"""The values that rooms hand to each other: releases, resources, kinds, readiness, a
rollout.
"""

# mypy: implicit-reexport
# ruff: noqa: F401

from __future__ import annotations

from model_delivery.values.engine import Engine, Environment, old_vllm
from model_delivery.values.gates import Gates, Rollout, Schedule, Slo, ThroughputGate
from model_delivery.values.gpus import Card, Wanted, ranks, wanted
from model_delivery.values.kind import LEASE, RECORD, RELEASE, REPORT, Demand, Kind
from model_delivery.values.readiness import (
    Absent,
    Current,
    Ended,
    Failed,
    InProgress,
    Phase,
    Readiness,
    Server,
    Start,
    Started,
    StepState,
)
from model_delivery.values.release import Address, Capabilities, Desired, Lock, Payload, Release, ReleaseId
from model_delivery.values.resources import (
    ABSENT,
    ANY,
    ENGINES,
    RECORD_REF,
    RUNS,
    Change,
    Mismatch,
    Observed,
    Ref,
    Resource,
    Role,
    Version,
    World,
    covers,
    difference,
    digest,
)
from model_delivery.values.rollout import FETCH, Stage, StageKind, StoredPhase, Strategy, stages
from model_delivery.values.serving import (
    Pod,
    Replicas,
    Runner,
    Serving,
    Storage,
    Where,
    is_model_name,
    max_model_len,
    means,
    option,
)
from model_delivery.values.snapshot import File, Snapshot
