"""Which tasks train a parameter, asked of the model itself."""

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn
from torchrec.datasets.utils import Batch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from stem_torchrec.tables import TableTensor, reads_weights, split_columns, table_configs, with_one_row

_ROWS = 2


def tasks_of_parameters(train: nn.Module, *, tasks: int, dense_in_features: int) -> dict[str, frozenset[int]]:
    """The tasks whose labels give a parameter a gradient, by its name, if any does; tables are among the parameters.

    Of a packed table, the columns of each group are listed as well, by their name in the split layout.

    A copy of the model makes a backward pass for each task, on a batch with labels of that task alone. Its tables have
    one row, and its weights are positive, so that no ReLU hides a path. Random states stay as they are.

    Args:
        train: the model with its loss, before it is sharded; `train(batch)` returns the loss first.
        tasks: number of tasks, T.
        dense_in_features: number of dense features.

    Example::

        tasks_of_parameters(MultiTaskTrain(stem), tasks=2, dense_in_features=0)
        # {"model.towers.finish.0.weight": {0}, "model.layers.0.experts.shared.0.weight": {0, 1}, ...}
    """
    with torch.random.fork_rng(devices=[]):
        probe = with_one_row(train).float().eval()
        for parameter in probe.parameters():
            # Divided by the width of a layer, so that no value grows from layer to layer and no softmax saturates.
            parameter.data = (torch.rand_like(parameter) + 0.5) / max(parameter.shape[-2:], default=1)
    trained: dict[str, set[int]] = {name: set() for name, _ in probe.named_parameters()}
    for task in range(tasks):
        labels = torch.full((_ROWS, tasks), torch.nan)
        labels[:, task] = 0.0
        probe.zero_grad()
        probe(_batch(train, labels, dense_in_features))[0].backward()
        for name, parameter in probe.named_parameters():
            for part, gradient in _parts(name, parameter.grad):
                if gradient.count_nonzero():
                    trained.setdefault(part, set()).add(task)
    return {name: frozenset(by) for name, by in trained.items() if by}


def _parts(name: str, gradient: Tensor | None) -> Iterator[tuple[str, Tensor]]:
    """A gradient by the name of its parameter, and by those of the groups in a packed table."""
    if gradient is None:
        return
    yield name, gradient
    tensor = TableTensor.parse(name)
    if tensor is None:
        return
    for table, columns in split_columns(tensor.table, gradient.shape[1]).items():
        if table != tensor.table:
            yield replace(tensor, table=table).name, gradient[:, columns.start : columns.stop]


def _batch(train: nn.Module, labels: Tensor, dense_in_features: int) -> Batch:
    keys = list(dict.fromkeys(name for config in table_configs(train) for name in config.feature_names))
    ids = torch.zeros(len(keys) * _ROWS, dtype=torch.int64)
    return Batch(
        dense_features=torch.ones(_ROWS, dense_in_features),
        sparse_features=KeyedJaggedTensor(
            keys,
            ids,
            weights=torch.ones(len(ids)) if reads_weights(train) else None,
            lengths=torch.ones(len(ids), dtype=torch.int32),
        ),
        labels=labels,
    )
