"""Evaluates a run again: metrics and predictions of a split from the run's best weights, on any number of ranks."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Annotated

import tyro
from annotated_types import Interval
from torch import Tensor, nn
from torchrec.optim.keyed import CombinedOptimizer

from stem_torchrec.checkpoints.weights import load_weights
from stem_torchrec.config import Precision, TrainConfig
from stem_torchrec.config.path_fields import with_paths
from stem_torchrec.data.batch import Exposures
from stem_torchrec.data.columns import Columns
from stem_torchrec.data.folder import data_folder
from stem_torchrec.data.loader import data_loader
from stem_torchrec.data.reader import ParquetReader
from stem_torchrec.data.schema import Schema, load_schema
from stem_torchrec.metrics.multi_task import MultiTaskMetrics, TaskMetrics, format_table, to_json
from stem_torchrec.metrics.predictions import PredictionsFile
from stem_torchrec.runtime.errors import UserError
from stem_torchrec.runtime.folder_lock import FolderLock
from stem_torchrec.runtime.hang_detection import heartbeat
from stem_torchrec.runtime.path_options import InputFolder, OutputFile, OutputFolder
from stem_torchrec.runtime.process import Process, from_first_rank
from stem_torchrec.runtime.progress import log_rank0, progress_bar
from stem_torchrec.runtime.store_path import path_of
from stem_torchrec.training.assembly import build_pipeline, build_sharded_model, for_weights_only
from stem_torchrec.training.best_by_task import WeightsOfTasks, weights_of_tasks
from stem_torchrec.training.configuration import load_config
from stem_torchrec.training.evaluation import ComposedLogits, predict, weights_of_rows
from stem_torchrec.training.evaluation_outputs import prepare_outputs, write_results
from stem_torchrec.training.grown_log import UnseenIds, without_new_ids
from stem_torchrec.training.run_data import note_other_counts, open_split
from stem_torchrec.training.run_folder import CONFIG_FILE


@dataclass(frozen=True)
class EvaluationData:
    """The log to evaluate on."""

    path: InputFolder | None = None
    """Folder of the log; by default the one that the run trained on."""
    batch_size: Annotated[int, Interval(ge=1, le=2**24)] | None = None
    """Rows per rank and step; by default the run's --data.eval-batch-size."""


@dataclass(frozen=True)
class EvaluateConfig:
    """What to evaluate."""

    run: Annotated[InputFolder, tyro.conf.arg(aliases=["--run-dir"])] = ""
    """The run folder that training wrote. Under torchrun use --run-dir, as torchrun takes --run for its own."""
    data: EvaluationData = field(default_factory=EvaluationData)
    """The log to evaluate on."""
    split: str = "valid"
    """Folder of the log: valid, test or train."""
    all_rows: bool = False
    """Counts the labels of all rows, also of tasks that the run trains in a part of them (--data.spaces)."""
    precision: Precision | None = None
    """Of the matrix products, as --train.precision has it: fp32, tf32 or bf16; by default the run's own."""
    json: OutputFile | None = None
    """File for the metrics as JSON, `{"test": {"like": {"auc": ...}}}`."""
    predictions: OutputFolder | None = None
    """Folder for the predictions as Parquet, one file per rank: row of the split, group, and per task label and
    prediction. The rows may be without labels, in files that have none of their columns."""
    take_over: bool = False
    """Takes --predictions from another process that owns the folder."""


def evaluate_run(
    config: EvaluateConfig,
    process: Process,
    *,
    watch: Callable[[nn.Module], AbstractContextManager[object]] = nullcontext,
) -> dict[str, TaskMetrics]:
    """Metrics of one split by task, from the run's best weights; all ranks of the process group call it.

    Where the files have no column of labels, only predictions are made, and there are no metrics.

    Args:
        config: what to evaluate.
        process: this rank.
        watch: called with the model; its block lasts as long as the model predicts.

    Raises UserError where the run, its weights or the log are missing or do not fit each other.
    """
    if not config.run:
        raise UserError("say which run to evaluate: --run RUN, the folder that training wrote.")
    config = with_paths(config)
    opened = open_run(config, process)
    columns = opened.columns
    lock = FolderLock(take_over=config.take_over)
    from_first_rank(lambda: prepare_outputs(config.run, lock, metrics=config.json, predictions=config.predictions))
    metrics = MultiTaskMetrics(columns.labels, process.device, weighted=columns.weighs_rows, levels=columns.task_levels)
    file = PredictionsFile(config.predictions, columns, rank=process.rank) if config.predictions else nullcontext()
    unseen = UnseenIds(columns, process.device)
    with lock, file as predictions:

        def consume(item: Exposures, logits: Tensor, labels: Tensor) -> None:
            unseen.add(item)
            weights = weights_of_rows(item)
            if columns.labeled:
                metrics.update(logits, labels, item.groups, weights)
            if predictions is not None:
                groups = item.groups if item.texts is None else item.texts
                predictions.write(item.rows, groups, labels, logits, weights)

        opened.predict(process, consume, watch=watch)
        from_first_rank(lock.confirm)
    unseen.note()
    path, rows = opened.path, opened.reader.rows
    if not columns.labeled:
        log_rank0(
            f"\n{config.split} split of {path}, {rows:,} rows without labels, and so without metrics; their "
            f"predictions are in {config.predictions}"
        )
        return {}
    result = metrics.compute()
    spaces = "".join(f", of {task} those in which {label} is 1" for task, label in columns.spaces.items())
    log_rank0(f"\n{config.split} split of {path}, {rows:,} rows{spaces}:\n{format_table(result)}")
    note_other_counts(opened.schema, config.split, result, spaces=columns.spaces)
    if config.json and process.is_first:
        write_results(config.json, {config.split: to_json(result)})
    return result


