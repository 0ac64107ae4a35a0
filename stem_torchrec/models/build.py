"""From a configuration and the columns of a log to a model with its loss: the one place where models meet config."""

import torch
from torchrec.modules.embedding_modules import EmbeddingBagCollection

from stem_torchrec.config import ModelConfig
from stem_torchrec.data.files import Columns
from stem_torchrec.data.schema import SparseFeature
from stem_torchrec.errors import UserError
from stem_torchrec.models.stem import STEM
from stem_torchrec.models.train import MultiTaskTrain
from stem_torchrec.tables import embedding_bag_configs, groups_of


def build_model(config: ModelConfig, columns: Columns, *, table_device: str = "meta") -> MultiTaskTrain:
    """STEM-Net with its loss; the tables stay on the meta device, without memory, until they are sharded.

    Raises UserError for task weights that do not fit the tasks.
    """
    weights = config.task_weights
    if weights and (len(weights) != len(columns.labels) or min(weights) <= 0):
        raise UserError(
            f"--model.task-weights is {' '.join(map(str, weights))}, but needs one number above 0 for each of "
            f"{', '.join(columns.labels)}."
        )
    tables = embedding_bag_configs(
        [SparseFeature(name, num_embeddings) for name, num_embeddings in columns.sparse.items()],
        groups_of(columns.labels),
        embedding_dim=config.embedding_dim,
        std=config.embedding_std,
        layout=config.layout,
    )
    model = STEM(
        EmbeddingBagCollection(tables=tables, device=torch.device(table_device)),
        columns.labels,
        dense_in_features=len(columns.dense),
        dense_out_features=config.embedding_dim,
        num_layers=config.num_layers,
        num_shared_experts=config.num_shared_experts,
        num_task_experts=config.num_task_experts,
        expert_hidden=config.expert_hidden,
        gate_hidden=config.gate_hidden,
        tower_hidden=config.tower_hidden,
        reads=config.reads,
        trains=config.trains,
        dropout=config.dropout,
        embedding_dropout=config.embedding_dropout,
    )
    return MultiTaskTrain(model, weights)
