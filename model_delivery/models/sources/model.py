"""What a spec says of a model: one class a source."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from model_delivery.base.part import Part, Text
from model_delivery.base.secrets import SecretRef

INCLUDE = ("*.json", "*.safetensors", "*.jinja", "tokenizer*", "*.model", "*.txt", "*.tiktoken")
EXCLUDE = ("original/*", "consolidated*", "onnx/*")


class _Files(Part):
    in_cluster: ClassVar[bool] = True
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

    in_cluster: ClassVar[bool] = False
    source: Literal["local"]
    path: Text
    manifest: str | None = None


Model = Annotated[HuggingFaceModel | ModelScopeModel | GitModel | LocalModel, Field(discriminator="source")]
