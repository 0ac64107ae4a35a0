"""STEM, shared and task-specific embeddings for multi-task ranking, on TorchRec."""

from stem_torchrec.runtime.versions import check_versions

check_versions()
