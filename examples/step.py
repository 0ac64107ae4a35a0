"""Trains a run step by step, looks into a table and changes it, evaluates, saves, and trains the rest.

python examples/step.py
torchrun --nproc-per-node 2 examples/step.py
"""

from dataclasses import replace

import torch

from stem_torchrec import Trainer, join_process_group
from stem_torchrec.tables import local_shards, sharded_collections
from stem_torchrec.training.recipes import RECIPES

with join_process_group() as process:
    config = replace(RECIPES["tiny"](), output_dir="runs/step")
    trainer = Trainer(config, process)
    while trainer.state.step < 10:
        output = trainer.train_step()
    print(f"step {trainer.state.step}: losses {output.losses.tolist()} of {len(output.logits)} rows")

    # This rank's parts of the tables; user 7 may be on another rank.
    for _, collection in sharded_collections(trainer.model):
        for shard in local_shards(collection):
            if shard.table == "like/user_id" and shard.row <= 7 < shard.row + len(shard.weight):
                row = shard.weight[7 - shard.row]
                print(f"like/user_id, row 7, columns from {shard.column}: {row.tolist()}")
                with torch.no_grad():
                    row.zero_()

    metrics = trainer.evaluate()
    print(f"AUC of like after ten steps and the change: {metrics['like'].auc:.4f}")
    trainer.save()
    best = trainer.run()
    print(f"AUC of like at its best: {best['like'].auc:.4f}")
