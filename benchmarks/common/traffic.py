"""Counts the bytes that a rank sends to others in TorchRec's collectives: ids, embeddings and their gradients.

It wraps the collectives of torch.distributed, so it counts what is really sent, after quantization and with or without
a pipeline. It does not see the all-reduce of the dense gradients by DistributedDataParallel.
"""

import functools
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass
class Traffic:
    """Bytes that this rank sent to other ranks."""

    ids: int = 0
    """Ids, lengths of bags and weights of ids, to the ranks of the tables."""
    sizes: int = 0
    """Numbers of ids that each rank is about to receive: a few numbers per rank and step."""
    embeddings: int = 0
    """Pooled embeddings, back to the ranks of the rows."""
    gradients: int = 0
    """Gradients of pooled embeddings."""


@contextmanager
def count_traffic() -> Iterator[Traffic]:
    """Counts what this rank sends inside the `with` block.

    Example::

        with count_traffic() as traffic:
            pipeline.progress(batches)
        traffic.ids  # bytes
    """
    traffic = Traffic()
    patches = [patch.object(dist, name, _counting(getattr(dist, name), sent, traffic)) for name, sent in _SENT.items()]
    for each in patches:
        each.start()
    try:
        yield traffic
    finally:
        for each in patches:
            each.stop()


def _counting(collective: Callable[..., Any], sent: Callable[..., int], traffic: Traffic) -> Callable[..., Any]:
    signature = inspect.signature(collective)

    @functools.wraps(collective)
    def counted(*args: Any, **kwargs: Any) -> Any:
        kind = _kind(sys._getframe(1))
        if kind is not None:
            arguments = signature.bind(*args, **kwargs).arguments
            group = arguments.get("group") or dist.GroupMember.WORLD
            assert group is not None
            number = sent(arguments, group.size(), group.rank())
            setattr(traffic, kind, getattr(traffic, kind) + number)
        return collective(*args, **kwargs)

    return counted


def _kind(frame: Any) -> str | None:
    """What TorchRec sends from this frame, as a field of Traffic; None for collectives of other libraries."""
    module = frame.f_globals["__name__"]
    if module == "torchrec.distributed.dist_data":
        return "sizes" if "SplitsAllToAll" in frame.f_code.co_qualname else "ids"
    if module == "torchrec.distributed.comm_ops":
        # Autograd has a current graph task while it runs backward, and only then.
        return "embeddings" if torch._C._current_graph_task_id() == -1 else "gradients"
    return None


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _all_to_all(arguments: dict[str, Any], ranks: int, rank: int) -> int:
    tensor, splits = arguments["input"], arguments.get("input_split_sizes")
    if not splits:
        return _bytes(tensor) * (ranks - 1) // ranks
    rows = sum(splits)
    return _bytes(tensor) // rows * (rows - splits[rank]) if rows else 0


def _list_of_parts(arguments: dict[str, Any], _: int, rank: int) -> int:
    return sum(_bytes(part) for i, part in enumerate(arguments["input_list"]) if i != rank)


def _whole_to_each(arguments: dict[str, Any], ranks: int, _: int) -> int:
    return _bytes(arguments["tensor"] if "tensor" in arguments else arguments["input_tensor"]) * (ranks - 1)


def _parts(arguments: dict[str, Any], ranks: int, _: int) -> int:
    return _bytes(arguments["input"]) * (ranks - 1) // ranks


_SENT: dict[str, Callable[..., int]] = {
    "all_to_all_single": _all_to_all,
    "reduce_scatter": _list_of_parts,
    "reduce_scatter_tensor": _parts,
    "all_gather": _whole_to_each,
    "all_gather_into_tensor": _whole_to_each,
}
"""Bytes to other ranks by collective, from its arguments, the size of its group and this rank's place in it."""
