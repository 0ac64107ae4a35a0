"""Only the model: STEM under TorchRec's own DistributedModelParallel, pipeline and loss, here those of its DLRM.

python examples/plug_in_model.py
torchrun --nproc-per-node 2 examples/plug_in_model.py
"""

import torch
from torch.distributed.optim import _apply_optimizer_in_backward as apply_optimizer_in_backward
from torchrec import EmbeddingBagCollection
from torchrec.datasets.random import RandomRecDataset
from torchrec.distributed import DistributedModelParallel, TrainPipelineSparseDist
from torchrec.distributed.planner import EmbeddingShardingPlanner, Topology
from torchrec.models.dlrm import DLRMTrain
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizerWrapper
from torchrec.optim.optimizers import in_backward_optimizer_filter

from stem_torchrec import STEM, SparseFeature, embedding_bag_configs, join_process_group
from stem_torchrec.sharding.placement import Placement
from stem_torchrec.sharding.planner import planner_constraints
from stem_torchrec.sharding.shard import AllTypesSharder

with join_process_group() as process:
    tasks = ["finish", "like"]
    tables = embedding_bag_configs([SparseFeature("uid", 1000), SparseFeature("tags", 50)], [*tasks, "shared"])
    collection = EmbeddingBagCollection(tables=tables, device=torch.device("meta"))
    stem = STEM(collection, tasks, dense_in_features=4)
    # Any optimizer of TorchRec's; tasks stay apart to the bit with those that leave rows with a zero gradient alone.
    apply_optimizer_in_backward(torch.optim.Adagrad, collection.parameters(), {"lr": 0.02})

    # Offers all types on any device; on CPU, TorchRec's own EmbeddingBagCollectionSharder offers none that cuts rows.
    train, sharders = DLRMTrain(stem), [AllTypesSharder()]
    topology = Topology(world_size=process.world_size, compute_device=process.device.type)
    # Without these the planner may choose data_parallel, which takes a table out of the optimizer in the backward pass.
    placements = {"shared/uid": Placement("row_wise")}
    constraints = planner_constraints(tables, topology=topology, placements=placements)
    plan = EmbeddingShardingPlanner(topology=topology, constraints=constraints).collective_plan(train, sharders)
    model = DistributedModelParallel(train, device=process.device, plan=plan, sharders=sharders)
    dense = KeyedOptimizerWrapper(dict(in_backward_optimizer_filter(model.named_parameters())), torch.optim.Adam)
    pipeline = TrainPipelineSparseDist(model, CombinedOptimizer([model.fused_optimizer, dense]), process.device)

    batches = list(RandomRecDataset(["uid", "tags"], 64, hash_size=50, ids_per_feature=2, num_dense=4, num_batches=3))
    for batch in batches:
        batch.labels = torch.stack([batch.labels, 1 - batch.labels], dim=1)
    iterator = iter(batches)
    losses, logits, labels = [pipeline.progress(iterator) for _ in batches][-1]
    print(tuple(logits.shape))  # (64, 2): rows and tasks
    [planned] = [tables for tables in plan.plan.values() if "shared/uid" in tables]
    print(planned["shared/uid"].sharding_type)  # row_wise
