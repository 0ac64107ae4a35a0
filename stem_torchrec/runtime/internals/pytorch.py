"""Private parts of torch, checked with both stacks."""

from typing import Any

import torch
import torch.distributed as dist
from torch.distributed._shard.sharded_tensor import Shard, ShardedTensor
from torch.distributed._shard.sharding_spec import EnumerableShardingSpec, ShardMetadata
from torch.distributed._state_dict_utils import _copy_state_dict, _create_cpu_state_dict
from torch.distributed.distributed_c10d import _get_default_store
from torch.distributed.optim import _apply_optimizer_in_backward as apply_optimizer_in_backward

__all__ = [
    "TRACER_LOGGER",
    "EnumerableShardingSpec",
    "Shard",
    "ShardMetadata",
    "ShardedTensor",
    "apply_optimizer_in_backward",
    "clone_default_store",
    "copy_state_dict",
    "empty_like_sharded",
    "empty_state_dict_on_host",
]

TRACER_LOGGER = "torch.fx._symbolic_trace"
"""The logger that warns when a traced model is traced once more."""


def clone_default_store() -> dist.Store:
    """The store of the default process group, over a connection of its own, which another thread may use."""
    store: Any = _get_default_store()  # torch's type stubs lack `clone`.
    return store.clone()


def empty_like_sharded(tensor: ShardedTensor) -> ShardedTensor:
    """A sharded tensor of the same shape and shards, each shard with a storage of its own and undefined values.

    Example::

        # rank 0: rows 0 to 2 of (4, 8)      rank 1: rows 2 to 4
        # both:   size (4, 8), local_shards()[0].tensor of (2, 8)
    """
    shards = [Shard(torch.empty_like(shard.tensor), shard.metadata) for shard in tensor.local_shards()]
    return ShardedTensor._init_from_local_shards_and_global_metadata(
        shards, tensor.metadata(), process_group=tensor._process_group, sharding_spec=tensor.sharding_spec()
    )


def empty_state_dict_on_host(state: dict[str, Any], *, pin_memory: bool) -> dict[str, Any]:
    """Tensors on the CPU of the shapes and the sharding of those in `state`, with undefined values.

    The storage of each tensor is as large as the one that it is a part of.
    """
    return _create_cpu_state_dict(state, pin_memory=pin_memory)


def copy_state_dict(source: dict[str, Any], target: dict[str, Any]) -> None:
    """Copies the values of `source` into the tensors of `target`, shard by shard.

    Tensors that do not fit are not refused: both must have been made for the same state.
    """
    _copy_state_dict(source, target, type_check=False)
