"""The sharder of a run: how ids reach the tables, and in which precision embeddings travel."""

from typing import Any

import torch
from torchrec.distributed.fbgemm_qcomm_codec import CommType, QCommsConfig, get_qcomm_codecs_registry

from stem_torchrec.sharding.once import OnceSharder
from stem_torchrec.sharding.shard import AllTypesSharder

_FP16_LOSS_SCALE = 1024.0
"""Gradients of a mean over thousands of rows are near fp16's smallest number; a power of two adds no rounding."""


def make_sharder(*, input_dist: str = "stock", communication: str = "fp32") -> AllTypesSharder:
    """A sharder for EmbeddingBagCollections.

    Args:
        input_dist: once sends each feature's ids once to a rank, stock once per table.
        communication: fp32, fp16 or bf16 for pooled embeddings and their gradients.
    """
    sharder = OnceSharder if input_dist == "once" else AllTypesSharder
    return sharder(qcomm_codecs_registry=_codecs(communication))


def _codecs(precision: str) -> dict[str, Any] | None:
    kind = CommType(precision)
    config = QCommsConfig(
        forward_precision=kind,
        backward_precision=kind,
        backward_loss_scale=_FP16_LOSS_SCALE if kind == CommType.FP16 else None,
    )
    # For CPU, TorchRec replaces bf16 by fp16, which dates from when gloo could not sum bf16; now it can.
    return get_qcomm_codecs_registry(config, device=torch.device("cuda"))
