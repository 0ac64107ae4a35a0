"""STEM, shared and task-specific embeddings for multi-task ranking, on TorchRec."""

from stem_torchrec.stack import check_stack

check_stack()
