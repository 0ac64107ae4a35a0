"""Only the tables: those of STEM in one collection with another model's, under TorchRec's planner.

Each feature's ids travel once, although four tables read "uid". `SparseArch(collection, ["finish", "like", "shared"])`
reads STEM's tables from such a collection by group.

python examples/plug_in_tables.py
torchrun --nproc-per-node 2 examples/plug_in_tables.py
"""

import torch
from torch.distributed.optim import _apply_optimizer_in_backward as apply_optimizer_in_backward
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig
from torchrec.datasets.random import RandomRecDataset
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.planner import EmbeddingShardingPlanner, Topology
from torchrec.models.dlrm import DLRM, DLRMTrain
from torchrec.modules.embedding_modules import get_embedding_names_by_table

from stem_torchrec import OnceSharder, SparseFeature, embedding_bag_configs, join_process_group
from stem_torchrec.sharding.planner import planner_constraints

with join_process_group() as process:
    dlrm_tables = [EmbeddingBagConfig(name="t_uid", num_embeddings=1000, embedding_dim=16, feature_names=["uid"])]
    features, groups = [SparseFeature("uid", 1000), SparseFeature("tags", 50)], ["finish", "like", "shared"]
    stem_tables = embedding_bag_configs(features, groups)
    tables = [*dlrm_tables, *stem_tables]
    dlrm = DLRM(EmbeddingBagCollection(tables=tables, device=torch.device("meta")), 4, [32, 16], [16, 1])
    # DLRM asks for "uid", which TorchRec calls "uid@t_uid" and so on once several tables read it.
    dlrm.sparse_arch._sparse_feature_names = [name for names in get_embedding_names_by_table(tables) for name in names]
    apply_optimizer_in_backward(torch.optim.Adagrad, dlrm.sparse_arch.parameters(), {"lr": 0.1})

    train, sharders = DLRMTrain(dlrm), [OnceSharder()]
    topology = Topology(world_size=process.world_size, compute_device=process.device.type)
    constraints = planner_constraints(stem_tables, topology=topology)
    plan = EmbeddingShardingPlanner(topology=topology, constraints=constraints).collective_plan(train, sharders)
    model = DistributedModelParallel(train, device=process.device, plan=plan, sharders=sharders)

    [batch] = RandomRecDataset(["uid", "tags"], 64, hash_size=50, ids_per_feature=2, num_dense=4, num_batches=1)
    loss, (_, logits, labels) = model(batch.to(process.device))
    loss.backward()  # Trains all seven tables.
    print(tuple(logits.shape))  # (64,)
    planned = model.plan.plan["model.sparse_arch.embedding_bag_collection"]
    print(len(planned), "shared/uid" in planned)  # 7 True
