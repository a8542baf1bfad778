"""The store: one folder a commit, made whole or not at all; its manifest is written last."""

from delivery.store.layout import MANIFEST, Manifest, folder_name, model_folder, read_manifest
from delivery.store.verify import verify

__all__ = ["MANIFEST", "Manifest", "folder_name", "model_folder", "read_manifest", "verify"]
