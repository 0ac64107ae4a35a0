"""Times lookups without the rest of a step, and each table of a plan alone."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torchrec.distributed.embeddingbag import ShardedEmbeddingBagCollection
from torchrec.distributed.types import EmbeddingModuleShardingPlan, ShardingEnv
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from stem_torchrec.config import TrainConfig
from stem_torchrec.runtime.process import Process
from stem_torchrec.sharding.plan import Plan
from stem_torchrec.sharding.sharder import make_sharder
from stem_torchrec.tables import table_feature
from stem_torchrec.training.optimizers import apply_sparse_optimizer

from common.timing import timed
from sweep.results import TABLE_BATCHES, TableTime


def time_lookups(
    collections: Sequence[ShardedEmbeddingBagCollection], batches: Sequence[KeyedJaggedTensor], device: torch.device
) -> list[float]:
    """Times for each batch, in ms, what the planner estimates: lookup and exchange of embeddings, both backward too.

    The ids are exchanged before the clock starts. The gradient is a constant; the fused optimizer still updates the
    tables.
    """
    times = []
    for batch in batches:
        contexts = [collection.create_context() for collection in collections]
        inputs = [c.input_dist(context, batch).wait().wait() for c, context in zip(collections, contexts, strict=True)]
        dist.barrier()

        def step(contexts: Any = contexts, inputs: Any = inputs) -> None:
            for collection, context, ids in zip(collections, contexts, inputs, strict=True):
                pooled = collection.compute_and_output_dist(context, ids).wait().values()
                pooled.backward(torch.full_like(pooled, 1e-6))

        times += timed(step, 1, device)[1]
    return times


def time_tables(
    plan: Plan,
    config: TrainConfig,
    batches: Sequence[KeyedJaggedTensor],
    process: Process,
) -> list[TableTime]:
    """Times each table of a plan alone, as `time_lookups` times all of them together.

    Together they take less than the sum of their times, as lookups and collectives of several tables are one operation.

    Args:
        plan: says where each table is.
        config: its optimizer and how its ids and embeddings travel.
        batches: of this rank.
        process: this rank; all ranks call this.
    """
    sharder = make_sharder(input_dist=config.sharding.input_dist, communication=config.sharding.communication)
    environment = ShardingEnv.from_process_group(dist.group.WORLD)
    # Of single tables no group is missing, so a rate of its own cannot name it; rates take no time.
    optimizer = replace(config.sparse, group_learning_rates={})
    result = []
    for planned in plan.tables:
        [sharding] = [of[planned.name] for of in _modules(plan) if planned.name in of]
        table = EmbeddingBagConfig(
            name=planned.name,
            num_embeddings=planned.rows,
            embedding_dim=planned.dim,
            feature_names=[table_feature(planned.name)],
            # Zeros are written faster than random numbers are drawn.
            init_fn=nn.init.zeros_,
        )
        weighted = batches[0].weights_or_none() is not None
        collection = EmbeddingBagCollection(tables=[table], is_weighted=weighted, device=torch.device("meta"))
        apply_sparse_optimizer(collection, optimizer)
        alone = sharder.shard(collection, {planned.name: sharding}, environment, process.device)
        own = time_lookups([alone], batches[: 1 + TABLE_BATCHES], process.device)[-TABLE_BATCHES:]
        ranks: list[Any] = [None] * process.world_size
        dist.all_gather_object(ranks, own)
        result.append(
            TableTime(
                planned.name,
                planned.rows,
                planned.dim,
                planned.sharding_type,
                planned.kernel,
                tuple(planned.ranks),
                max(shard.estimate_ms for shard in planned.shards),
                tuple(np.max(ranks, axis=0).tolist()),
            )
        )
    return result


def _modules(plan: Plan) -> list[EmbeddingModuleShardingPlan]:
    modules = plan.sharding_plan.plan.values()
    return [module for module in modules if isinstance(module, EmbeddingModuleShardingPlan)]
