"""From a configuration and the columns of a log to a model with its loss: the one place where models meet config."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torchrec.modules.embedding_modules import EmbeddingBagCollection

from stem_torchrec.config import Arch, ModelConfig
from stem_torchrec.data.files import Columns
from stem_torchrec.data.schema import SparseFeature
from stem_torchrec.models.frame import MultiTaskModel
from stem_torchrec.models.loss import MultiTaskTrain
from stem_torchrec.models.moe import MEMMoE, MMoE, OMoE
from stem_torchrec.models.ple import MEPLE, PLE
from stem_torchrec.models.sequential import AITM, ESMM
from stem_torchrec.models.shared_bottom import SharedBottom, SingleTask
from stem_torchrec.models.stem import STEM
from stem_torchrec.runtime.errors import UserError
from stem_torchrec.tables import SHARED, embedding_bag_configs, groups_of


@dataclass(frozen=True)
class _Entry:
    """A model, the groups that have tables, and which options of the configuration it takes."""

    model: Callable[..., MultiTaskModel]
    groups: Callable[[Sequence[str]], Sequence[str]]
    options: Callable[[ModelConfig, int], Mapping[str, Any]]
    """From the configuration and the number of tasks."""


def _shared(tasks: Sequence[str]) -> Sequence[str]:
    return (SHARED,)


def _bottoms(config: ModelConfig, tasks: int) -> Mapping[str, Any]:
    return {"bottom_hidden": config.expert_hidden}


def _pool(config: ModelConfig, tasks: int) -> Mapping[str, Any]:
    number = config.num_shared_experts + tasks * config.num_task_experts
    return {"num_experts": number, "expert_hidden": config.expert_hidden, "gate_hidden": config.gate_hidden}


def _experts(config: ModelConfig, tasks: int) -> Mapping[str, Any]:
    names = ("num_shared_experts", "num_task_experts", "expert_hidden", "gate_hidden")
    return {name: getattr(config, name) for name in names}


def _layers(config: ModelConfig, tasks: int) -> Mapping[str, Any]:
    return {"num_layers": config.num_layers, **_experts(config, tasks)}


def _stem(config: ModelConfig, tasks: int) -> Mapping[str, Any]:
    switches = {name: getattr(config, name) for name in ("reads", "trains", "gate_input")}
    return {**_layers(config, tasks), **switches}


_MODELS: Mapping[Arch, _Entry] = {
    "stem": _Entry(STEM, groups_of, _stem),
    "single_task": _Entry(SingleTask, tuple, _bottoms),
    "shared_bottom": _Entry(SharedBottom, _shared, _bottoms),
    "omoe": _Entry(OMoE, _shared, _pool),
    "mmoe": _Entry(MMoE, _shared, _pool),
    "ple": _Entry(PLE, _shared, _layers),
    "aitm": _Entry(AITM, _shared, _bottoms),
    "esmm": _Entry(ESMM, _shared, _bottoms),
    "me_mmoe": _Entry(MEMMoE, groups_of, _experts),
    "me_ple": _Entry(MEPLE, groups_of, _layers),
}


def build_model(config: ModelConfig, columns: Columns, *, table_device: str = "meta") -> MultiTaskTrain:
    """The model that `config.arch` names, with its loss; the tables stay on the meta device until they are sharded.

    Raises UserError for task weights that do not fit the tasks, a size below 1, or too few tasks for the model.
    """
    tasks = columns.labels
    check_task_weights(config.task_weights, tasks)
    groups_of(tasks)  # Refuses labels that cannot name a group, whichever groups the model has.
    entry = _MODELS[config.arch]
    tables = embedding_bag_configs(
        [SparseFeature(name, num_embeddings) for name, num_embeddings in columns.sparse.items()],
        entry.groups(tasks),
        embedding_dim=config.embedding_dim,
        std=config.embedding_std,
        layout=config.layout,
    )
    model = entry.model(
        EmbeddingBagCollection(tables=tables, device=torch.device(table_device)),
        tasks,
        tower_hidden=config.tower_hidden,
        dropout=config.dropout,
        dense_in_features=len(columns.dense),
        dense_out_features=config.embedding_dim,
        embedding_dropout=config.embedding_dropout,
        embedding_l2=config.embedding_l2,
        **entry.options(config, len(tasks)),
    )
    return MultiTaskTrain(model, config.task_weights)


def check_task_weights(weights: Sequence[float], tasks: Sequence[str]) -> None:
    """Raises UserError for weights that are not one above 0 for each task; none at all is all 1."""
    if weights and (len(weights) != len(tasks) or min(weights) <= 0):
        raise UserError(
            f"--model.task-weights is {' '.join(map(str, weights))}, but needs one number above 0 for each of "
            f"{', '.join(tasks)}."
        )


def groups_with_tables(arch: Arch, tasks: Sequence[str]) -> Sequence[str]:
    """The groups that have tables in a model."""
    return _MODELS[arch].groups(tasks)
