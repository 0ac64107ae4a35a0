"""A TorchRec model that is not ours: TorchRec's DLRM on tables of its own, under its own sharder, plan and loss."""

from collections.abc import Iterable, Sequence
from copy import deepcopy
from dataclasses import replace

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.optim import _apply_optimizer_in_backward
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig
from torchrec.datasets.utils import Batch
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.sharding_plan import (
    column_wise,
    construct_module_sharding_plan,
    data_parallel,
    row_wise,
    table_wise,
)
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist
from torchrec.distributed.types import ShardingPlan
from torchrec.models.dlrm import DLRM, DLRMTrain
from torchrec.modules.embedding_modules import get_embedding_names_by_table
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizerWrapper
from torchrec.optim.optimizers import in_backward_optimizer_filter

from reference import COLUMNS, random_batch

TYPES = ["table_wise", "row_wise", "column_wise", "data_parallel"]
EMBEDDINGS = "model.sparse_arch.embedding_bag_collection"


def build_dlrm(
    *, loss: type[nn.Module] = DLRMTrain, seed: int = 0, tables: Sequence[EmbeddingBagConfig] = ()
) -> nn.Module:
    """DLRM on a table `t_FEATURE` for each feature and on `tables`, with its loss; SGD on them in the backward pass."""
    torch.manual_seed(seed)
    tables = [
        EmbeddingBagConfig(
            name=f"t_{name}", num_embeddings=feature.num_embeddings, embedding_dim=8, feature_names=[name]
        )
        for name, feature in COLUMNS.sparse.items()
    ] + list(tables)
    dlrm = DLRM(EmbeddingBagCollection(tables=tables), len(COLUMNS.dense), [16, 8], [16, 1])
    # DLRM asks for outputs by feature, which TorchRec calls FEATURE@TABLE once several tables read it.
    dlrm.sparse_arch._sparse_feature_names = [name for names in get_embedding_names_by_table(tables) for name in names]
    _apply_optimizer_in_backward(torch.optim.SGD, dlrm.sparse_arch.parameters(), {"lr": 0.1})
    return loss(dlrm)


def their_plan(model: nn.Module, kind: str) -> ShardingPlan:
    """A plan by hand for the ranks of this host."""
    world_size = dist.get_world_size()
    fused = {"compute_kernel": "fused"}
    how = {
        "table_wise": table_wise(rank=world_size - 1, **fused),
        "row_wise": row_wise(**fused),
        "column_wise": column_wise(ranks=[*range(world_size)][::-1], **fused),
        "data_parallel": data_parallel(),
    }[kind]
    collection = model.get_submodule(EMBEDDINGS)
    names = [config.name for config in collection.embedding_bag_configs()]
    return ShardingPlan(
        {
            EMBEDDINGS: construct_module_sharding_plan(
                collection,
                dict.fromkeys(names, how),
                local_size=world_size,
                world_size=world_size,
                device_type="cpu",
            )
        }
    )


def shard_dlrm(
    model: nn.Module,
    plan: ShardingPlan | None = None,
    *,
    sharder: EmbeddingBagCollectionSharder | None = None,
) -> tuple[DistributedModelParallel, TrainPipelineSparseDist]:
    """The model under DistributedModelParallel, table_wise without a plan, and a pipeline that trains it."""
    device = torch.device("cpu")
    weights = deepcopy(model.state_dict())
    sharders = [sharder or EmbeddingBagCollectionSharder()]
    plan = plan or their_plan(model, "table_wise")
    sharded = DistributedModelParallel(model, device=device, plan=plan, sharders=sharders)
    sharded.load_state_dict(weights)  # Sharding draws tables anew.
    dense = dict(in_backward_optimizer_filter(sharded.named_parameters()))
    outside = KeyedOptimizerWrapper(dense, lambda parameters: torch.optim.SGD(parameters, lr=0.1))
    return sharded, TrainPipelineSparseDist(sharded, CombinedOptimizer([sharded.fused_optimizer, outside]), device)


def their_batches(seeds: Iterable[int], rows: int = 12) -> list[Batch]:
    """Batches as TorchRec's own datasets make them: whole labels (B,), integers."""
    batches = [random_batch(seed, rows=rows, missing=0.0) for seed in seeds]
    return [replace(batch, labels=batch.labels[:, 0].long()) for batch in batches]
