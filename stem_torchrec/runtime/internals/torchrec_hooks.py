"""What a sharded collection and a train pipeline of TorchRec let a subclass replace, checked with both stacks."""

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from fbgemm_gpu.split_table_batched_embeddings_ops_training import SplitTableBatchedEmbeddingBagsCodegen
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torchrec.distributed.embeddingbag import ShardedEmbeddingBagCollection
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist
from torchrec.distributed.types import ShardingEnv
from torchrec.modules.embedding_configs import EmbeddingBagConfig


class BackwardPipeline(TrainPipelineSparseDist):
    """A TrainPipelineSparseDist whose backward pass a subclass may replace, by overriding `backward_pass`."""

    def _backward(self, losses: Tensor) -> None:
        self.backward_pass(losses)

    def backward_pass(self, losses: Tensor) -> None:
        """Backward of a batch's loss, or of the sum of its losses; the optimizers step after it in any case."""
        super()._backward(losses)


class InputDistCollection(ShardedEmbeddingBagCollection):
    """A sharded collection whose input distribution a subclass may replace, by overriding `sending_shardings`."""

    _embedding_shardings: list[Any]

    @property
    def env(self) -> ShardingEnv:
        """The ranks that the collection is sharded over."""
        return self._env

    @property
    def input_device(self) -> torch.device | None:
        """The device that ids arrive on."""
        return self._device

    def sending_shardings(self, shardings: list[Any]) -> list[Any]:
        """What stands in for the collection's shardings while TorchRec creates the input distribution.

        Called at the first batch. TorchRec calls `feature_names()` and `create_input_dist()` of each one, for the
        features to send, destination by destination, and for the module that sends them.

        Args:
            shardings: one for each sharding type and kernel among the tables.
        """
        return shardings

    def _create_input_dist(self, input_feature_names: list[str]) -> None:
        stock = self._embedding_shardings
        self._embedding_shardings = self.sending_shardings(stock)
        try:
            super()._create_input_dist(input_feature_names)
        finally:
            self._embedding_shardings = stock


def forget_cached_rows(collection: ShardedEmbeddingBagCollection) -> None:
    """Empties the caches on the GPU of tables in UVM: they would hide what is written into the tables directly.

    Rows that have been trained since the last `state_dict()`, which writes them back, are lost.
    """
    for lookup in _lookups(collection):
        lookup.purge()


def configs_of(collection: ShardedEmbeddingBagCollection) -> list[EmbeddingBagConfig]:
    """The tables of a sharded collection, as it was built."""
    return collection._embedding_bag_configs


APART = "_batch_key"
"""An argument of a table's fused optimizer: one FBGEMM module looks up only tables for which it is the same."""


def lookups_of(collection: ShardedEmbeddingBagCollection) -> Iterator[tuple[list[str], nn.Module]]:
    """The FBGEMM modules of a sharded collection on this rank, each with the names of its tables.

    A module returns pooled embeddings (B, W), as wide as its tables together.
    """
    for lookup in _lookups(collection):
        for module in lookup._emb_modules:
            yield [table.name for table in module.config.embedding_tables], module


def count_steps_from(collection: ShardedEmbeddingBagCollection, steps: int) -> None:
    """Lets the FBGEMM modules of a collection on this rank count their lookups from `steps` on.

    Adam, LAMB and their like correct the bias of moments by this count, `iter_cpu`. FBGEMM's `set_optimizer_step` sets
    `iter` instead, which `iter_cpu` takes over at a lookup only while it is 0; and each lookup counts, also one of an
    evaluation.
    """
    for _, module in lookups_of(collection):
        kernel = module.emb_module
        if isinstance(kernel, SplitTableBatchedEmbeddingBagsCodegen):
            kernel.iter_cpu.fill_(steps)


def _lookups(collection: ShardedEmbeddingBagCollection) -> Iterator[Any]:
    for lookup in collection._lookups:
        while isinstance(lookup, DistributedDataParallel):
            lookup = lookup.module
        yield lookup


def group_of(sharding: Any) -> dist.ProcessGroup:
    """The process group that a sharding sends ids in."""
    return sharding._pg


def ranks_per_host(sharding: Any) -> int:
    """The number of ranks on a host, of a table_row_wise or grid_shard sharding."""
    return sharding._intra_pg.size()


def rows_of_features(sharding: Any) -> list[int]:
    """The number of rows of each feature's table, in the order of `feature_names()`; of a sharding by rows.

    Example::

        # feature_names()               ["uid", "uid", "tags"]   for the tables like/uid, shared/uid, shared/tags
        # rows_of_features(sharding)    [5000, 5000, 7]
    """
    return sharding._get_feature_hash_sizes()


def features_per_rank(sharding: Any) -> list[int]:
    """The number of features of each rank's tables, of a table_row_wise or grid_shard sharding.

    All ranks of a host have the same tables, each with its own rows of them.
    """
    return sharding._features_per_rank(sharding._grouped_embedding_configs_per_rank)
