"""Where a model is served: one class a kind."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from model_delivery.base.part import Part, Text


class ProcessTarget(Part):
    """An engine on this host behind a router on 127.0.0.1:``port``; ``engine``: a name under engines/, or a folder with an engine.toml."""

    kind: Literal["process"]
    engine: Text
    port: int = Field(8000, ge=1, le=65535, strict=True)

    @property
    def image(self) -> None:
        """None: the engine is this host's."""


class _ClusterTarget(Part):
    context: Text | None = None
    namespace: Text = "default"
    image: Text = "vllm/vllm-openai:v0.33.0"

    @property
    def engine(self) -> None:
        """None: it is in the image."""


class T9kTarget(_ClusterTarget):
    """A T9k MLService; ``queue``: of its scheduler."""

    kind: Literal["t9k"]
    queue: Text | None = None


class KServeTarget(_ClusterTarget):
    """A KServe InferenceService; without ``gateway`` traffic cannot be weighed."""

    kind: Literal["kserve"]
    gateway: Text | None = None
    hostname: Text | None = None


class DeploymentTarget(_ClusterTarget):
    """A plain Deployment and Service; without ``gateway`` traffic cannot be weighed."""

    kind: Literal["deployment"]
    gateway: Text | None = None
    hostname: Text | None = None


Target = Annotated[ProcessTarget | T9kTarget | KServeTarget | DeploymentTarget, Field(discriminator="kind")]
