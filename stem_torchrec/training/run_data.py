"""The log of a run as this rank reads it: its columns, and a reader for each split."""

from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torchrec.datasets.utils import Batch

from stem_torchrec.config import DataConfig, TrainConfig
from stem_torchrec.data.batch import Exposures
from stem_torchrec.data.columns import Columns
from stem_torchrec.data.files import find_row_groups, with_labels
from stem_torchrec.data.footers import contents, ids_per_row
from stem_torchrec.data.label_counts import LabelCounter
from stem_torchrec.data.label_kinds import may_lack_labels
from stem_torchrec.data.label_statistics import log_odds_above, mean_and_deviation
from stem_torchrec.data.loader import data_loader
from stem_torchrec.data.reader import ParquetReader
from stem_torchrec.data.schema import Schema
from stem_torchrec.metrics.collectives import gather
from stem_torchrec.metrics.multi_task import TaskMetrics
from stem_torchrec.runtime.hang_detection import collective_timeout
from stem_torchrec.runtime.process import Process, from_first_rank
from stem_torchrec.runtime.progress import log_rank0


@dataclass
class RunData:
    """The training and the validation split of a run.

    Example::

        data = RunData.open(config, path, schema, process)
        data.columns.labels       # ("finish", "like")
        next(iter(data.batches(0)))  # this rank's first batch of the first epoch
    """

    schema: Schema
    columns: Columns
    train: ParquetReader
    validation: ParquetReader
    exposures: Iterable[Exposures]
    """The validation split; the same on each iteration."""
    device: torch.device
    _loader: Iterable[Batch]
    _counter: LabelCounter

    @classmethod
    def open(cls, config: TrainConfig, path: str, schema: Schema, process: Process) -> "RunData":
        """Reads the footers of both splits in the folder `path`; raises UserError where they do not fit the schema."""
        data, pin = config.data, process.device.type == "cuda"
        columns = Columns.select(schema, features=data.features, labels=data.labels, spaces=data.spaces)
        train = open_split(data, path, "train", schema, columns, process, training=True, seed=config.seed)
        validation = open_split(data, path, "valid", schema, columns, process)
        exposures = data_loader(validation, pin_memory=pin)
        loader = data_loader(train, pin_memory=pin)
        counter = LabelCounter(timeout=collective_timeout(config.train.timeout))
        return cls(schema, columns, train, validation, exposures, process.device, loader, counter)

    def batches(self, epoch: int) -> Iterable[Batch]:
        """This rank's batches of an epoch; of the epoch in which the run resumes, those that are left."""
        if epoch != self.train.epoch:
            self.train.start_epoch(epoch)
        return self._counter.counted(self._loader)

    def close(self) -> None:
        """Closes the connections in which labels are counted; all ranks call it."""
        self._counter.close()

    @cached_property
    def contents(self) -> Mapping[str, Mapping[str, str]]:
        """What the footers tell about the rows of each split; all ranks ask for it first at once, and rank 0 looks."""
        splits = {"train": self.train, "valid": self.validation}
        return from_first_rank(lambda: {split: contents(reader.row_groups) for split, reader in splits.items()})

    @property
    def labels_missing(self) -> bool:
        """Whether the training split has rows without a label for some task; all ranks ask for it at once."""
        return from_first_rank(lambda: may_lack_labels(self.train.row_groups, self.columns))

    @property
    def label_statistics(self) -> dict[str, tuple[float, ...]]:
        """What the outputs of tasks that are not binary start from, by task, the same on all ranks, which all ask.

        Mean and standard deviation of the training labels that are numbers, log odds of levels. Rank 0 reads the
        columns of these labels.
        """
        of_kind = {"number": mean_and_deviation, "ordinal": log_odds_above}

        def read() -> dict[str, tuple[float, ...]]:
            kinds = self.columns.not_binary
            return {task: of_kind[kind](self.train.row_groups, self.columns, task) for task, kind in kinds.items()}

        return from_first_rank(read)

    @property
    def ids_per_row(self) -> dict[str, float]:
        """Mean number of ids in a training row by feature."""
        files = {name: self.columns.column_of(name) for name in self.columns.sparse}
        of_columns = ids_per_row(self.train.row_groups, files.values())
        return {name: of_columns[column] for name, column in files.items()}

    def skipped_rows(self) -> Mapping[str, int]:
        """Rows that break the schema on any rank, as `count/skipped_rows/train/tags`, and shows them.

        Of the current epoch since it began or the run resumed. All ranks call it.
        """
        skipped = {
            f"{split}/{reason}": count
            for split, reader in (("train", self.train), ("valid", self.validation))
            if reader.bad is not None
            for reason, count in zip(
                reader.bad.reasons, gather(reader.bad.counted.to(self.device)).sum(dim=0).tolist(), strict=True
            )
            if count
        }
        if skipped:
            log_rank0(f"rows skipped, of this epoch so far: {', '.join(f'{name} {n}' for name, n in skipped.items())}")
        return {f"count/skipped_rows/{name}": n for name, n in skipped.items()}


def open_split(
    data: DataConfig,
    path: str,
    split: str,
    schema: Schema,
    columns: Columns,
    process: Process,
    *,
    training: bool = False,
    batch_size: int | None = None,
    seed: int = 0,
    needs_labels: bool = True,
) -> ParquetReader:
    """This rank's reader of a split: batches in shuffled order for training, exposures in the log's order otherwise.

    Args:
        data: how rows become batches.
        path: folder of the log.
        split: folder below it.
        schema: of the log.
        columns: to read.
        process: this rank.
        training: whether the rows are trained on.
        batch_size: rows per rank and step; by default --data.batch-size or --data.eval-batch-size.
        seed: of the order of the rows.
        needs_labels: whether files without any label are refused; otherwise the reader's columns tell what they have.
    """
    row_groups = find_row_groups(path, split, schema, columns, needs_labels=needs_labels)
    return ParquetReader(
        row_groups,
        columns if needs_labels else with_labels(columns, row_groups),
        batch_size=batch_size or (data.batch_size if training else data.eval_batch_size),
        rank=process.rank,
        world_size=process.world_size,
        num_workers=data.num_workers,
        training=training,
        shuffle_rows=data.shuffle_rows,
        seed=seed,
        max_bad_share=data.skipped_share,
    )


def note_other_counts(
    schema: Schema, split: str, metrics: Mapping[str, TaskMetrics], *, spaces: Container[str] = ()
) -> None:
    """Notes the labels that are 1 more or less often in a split than schema.json says, which only its rows tell.

    Metrics leave out labels that weigh 0, and those outside of a task's space, so tasks with either are not compared.
    """
    for task, counts in schema.splits[split].labels.items() if split in schema.splits else ():
        weighted = schema.weight is not None or task in schema.label_weights or task in spaces
        if task in metrics and not weighted and metrics[task].positives != counts.positives:
            log_rank0(
                f"note: {split}/ of the log has {metrics[task].positives} rows in which {task!r} is 1, but schema.json "
                f"says {counts.positives}"
            )
