"""The parts of a spec, as DeliverySpec's fields name them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, field_validator, model_validator

from model_delivery.base.part import DnsLabel, Part, Text
from model_delivery.base.units import Duration, Rate, Size
from model_delivery.spec.target import ProcessTarget, Target

INCLUDE = ("*.json", "*.safetensors", "*.jinja", "tokenizer*", "*.model", "*.txt", "*.tiktoken")
EXCLUDE = ("original/*", "consolidated*", "onnx/*")
OURS = ("--model", "--served-model-name", "--host", "--port", "--api-key")


class EnvSecret(Part):
    """The value of an environment variable, read where it is needed."""

    env: Text


class FileSecret(Part):
    """The content of a file, read where it is needed."""

    file: Text


class KubeKey(Part):
    name: Text
    key: Text


class KubeSecret(Part):
    """A key of a Kubernetes Secret."""

    kube: KubeKey


SecretRef = EnvSecret | FileSecret | KubeSecret


class _Files(Part):
    include: tuple[Text, ...] = INCLUDE
    exclude: tuple[Text, ...] = EXCLUDE
    allow: tuple[Literal["pickle", "remote-code"], ...] = ()


class Fallback(Part):
    """Another source of the same files; ``token`` is its own, ``model.token`` is never sent to it."""

    source: Literal["huggingface", "modelscope", "git"]
    repo: Text
    revision: Annotated[str, Field(strict=True)]
    token: SecretRef | None = None


class _Remote(_Files):
    repo: Text
    token: SecretRef | None = None
    fallback: tuple[Fallback, ...] = ()
    pins: dict[Text, Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]] = Field(default_factory=dict)


class HuggingFaceModel(_Remote):
    """A repository of the Hugging Face Hub (or of ``HF_ENDPOINT``)."""

    source: Literal["huggingface"]
    revision: Annotated[str, Field(strict=True)] = "main"


class ModelScopeModel(_Remote):
    """A repository of ModelScope."""

    source: Literal["modelscope"]
    revision: Annotated[str, Field(strict=True)] = "master"


class GitModel(_Remote):
    """Any git remote with LFS; ``repo`` is its URL."""

    source: Literal["git"]
    revision: Annotated[str, Field(strict=True)] = "main"


class LocalModel(_Files):
    """A folder on the host (in a cluster: on the claim); ``manifest`` is the content of a list of sha256 sums, once loaded."""

    source: Literal["local"]
    path: Text
    manifest: str | None = None


Model = Annotated[HuggingFaceModel | ModelScopeModel | GitModel | LocalModel, Field(discriminator="source")]


class Storage(Part):
    """A claim in a cluster; on a host a folder (none: the state folder)."""

    claim: Text | None = None
    size: Size | None = None
    storage_class: Text | None = None
    access: Literal["ReadWriteOnce", "ReadWriteMany", "ReadOnlyMany", "ReadWriteOncePod"] = "ReadWriteOnce"
    notebook: bool = False
    path: Text | None = None


class Resources(Part):
    """As Kubernetes writes them: ``nvidia.com/gpu: 1, cpu: 4, memory: 64Gi``."""

    limits: dict[Text, int | float | str] = Field(default_factory=dict)

    @field_validator("limits")
    @classmethod
    def _quantities(cls, limits: dict[str, int | float | str]) -> dict[str, int | float | str]:
        if "memory" in limits:
            Size(str(limits["memory"]))
        gpus = limits.get("nvidia.com/gpu", 0)
        if not isinstance(gpus, int) or gpus < 0:
            raise ValueError("nvidia.com/gpu is a whole number")
        cpu = str(limits.get("cpu", "1")).removesuffix("m")
        if not cpu.replace(".", "", 1).isdigit() or float(cpu) <= 0:
            raise ValueError("cpu is a number of CPUs, such as 4 or 500m")
        return limits


class Replicas(Part):
    min: int = Field(1, ge=1)
    max: int = Field(1, ge=1)

    @model_validator(mode="after")
    def _ordered(self) -> Replicas:
        if self.max < self.min:
            raise ValueError("max is below min")
        return self


class Pod(Part):
    """What is passed on to pod templates, as Kubernetes names it (in snake case)."""

    node_selector: dict[str, str] = Field(default_factory=dict)
    tolerations: tuple[dict[str, Any], ...] = ()
    affinity: dict[str, Any] = Field(default_factory=dict)
    image_pull_secrets: tuple[str, ...] = ()
    service_account: str | None = None
    runtime_class: str | None = None
    priority_class: str | None = None
    security_context: dict[str, Any] = Field(default_factory=dict)
    volumes: tuple[dict[str, Any], ...] = ()
    volume_mounts: tuple[dict[str, Any], ...] = ()
    shm: Size | None = None
    annotations: dict[str, str] = Field(default_factory=dict)


class Serving(Part):
    """How the engine serves; ``model_names`` is what clients send, ``chat_template`` a template's content, once loaded."""

    model_names: tuple[Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/:-]*$", max_length=200)], ...] = ()
    args: tuple[Text, ...] = ()
    env: dict[Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")], str | SecretRef] = Field(default_factory=dict)
    api_key: SecretRef | None = None
    chat_template: str | None = None
    resources: Resources = Resources()
    replicas: Replicas = Replicas()
    startup_timeout: Duration | None = None
    pod: Pod = Pod()

    @field_validator("args")
    @classmethod
    def _not_ours(cls, args: tuple[str, ...]) -> tuple[str, ...]:
        taken = [arg.partition("=")[0] for arg in args if arg.partition("=")[0].replace("_", "-") in OURS]
        if taken:
            raise ValueError(
                f"{', '.join(taken)}: set by Model Delivery; use model, serving.model_names, target.port and serving.api_key"
            )
        return args


class Runner(Part):
    """The image that runs our steps in a cluster."""

    image: Text | None = None
    resources: dict[str, Any] = Field(default_factory=dict)
    image_pull_secrets: tuple[str, ...] = ()


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


class DeliverySpec(Part):
    """One service: a model, where and how it is served, and what it must be able to do before it gets traffic."""

    api_version: Literal["model-delivery/v1"] = Field(alias="apiVersion")
    name: DnsLabel
    model: Model
    storage: Storage = Storage()
    serving: Serving = Serving()
    target: Target
    runner: Runner = Runner()
    gates: Gates = Gates()
    rollout: Rollout = Rollout()
    approval: Literal["none", "manual"] = "none"
    schedule: Schedule | None = None
    concurrency: Literal["wait", "refuse"] = "wait"

    model_config = ConfigDict(**Part.model_config, serialize_by_alias=True)

    @model_validator(mode="before")
    @classmethod
    def _default_names(cls, given: Any) -> Any:
        """``serving.model_names`` defaults to the delivery's name."""
        if (
            isinstance(given, dict)
            and isinstance(given.get("serving", {}), dict)
            and isinstance(given.get("name"), str)
        ):
            serving = given.get("serving", {})
            if not serving.get("model_names"):
                return {**given, "serving": {**serving, "model_names": (given["name"],)}}
        return given

    @model_validator(mode="after")
    def _storage_of_the_place(self) -> DeliverySpec:
        if isinstance(self.target, ProcessTarget) and self.storage.claim is not None:
            raise ValueError("storage.claim: a host has no claims; use storage: {path: DIR} or leave it out")
        return self
