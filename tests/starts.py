"""Runs that others start from: their checkpoints, and how their weights and states are looked at."""

import itertools
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torchrec.datasets.utils import Batch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from stem_torchrec.checkpoints.folder import checkpoint_path
from stem_torchrec.checkpoints.saver import CheckpointSaver
from stem_torchrec.checkpoints.state import training_state
from stem_torchrec.config import TrainConfig
from stem_torchrec.data.columns import Columns
from stem_torchrec.starting.carried import Carried
from stem_torchrec.starting.carry import carry
from stem_torchrec.starting.id_maps import IdMap
from stem_torchrec.starting.source import StartSource
from stem_torchrec.tables import TableTensor, local_pieces, size_of

from reference import COLUMNS, random_batch
from runs import Run, progress_after

STEPS = 4
"""Of the runs that others start from."""


def batches_for(columns: Columns, steps: range = range(STEPS)) -> list[Batch]:
    """This rank's batches; all ranks have the same rows."""
    return [random_batch(step, columns, missing=0.0) for step in steps]


def save_run(folder: Path, config: TrainConfig, columns: Columns = COLUMNS) -> tuple[StartSource, Run]:
    """The checkpoint of a run after STEPS steps; all ranks call it."""
    run = Run.build(config, columns)
    run.train(batches_for(columns))
    saver = CheckpointSaver(str(folder))
    meter = torch.zeros(2 * len(columns.labels) + 2, dtype=torch.float64)
    saver.save(training_state(run.model, run.optimizer, meter), progress_after(STEPS), wait=True)
    saver.close()
    return source_of(folder, config, columns), run


def source_of(folder: Path, config: TrainConfig, columns: Columns = COLUMNS) -> StartSource:
    return StartSource(
        name=folder.name,
        weights=checkpoint_path(str(folder), STEPS),
        has_states=True,
        config=config,
        columns=columns,
        step=STEPS,
    )


def start(
    source: StartSource,
    config: TrainConfig,
    columns: Columns = COLUMNS,
    *,
    run: Run | None = None,
    id_maps: Mapping[str, IdMap] | None = None,
    **chosen: Any,
) -> tuple[Run, Carried]:
    """A run, by default one with other initial weights, that starts from the source."""
    run = run or Run.build(replace(config, seed=7), columns)
    return run, carry(run.model, run.optimizer, source, config=config, columns=columns, id_maps=id_maps or {}, **chosen)


def predictions(run: Run, batch: Batch) -> dict[str, Tensor]:
    """The logits of a batch by task, which are those of the first step on it; the run has made that step then."""
    [(_, logits)] = run.train([batch])
    return dict(zip(run.columns.labels, logits.unbind(1), strict=True))


def whole_states(run: Run) -> dict[str, Tensor]:
    """Every optimizer state of the size of its weight, and every count of steps, by name in the split layout."""
    pieces = []
    weights = run.model.state_dict()
    for name, states in run.optimizer.state_dict()["state"].items():
        tensor = TableTensor.parse(name)
        for state, value in states.items():
            if tensor is None:
                pieces.append((f"{name}.{state}", None, value.to("cpu", copy=True)))
            elif size_of(value) == size_of(weights[name]):
                for (row, column), piece in local_pieces(value):
                    for table, left, part in run.parts(tensor.table, column, piece):
                        # The fused optimizer of FBGEMM calls it otherwise than torch's.
                        kind = {"sum": "momentum1"}.get(state, state.rpartition(".")[2])
                        pieces.append((f"{table}.{kind}", (table, row, left), part.to("cpu", copy=True)))
    gathered: list[list] = [[]] * dist.get_world_size()
    dist.all_gather_object(gathered, pieces)
    whole: dict[str, Tensor] = {}
    for name, place, piece in itertools.chain(*gathered):
        if place is None:
            whole[name] = piece
        else:
            table, row, left = place
            target = whole.setdefault(name, torch.full(run.size_of(table), torch.nan))
            target[row : row + piece.shape[0], left : left + piece.shape[1]] = piece
    return whole


def with_columns_of(batch: Batch, columns: Columns) -> Batch:
    """The rows of a batch of COLUMNS with the features that they lack, filled at random, and without those dropped."""
    more = random_batch(100, columns, missing=0.0)
    bags = {
        feature: (batch if feature in batch.sparse_features.keys() else more).sparse_features[feature]  # noqa: SIM118
        for feature in columns.sparse
    }
    dense = dict(zip(columns.dense, more.dense_features.unbind(1), strict=True))
    dense |= {n: v for n, v in zip(COLUMNS.dense, batch.dense_features.unbind(1), strict=True) if n in dense}
    return Batch(
        dense_features=torch.stack([dense[name] for name in columns.dense], dim=1),
        sparse_features=KeyedJaggedTensor(
            [*bags],
            torch.cat([bag.values() for bag in bags.values()]),
            lengths=torch.cat([bag.lengths() for bag in bags.values()]),
        ),
        labels=more.labels,
    )