@dataclass(frozen=True)
class OpenedRun:
    """A run, and the rows of a log that its best weights predict."""

    config: TrainConfig
    weights: tuple[WeightsOfTasks, ...]
    """The best ones, or those of each task's best evaluation."""
    path: str
    """Folder of the log."""
    schema: Schema
    """Of the log."""
    reader: ParquetReader

    @property
    def columns(self) -> Columns:
        """What is read of the log."""
        return self.reader.columns

    def predict(
        self,
        process: Process,
        consume: Callable[[Exposures, Tensor, Tensor], None],
        *,
        watch: Callable[[nn.Module], AbstractContextManager[object]] = nullcontext,
        shows_plan: bool = True,
    ) -> None:
        """Calls `consume` as `evaluation.predict` does; all ranks call it.

        Where tasks have weights of their own, the rows are predicted once with each, and the logits of all but the last
        wait in memory: 4 bytes for each row of this rank and task.

        Raises UserError for weights that do not fit the model.
        """
        config = for_weights_only(self.config)
        model, _ = build_sharded_model(config, self.columns, process, trains=False, shows_plan=shows_plan)
        pipeline = build_pipeline(model, CombinedOptimizer([]), self.config, process)
        watched = heartbeat(process, timeout=self.config.train.timeout)
        composed = ComposedLogits(self.columns.labels)
        with progress_bar(self.reader.steps * len(self.weights), "step") as bar, watched, watch(model):

            def counted(item: Exposures, logits: Tensor, labels: Tensor) -> None:
                bar.update()
                whole = composed.add(logits)
                if whole is not None:
                    consume(item, whole, labels)

            for number, weights in enumerate(self.weights, 1):
                load_weights(model, weights.folder)
                composed.begin(weights.tasks, last=number == len(self.weights))
                exposures = data_loader(self.reader, pin_memory=process.device.type == "cuda")
                predict(pipeline, model, exposures, counted)


def open_run(config: EvaluateConfig, process: Process, *, grown: bool = False) -> OpenedRun:
    """Opens a run and its rows; all ranks call it.

    Args:
        config: what to evaluate, with checked paths.
        process: this rank.
        grown: whether the run's tables may have more rows than the log has ids.

    Raises UserError where the run, its weights or the log are missing or do not fit each other.
    """
    folder = path_of(config.run)
    run = load_config(str(folder / CONFIG_FILE))
    if config.precision is not None:
        run = replace(run, train=replace(run.train, precision=config.precision))
    path = config.data.path or data_folder(run.data)
    schema = load_schema(path)
    if config.all_rows:
        run = replace(run, data=replace(run.data, spaces={}))
    columns = _columns_of(config.run, run, path, schema, predicts=config.predictions is not None, grown=grown)
    reader = open_split(
        run.data, path, config.split, schema, columns, process,
        batch_size=config.data.batch_size, needs_labels=config.predictions is None,
    )  # fmt: skip
    if config.json and not reader.columns.labeled:
        raise UserError(f"--json is for metrics, but the rows of {path}/{config.split} have no labels; leave it out.")
    return OpenedRun(run, weights_of_tasks(folder, columns.labels), path, schema, reader)


def _columns_of(folder: str, run: TrainConfig, path: str, schema: Schema, *, predicts: bool, grown: bool) -> Columns:
    """The columns of the log in `path` that the run in `folder` was trained on; raises UserError where it has others.

    To predict, the schema of the log needs no labels. Its vocabularies may have more ids than those of the run; `grown`
    allows one with fewer.
    """
    data = run.data
    columns = Columns.select(load_schema(folder), features=data.features, labels=data.labels, spaces=data.spaces)
    if predicts and not schema.labels:
        schema = replace(schema, labels=columns.label_entries)
    present = Columns.select(
        schema, features=tuple(columns.sparse), labels=columns.labels, spaces=columns.spaces, reader=folder
    )
    present = without_new_ids(path, present, columns, run=folder)
    if grown:
        of_run = columns.sparse
        larger = {n: max(each.num_embeddings, of_run[n].num_embeddings) for n, each in present.sparse.items()}
        sparse = {n: replace(each, num_embeddings=larger[n]) for n, each in present.sparse.items()}
        present = replace(present, sparse=sparse)
    if differences := present.differences(columns):
        raise UserError(
            f"{path} is not a log like that of {folder}: {', '.join(differences)}; convert it with the vocabularies of "
            "the training log."
        )
    return present
