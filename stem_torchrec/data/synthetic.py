"""Writes a learnable multi-task log of any size that knows its own best reachable AUC.

No model ranks better than the true logits, so a perfect model reaches their AUC against the labels that were drawn from
them. The facts of schema.json hold it.
"""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from filelock import FileLock
from numpy.typing import NDArray
from tqdm import tqdm

from stem_torchrec.config import SyntheticConfig
from stem_torchrec.config.serialization import from_dict, to_dict
from stem_torchrec.data.new_log import new_log
from stem_torchrec.data.pair_auc import pair_aucs
from stem_torchrec.data.schema import SCHEMA_FILE, LabelCounts, Schema, SparseFeature, Split, save_schema
from stem_torchrec.data.synthetic_world import GROUP_COLUMN, MISSING, Floats, World
from stem_torchrec.data.task_names import check_task_names
from stem_torchrec.runtime.errors import UserError

# Rows per row group. Each chunk has a random generator of its own, so one is in memory at a time.
CHUNK_ROWS = 65_536


def generate(config: SyntheticConfig, folder: str, overwrite: bool = False, *, take_over: bool = False) -> Schema:
    """Writes `{train,valid,test}/part-00000.parquet` and `schema.json`; the folder appears when it is complete.

    Args:
        config: sizes and dials.
        folder: a local folder that is absent or empty.
        overwrite: whether to replace a log in the folder.
        take_over: takes the folder from another process that makes the same log.

    Raises:
        UserError: a value of `config` makes no sense, `folder` holds something else, or another process makes it.

    Example::

        schema = generate(SyntheticConfig(conflict=0.8), "data/synthetic")
        schema.facts["best_auc/finish"]       # 0.81, on valid/
        schema.facts["best_auc_test/finish"]  # 0.81, on test/
    """
    check_synthetic(config)
    world = World(config)
    columns = world.columns.names
    if len(set(columns)) < len(columns):
        raise UserError(f"the columns would be {', '.join(columns)}; rename the task that repeats one.")
    with new_log(Path(folder).absolute(), overwrite=overwrite, take_over=take_over) as log:
        return _write_log(world, log)


def ensure(config: SyntheticConfig, folder: str) -> None:
    """Generates the log unless `folder` holds one; of several processes one generates it and the others wait."""
    out = Path(folder).absolute()
    out.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{out}.lock"):
        if not (out / SCHEMA_FILE).is_file():
            generate(config, folder)


def _write_log(world: World, folder: Path) -> Schema:
    config = world.config
    sizes = {"train": config.train_rows, "valid": config.valid_rows, "test": config.test_rows}
    splits, facts = {}, {}
    with tqdm(total=sum(sizes.values()), unit=" rows", unit_scale=True, disable=None) as progress:
        for name, rows in sizes.items():
            splits[name], best_auc = _write_split(world, name, rows=rows, folder=folder / name, done=progress.update)
            prefix = "best_auc" if name == "valid" else f"best_auc_{name}"
            facts.update({f"{prefix}/{task}": auc for task, auc in best_auc.items()})
    schema = Schema(
        sparse_features=tuple(SparseFeature(name, ids) for name, ids in world.vocabularies.items()),
        labels=config.tasks,
        splits=splits,
        dense_features=world.dense_names,
        group=GROUP_COLUMN,
        description=f"Drawn by stem_torchrec.data.synthetic from {config}.",
        facts=facts,
    )
    save_schema(schema, str(folder))
    return schema


def _write_split(
    world: World, name: str, *, rows: int, folder: Path, done: Callable[[int], object]
) -> tuple[Split, dict[str, float]]:
    """Writes one split; returns its sizes and, except for train/, the best reachable AUC of each task."""
    tasks = world.config.tasks
    positives, missing = np.zeros((2, len(tasks)), dtype=np.int64)
    drawn: list[tuple[Floats, NDArray[np.int8]]] = []
    folder.mkdir(parents=True)
    with pq.ParquetWriter(folder / "part-00000.parquet", world.columns, write_page_checksum=True) as writer:
        for chunk in range(math.ceil(rows / CHUNK_ROWS)):
            size = min(CHUNK_ROWS, rows - chunk * CHUNK_ROWS)
            table, logits, labels = world.draw(name, chunk, size)
            writer.write_table(table)
            positives += (labels == 1).sum(axis=1)
            missing += (labels == MISSING).sum(axis=1)
            if name != "train":
                drawn.append((logits, labels))  # An exact AUC needs all rows at once: 5 bytes a row and task.
            done(size)
    counts = {
        task: LabelCounts(int(ones), int(nulls)) for task, ones, nulls in zip(tasks, positives, missing, strict=True)
    }
    if not drawn:
        return Split(rows, counts), {}
    logits, labels = (np.hstack(parts) for parts in zip(*drawn, strict=True))
    return Split(rows, counts), pair_aucs(tasks, logits, labels)  # Few rows may hold one class only.


def check_synthetic(config: SyntheticConfig) -> None:
    """Raises UserError for the first value outside of its limits, and for lists that do not fit the tasks."""
    from_dict(SyntheticConfig, to_dict(config))
    check_task_names(config.tasks)
    for name in ("positive_rate", "missing"):
        values = getattr(config, name)
        if len(values) != len(config.tasks):
            raise UserError(f"{name} has {len(values)} numbers, but there are {len(config.tasks)} tasks.")
