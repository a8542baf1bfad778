"""Sources say where a model's bytes are, one room each; one transfer engine
(``model_delivery.models.store``) moves them.
"""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import Field

from model_delivery.models.sources.git import GitModel
from model_delivery.models.sources.huggingface import HuggingFaceModel
from model_delivery.models.sources.local import LocalModel
from model_delivery.models.sources.modelscope import ModelScopeModel
from model_delivery.models.sources.spec import REMOTES, Fallback, ModelSpec, RemoteModel

Model = Annotated[HuggingFaceModel | ModelScopeModel | GitModel | LocalModel, Field(discriminator="source")]

SOURCES: dict[str, type[ModelSpec]] = {
    get_args(room.model_fields["source"].annotation)[0]: room for room in get_args(get_args(Model)[0])
}
ENDPOINTS = tuple(room.endpoint_variable for room in SOURCES.values() if room.endpoint_variable)

REMOTES.update({name: room for name, room in SOURCES.items() if issubclass(room, RemoteModel)})
Fallback.model_rebuild(_types_namespace={"Remotes": Literal[tuple(REMOTES)]})
