"""Another model's plan and weights: a STEM that is sharded as that model's table is, and starts from it.

`warm_start` also takes the folder of a checkpoint, of which each rank reads its own shards, whatever the plan and the
ranks were. Rows and columns must be the same.

python examples/plug_in_plan.py
torchrun --nproc-per-node 2 examples/plug_in_plan.py
"""

import torch
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig
from torchrec.distributed import DistributedModelParallel
from torchrec.models.dlrm import DLRM

from stem_torchrec import (
    STEM,
    SparseFeature,
    embedding_bag_configs,
    join_process_group,
    plan_sharding,
    shard,
    warm_start,
)
from stem_torchrec.sharding.topology import topology_here
from stem_torchrec.transfer.warm_start import placements_like

with join_process_group() as process:
    dlrm_tables = [EmbeddingBagConfig(name="t_uid", num_embeddings=1000, embedding_dim=16, feature_names=["uid"])]
    dlrm = DLRM(EmbeddingBagCollection(tables=dlrm_tables, device=torch.device("meta")), 4, [32, 16], [16, 1])
    dlrm = DistributedModelParallel(dlrm, device=process.device)  # And trained, for some weeks.

    features, tasks = [SparseFeature("uid", 1000), SparseFeature("tags", 50)], ["finish", "like"]
    tables = embedding_bag_configs(features, [*tasks, "shared"])
    stem = STEM(EmbeddingBagCollection(tables=tables, device=torch.device("meta")), tasks)
    starts_from = {"shared/uid": "t_uid", "like/uid": "t_uid"}
    placements = placements_like(dlrm.plan, starts_from)
    plan = plan_sharding(stem, topology=topology_here(process), batch_size=64, placements=placements)
    model = shard(stem, plan.sharding_plan, device=process.device, seed=0)
    warm_start(model, dlrm.state_dict(), starts_from)

    name = "sparse_arch.embedding_bag_collection.embedding_bags"
    before = dlrm.state_dict()[f"{name}.t_uid.weight"].local_shards()
    after = model.state_dict()[f"{name}.shared/uid.weight"].local_shards()
    print(all(torch.equal(a.tensor, b.tensor) for a, b in zip(after, before, strict=True)))  # True
