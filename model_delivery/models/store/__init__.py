"""The store: one folder a commit, whole or not at all; its manifest is written last."""
