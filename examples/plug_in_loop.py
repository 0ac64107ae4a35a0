"""Only the loop: another model, its batches and optimizers; STEM's steps, log, evaluation and exact metrics.

Labels are (B,) for one task or (B, T), of any type, with NaN where one is missing. All ranks need the same number of
batches.

python examples/plug_in_loop.py
torchrun --nproc-per-node 2 examples/plug_in_loop.py
"""

import torch
from torch.distributed.optim import _apply_optimizer_in_backward as apply_optimizer_in_backward
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig
from torchrec.datasets.random import RandomRecDataset
from torchrec.distributed import DistributedModelParallel, TrainPipelineSparseDist
from torchrec.models.dlrm import DLRM
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizerWrapper
from torchrec.optim.optimizers import in_backward_optimizer_filter

from stem_torchrec import MultiTaskTrain, fit, join_process_group
from stem_torchrec.training.evaluation import evaluate, exposures_of

with join_process_group() as process:
    names = ["uid", "tags"]
    tables = [EmbeddingBagConfig(name=f"t_{f}", num_embeddings=100, embedding_dim=16, feature_names=[f]) for f in names]
    dlrm = DLRM(EmbeddingBagCollection(tables=tables), 4, [32, 16], [16, 1])
    apply_optimizer_in_backward(torch.optim.Adagrad, dlrm.sparse_arch.parameters(), {"lr": 0.1})
    model = DistributedModelParallel(MultiTaskTrain(dlrm), device=process.device)
    dense = KeyedOptimizerWrapper(dict(in_backward_optimizer_filter(model.named_parameters())), torch.optim.Adam)
    pipeline = TrainPipelineSparseDist(model, CombinedOptimizer([model.fused_optimizer, dense]), process.device)

    batches = RandomRecDataset(names, 64, hash_size=100, ids_per_feature=2, num_dense=4, num_batches=10)
    fit(pipeline, lambda epoch: batches, tasks=["click"], steps=200, steps_per_epoch=10, log_every=100)
    metrics = evaluate(pipeline, model, exposures_of(batches), tasks=["click"], device=process.device)
    print(metrics["click"].rows == 640 * process.world_size)  # True
    print(metrics["click"].auc > 0.9)  # True: the labels are random, and learned by heart
