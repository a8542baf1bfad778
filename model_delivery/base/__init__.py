# mypy: implicit-reexport
# ruff: noqa: F401
"""What everything else stands on: findings, secrets, quantities, progress, the clock."""

from __future__ import annotations

from model_delivery.base.clock import Clock, SystemClock
from model_delivery.base.deadline import Stopped, stopped, within
from model_delivery.base.durable import private_folder, read_file, replace_file, sync
from model_delivery.base.findings import (
    BadInput,
    Finding,
    GateFailed,
    Interrupted,
    NoRoom,
    Permanent,
    Refused,
    Retryable,
    Trouble,
    trouble,
)
from model_delivery.base.home import default_home, packaged, proven
from model_delivery.base.manifests import Object, document, manifest
from model_delivery.base.part import (
    NAME,
    Count,
    DnsLabel,
    Host,
    Moment,
    Part,
    Port,
    Text,
    Word,
    base_url,
    did_you_mean,
    moment,
    plainly,
    problems,
)
from model_delivery.base.progress import Progress, report, sink
from model_delivery.base.scrubbing import scrub, short
from model_delivery.base.secrets import (
    UNSENDABLE,
    EnvSecret,
    FileSecret,
    KubeKey,
    KubeSecret,
    Secret,
    SecretRef,
    bearer,
    from_cluster,
    read_secret,
    secret,
)
from model_delivery.base.units import Duration, Rate, Size
