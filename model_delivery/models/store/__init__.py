"""The store: one folder a commit, whole or not at all; its manifest is written last."""

from __future__ import annotations

from model_delivery.models.manifest import MANIFEST, Manifest, folder_name, model_folder, read_manifest
from model_delivery.models.verify import verify

__all__ = ["MANIFEST", "Manifest", "folder_name", "model_folder", "read_manifest", "verify"]
