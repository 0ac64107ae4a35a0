"""STEM where labels are missing: the mean over the labels of all ranks, and tasks that stay apart to the bit.

python examples/plug_in_labels.py
torchrun --nproc-per-node 2 examples/plug_in_labels.py
"""

import torch
from torch.distributed.optim import _apply_optimizer_in_backward as apply_optimizer_in_backward
from torchrec import EmbeddingBagCollection
from torchrec.datasets.random import RandomRecDataset
from torchrec.distributed import TrainPipelineSparseDist
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizerWrapper
from torchrec.optim.optimizers import in_backward_optimizer_filter

from stem_torchrec import (
    STEM,
    MultiTaskTrain,
    SparseFeature,
    embedding_bag_configs,
    join_process_group,
    plan_sharding,
    shard,
)
from stem_torchrec.data.label_counts import LabelCounter
from stem_torchrec.models.trained_by import tasks_of_parameters
from stem_torchrec.sharding.topology import topology_here
from stem_torchrec.training.dense_optimizer import leave_out_unlabeled

with join_process_group() as process:
    tasks = ["finish", "like"]
    tables = embedding_bag_configs([SparseFeature("uid", 1000), SparseFeature("tags", 50)], [*tasks, "shared"])
    collection = EmbeddingBagCollection(tables=tables, device=torch.device("meta"))
    train = MultiTaskTrain(STEM(collection, tasks, dense_in_features=4))
    train.trained_by = tasks_of_parameters(train, tasks=2, dense_in_features=4)
    apply_optimizer_in_backward(torch.optim.Adagrad, collection.parameters(), {"lr": 0.02})
    plan = plan_sharding(train, topology=topology_here(process), batch_size=64)
    model = shard(train, plan.sharding_plan, device=process.device, seed=0)
    dense = KeyedOptimizerWrapper(dict(in_backward_optimizer_filter(model.named_parameters())), torch.optim.Adam)
    optimizer = CombinedOptimizer([model.fused_optimizer, dense])
    pipeline = TrainPipelineSparseDist(model, optimizer, process.device)
    leave_out_unlabeled(optimizer, pipeline, model)

    batches = list(RandomRecDataset(["uid", "tags"], 64, hash_size=50, ids_per_feature=2, num_dense=4, num_batches=3))
    for i, batch in enumerate(batches):
        # Only rank 0 has labels of like, and only in the first batch.
        likes = torch.full((64,), 0.0 if i == 0 and process.is_first else torch.nan)
        batch.labels = torch.stack([batch.labels, likes], dim=1)
    iterator = LabelCounter().counted(batches)
    towers, moved = train.model.towers, []
    for _ in batches:
        before = {task: towers[task][0].weight.clone() for task in tasks}
        pipeline.progress(iterator)
        moved.append([task for task in tasks if not torch.equal(towers[task][0].weight, before[task])])
    print(moved)  # [['finish', 'like'], ['finish'], ['finish']]
