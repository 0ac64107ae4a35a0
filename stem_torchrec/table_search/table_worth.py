"""What each table of a task is worth: how much more loss the tasks have with the shared table's image in its place."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from stem_torchrec.checkpoints.weights import BEST_WEIGHTS, find_weights, load_weights
from stem_torchrec.comparison.intervals import Floats, Ints
from stem_torchrec.data.batch import Exposures
from stem_torchrec.data.loader import data_loader
from stem_torchrec.inspection.inspected_run import tables_of
from stem_torchrec.inspection.train_ids import count_ids
from stem_torchrec.models.build import weights_by_label
from stem_torchrec.models.frame import MultiTaskModel
from stem_torchrec.run_report.run_record import RunRecord
from stem_torchrec.runtime.process import Process
from stem_torchrec.runtime.store_path import path_of
from stem_torchrec.table_search.linear_images import linear_images
from stem_torchrec.tables import SHARED, table_feature, table_group
from stem_torchrec.training.assembly import build_sharded_model, for_weights_only
from stem_torchrec.training.evaluation import weights_of_rows
from stem_torchrec.training.run_evaluation import EvaluateConfig, open_run
from stem_torchrec.training.sparse_optimizers import states_of_tables

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class TableWorth:
    """A table of a task, and the loss that it saves."""

    table: str
    rows: int
    dim: int
    bytes: int
    """Of its weights and their states."""
    worth: float
    """Sum over the tasks of how much their log loss rises without it, times the tasks' weights."""
    error: float
    """Standard error of `worth` over the users."""
    by_task: Mapping[str, float]
    """How much the log loss of each task rises."""

    @property
    def counts(self) -> bool:
        """Whether it saves more loss than chance would: two standard errors."""
        return self.worth > 2 * self.error


def first_half(users: Ints) -> NDArray[np.bool_]:
    """Whether a user is in the half that tables are measured on, (N,); the same for every row of a user."""
    # The highest bit of a multiplicative hash, as user numbers may all be even.
    return (users.view(np.uint64) * _GOLDEN) >> np.uint64(63) == 0


def measure_tables(run: str, process: Process, *, rows: int) -> list[TableWorth]:
    """The worth of every table of a task in a run's best weights, by the first rows of the validation split.

    Each row is looked up once. For each table the dense part is computed once more, with the pooled shared embeddings
    times the table's `linear_images` in the place of its own; pooling is linear, so that is what its rows would give.

    Args:
        run: folder of the run.
        process: the only rank.
        rows: at most, of all users; those of the first half count.

    Raises UserError where the run, its weights or its log are missing or do not fit each other.
    """
    record = RunRecord.read(path_of(run), "run")
    images = linear_images(tables_of(record), count_ids(record, rows=None).counts)
    opened = open_run(EvaluateConfig(run), process)
    config, columns = for_weights_only(opened.config), opened.columns
    sharded, _ = build_sharded_model(config, columns, process, trains=False, shows_plan=False)
    load_weights(sharded, find_weights(path_of(run) / BEST_WEIGHTS))
    model = sharded.eval().module.model
    assert isinstance(model, MultiTaskModel)
    opened.reader.start_epoch(0, [[[(0, min(rows, opened.reader.rows))]]])
    rises, weights, users = _rises(model, data_loader(opened.reader), images, process.device)
    kept = first_half(users)
    worths, task_weights = [], weights_by_label(config.model.task_weights, columns.labels)
    for table, image in images.items():
        of_tasks, of_users = _sums(rises[table][kept], weights[kept], users[kept], task_weights)
        size = columns.sparse[table_feature(table)].num_embeddings, image.shape[1]
        worths.append(
            TableWorth(
                table=table,
                rows=size[0],
                dim=size[1],
                bytes=4 * (size[0] * size[1] + states_of_tables([size], opened.config.sparse.name)),
                worth=float(of_users.sum()),
                error=float(np.sqrt((of_users**2).sum())),
                by_task=dict(zip(columns.labels, of_tasks.tolist(), strict=True)),
            )
        )
    return sorted(worths, key=lambda each: -each.worth)


@torch.no_grad()
def _rises(
    model: MultiTaskModel, exposures: Iterable[Exposures], images: Mapping[str, Tensor], device: torch.device
) -> tuple[dict[str, Floats], Floats, Ints]:
    """By table how much the losses of rows rise without it (N, T); the weights of labels (N, T), and the users (N,)."""
    rises, users, weights = defaultdict[str, list[Tensor]](list), list[Tensor](), list[Tensor]()
    for item in exposures:
        x, dense = model.sparse_arch(item.batch.sparse_features.to(device)), item.batch.dense_features.to(device)
        losses, weight = _losses(item, model.above_tables(dense, x))
        for table, image in images.items():
            without = _with_image(model, x, table, image.to(device))
            rises[table].append(_losses(item, model.above_tables(dense, without))[0] - losses)
        users.append((item.rows if item.groups is None else item.groups).view(torch.int64))
        weights.append(weight)
    return (
        {table: torch.cat(of_table).numpy() for table, of_table in rises.items()},
        torch.cat(weights).numpy(),
        torch.cat(users).numpy(),
    )


def _with_image(model: MultiTaskModel, x: dict[str, Tensor], table: str, image: Tensor) -> dict[str, Tensor]:
    """The pooled embeddings with the shared ones times the image in the place of those of a table."""
    group, feature = table_group(table), table_feature(table)
    own, shared = (_columns(model, each, feature) for each in (group, SHARED))
    replaced = x[group].clone()
    replaced[:, own] = x[SHARED][:, shared] @ image
    return x | {group: replaced}


def _columns(model: MultiTaskModel, group: str, feature: str) -> slice:
    start = 0
    for name, width in model.sparse_arch.columns[group]:
        if name == feature:
            return slice(start, start + width)
        start += width
    raise AssertionError(f"{group} has no table of {feature}")


def _losses(item: Exposures, logits: Tensor) -> tuple[Tensor, Tensor]:
    """The log losses (B, T), 0 without a label, and the weights of the labels (B, T), on CPU and without padding."""
    count = len(item.rows)
    labels = item.batch.labels[:count].cpu().double()
    known, weights = ~labels.isnan(), weights_of_rows(item)
    # Models with several streams put out the predictions first, then what trains the streams.
    predicted = logits[:count, : labels.shape[1]].cpu().double()
    losses = binary_cross_entropy_with_logits(predicted, labels.nan_to_num(), reduction="none")
    return losses * known, known.double() if weights is None else known * weights.cpu().double()


def _sums(rises: Floats, weights: Floats, users: Ints, task_weights: Sequence[float]) -> tuple[Floats, Floats]:
    """How much the mean loss of each task rises (T,), and each user's part in the weighted sum of these (U,)."""
    shares = weights / np.maximum(weights.sum(axis=0), 1e-12)
    of_rows = (rises * shares) @ np.asarray(task_weights or np.ones(weights.shape[1]))
    names, user = np.unique(users, return_inverse=True)
    of_users = np.zeros(len(names))
    np.add.at(of_users, user, of_rows)
    return (rises * shares).sum(axis=0), of_users
