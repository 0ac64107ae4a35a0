"""What each rank keeps for itself in a checkpoint, read on any number of ranks."""

from collections.abc import Iterator

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor

from stem_torchrec.checkpoints.storage import reader_from, without_warnings
from stem_torchrec.checkpoints.weights import saved_tensors
from stem_torchrec.runtime.store_path import path_of


def rank_tensors(path: str, part: str) -> Iterator[dict[str, Tensor]]:
    """The tensors that ranks have saved as a part of theirs, one saved rank after another.

    All tensors are read once: a run on fewer ranks reads several of them on each, on more some read none.

    Args:
        path: of the checkpoint, which `read_metadata` has checked.
        part: its name among what `training_state` has of a rank.

    Example::

        # saved on two ranks: rank.0.deltas.uid, rank.0.deltas.tags, rank.1.deltas.uid, rank.1.deltas.tags
        list(rank_tensors(path, "deltas"))  # on one rank: [{"uid": ..., "tags": ...}, {"uid": ..., "tags": ...}]
    """
    saved = saved_tensors(path_of(path))
    ranks = sorted({int(name.split(".")[1]) for name in saved if name.startswith("rank.")})
    for rank in ranks[dist.get_rank() :: dist.get_world_size()]:
        prefix = f"rank.{rank}.{part}."
        tensors = {
            name: torch.empty(item.size, dtype=item.properties.dtype)
            for name, item in saved.items()
            if name.startswith(prefix)
        }
        if tensors:
            with without_warnings():
                dcp.load(tensors, storage_reader=reader_from(path), no_dist=True)
            yield {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
