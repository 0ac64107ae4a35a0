"""Sends each feature's ids to a rank once, however many of the rank's tables read them.

TorchRec's input distribution has a slot for every table that reads a feature, and sends the feature's ids in each. This
one has one slot per feature and destination; the receiver copies the ids into the slots that the lookup expects:

    tables on the rank     like/uid   finish/uid   shared/uid   like/tags   shared/tags
    stock sends            uid        uid          uid          tags        tags
    once sends             uid                                  tags
    the lookup gets        uid        uid          uid          tags        tags

The exchange itself stays TorchRec's KJTAllToAll, so TrainPipelineSparseDist fuses and overlaps it as before, and the
lookup gets the same bits. Weights travel with their ids.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain, pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torchrec.distributed.embedding_types import KJTList
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionContext, ShardedEmbeddingBagCollection
from torchrec.distributed.sharding.cw_sharding import CwPooledEmbeddingSharding
from torchrec.distributed.sharding.grid_sharding import GridPooledEmbeddingSharding
from torchrec.distributed.sharding.rw_sharding import RwPooledEmbeddingSharding, RwSparseFeaturesDist
from torchrec.distributed.sharding.tw_sharding import TwPooledEmbeddingSharding, TwSparseFeaturesDist
from torchrec.distributed.sharding.twrw_sharding import TwRwPooledEmbeddingSharding, TwRwSparseFeaturesDist
from torchrec.distributed.types import ParameterSharding, ShardingEnv
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from stem_torchrec.runtime.internals.torchrec_hooks import (
    InputDistCollection,
    features_per_rank,
    group_of,
    ranks_per_host,
    rows_of_features,
)
from stem_torchrec.sharding.shard import AllTypesSharder
from stem_torchrec.tables import ROW_TYPES, check_means, mean_tables


class OnceSharder(AllTypesSharder):
    """Shards EmbeddingBagCollections so that each rank gets each feature's ids once; can replace any sharder."""

    def shard(
        self,
        module: EmbeddingBagCollection,
        params: dict[str, ParameterSharding],
        env: ShardingEnv,
        device: torch.device | None = None,
        module_fqn: str | None = None,
    ) -> ShardedEmbeddingBagCollection:
        """The sharded collection, which is TorchRec's own if it has tables that `falls_back` lists.

        Raises UserError for tables whose mean TorchRec gets wrong.
        """
        types = {table: sharding.sharding_type for table, sharding in params.items()}
        if falls_back(module.embedding_bag_configs(), types):
            return super().shard(module, params, env, device, module_fqn)
        check_means(module, types)
        return OnceCollection(
            module=module,
            table_name_to_parameter_sharding=params,
            env=env,
            fused_params=self.fused_params,
            device=device,
            qcomm_codecs_registry=self.qcomm_codecs_registry,
            module_fqn=module_fqn,
        )

    @property
    def sharded_module_type(self) -> type[ShardedEmbeddingBagCollection]:
        """The class that DistributedModelParallel and the train pipelines look for."""
        return ShardedEmbeddingBagCollection


def falls_back(configs: Sequence[EmbeddingBagConfig], sharding_types: Mapping[str, str]) -> list[str]:
    """The tables for which their collection must stay stock: TorchRec divides their sums by the ids of each slot.

    SparseArch leaves no table to the mean of TorchRec; the collections of other models may.
    """
    return [table for table in mean_tables(configs) if sharding_types.get(table) in ROW_TYPES]


class OnceCollection(InputDistCollection):
    """A ShardedEmbeddingBagCollection whose input distribution sends each feature's ids once to a rank."""

    def sending_shardings(self, shardings: list[Any]) -> list[Any]:
        """Those that send each feature once per destination; data_parallel ones stay as they are."""
        once = [_once_per_rank(sharding, self.env, self.input_device) for sharding in shardings]
        self._copies = [
            None if o is None else (o.copies, torch.tensor(o.copies, device=self.input_device, dtype=torch.int32))
            for o in once
        ]
        return [o or s for o, s in zip(once, shardings, strict=True)]

    def input_dist(self, ctx: EmbeddingBagCollectionContext, features: KeyedJaggedTensor) -> Any:
        """Sends the ids to the ranks of their tables.

        Raises ValueError for a batch whose features differ in batch size, which needs the stock sharder.
        """
        if features.variable_stride_per_key():
            raise ValueError("features of different batch sizes cannot be sent once; use --sharding.input-dist stock.")
        return super().input_dist(ctx, features)

    def compute(self, ctx: EmbeddingBagCollectionContext, dist_input: KJTList) -> list[Tensor]:
        """Looks the ids up in this rank's tables."""
        return super().compute(ctx, self._to_slots(dist_input))

    def compute_and_output_dist(self, ctx: EmbeddingBagCollectionContext, input: KJTList) -> Any:
        """Looks the ids up in this rank's tables and sends the embeddings back."""
        return super().compute_and_output_dist(ctx, self._to_slots(input))

    def prefetch(self, dist_input: KJTList, forward_stream: Any = None, ctx: Any = None) -> None:
        """Brings the rows of the next batch into the cache of tables in host memory."""
        super().prefetch(self._to_slots(dist_input), forward_stream, ctx)

    def _to_slots(self, received: KJTList) -> KJTList:
        return KJTList([_copy(features, copies) for features, copies in zip(received, self._copies, strict=True)])


def _copy(features: KeyedJaggedTensor, copies: tuple[list[int], Tensor] | None) -> KeyedJaggedTensor:
    # A rank without tables gets no features, and an empty KeyedJaggedTensor cannot be permuted.
    if copies is None or not copies[0]:
        return features
    return features.permute(*copies)


@dataclass
class _Once:
    """Replaces a sharding while TorchRec creates the input distribution."""

    names: list[str]
    """Features to send, destination by destination."""
    copies: list[int]
    """For each slot of this rank's lookup, its feature among those that arrive."""
    create_input_dist: Callable[[], nn.Module]

    def feature_names(self) -> list[str]:
        """Features to send, under the name of TorchRec's method."""
        return self.names


def _once_per_rank(sharding: Any, env: ShardingEnv, device: torch.device | None) -> _Once | None:
    """The input of a sharding with each feature once per destination; None for data_parallel, which sends none."""
    match sharding:
        case TwPooledEmbeddingSharding() | CwPooledEmbeddingSharding():
            slots = sharding.feature_names_per_rank()
            sent = [list(dict.fromkeys(names)) for names in slots]
            return _Once(
                list(chain(*sent)),
                _positions(slots[env.rank], sent[env.rank]),
                lambda: TwSparseFeaturesDist(group_of(sharding), [len(names) for names in sent]),
            )
        case RwPooledEmbeddingSharding():
            # Every rank gets every feature, cut into as many buckets as there are ranks; the cut depends on the rows.
            rows_slots = list(zip(sharding.feature_names(), rows_of_features(sharding), strict=True))
            rows_sent = list(dict.fromkeys(rows_slots))
            return _Once(
                [name for name, _ in rows_sent],
                _positions(rows_slots, rows_sent),
                lambda: RwSparseFeaturesDist(
                    group_of(sharding), len(rows_sent), [rows for _, rows in rows_sent], device=device
                ),
            )
        case TwRwPooledEmbeddingSharding() | GridPooledEmbeddingSharding():
            # A destination is a host, whose ranks get its features cut into as many buckets.
            local_size = ranks_per_host(sharding)
            flat = list(zip(sharding.feature_names(), rows_of_features(sharding), strict=True))
            sizes = features_per_rank(sharding)[::local_size]
            host_slots = [flat[start:stop] for start, stop in pairwise([0, *accumulate(sizes)])]
            host_sent = [list(dict.fromkeys(slots)) for slots in host_slots]
            host = env.rank // local_size
            return _Once(
                [name for name, _ in chain(*host_sent)],
                _positions(host_slots[host], host_sent[host]),
                lambda: TwRwSparseFeaturesDist(
                    group_of(sharding),
                    local_size,
                    [len(sent) for sent in host_sent for _ in range(local_size)],
                    [rows for _, rows in chain(*host_sent)],
                    device=device,
                ),
            )
    return None


def _positions(slots: Sequence[Hashable], sent: Sequence[Hashable]) -> list[int]:
    position = {slot: i for i, slot in enumerate(sent)}
    return [position[slot] for slot in slots]
