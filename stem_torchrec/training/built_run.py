"""A run before it writes anything: its configuration checked, its log opened, its model built, sharded and started."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist
from torchrec.optim.keyed import CombinedOptimizer

from stem_torchrec.checkpoints.resume import check_resume
from stem_torchrec.config import TrainConfig
from stem_torchrec.data.schema import load_schema
from stem_torchrec.models.table import all_options
from stem_torchrec.profiles.step_profiler import check_steps
from stem_torchrec.runtime.folder_lock import FolderLock
from stem_torchrec.runtime.process import Process, from_first_rank
from stem_torchrec.runtime.progress import log_rank0
from stem_torchrec.sharding.plan import Plan
from stem_torchrec.tracking.chosen import check_trackers
from stem_torchrec.training.assembly import autocast_forward, build_pipeline, build_sharded_model
from stem_torchrec.training.beginning import Beginning
from stem_torchrec.training.chosen_deltas import check_deltas, check_rows
from stem_torchrec.training.fresh_tables import check_fresh_tables
from stem_torchrec.training.memory_needs import check_memory
from stem_torchrec.training.open_fields import with_open_fields
from stem_torchrec.training.optimizers import build_optimizer
from stem_torchrec.training.run_data import RunData
from stem_torchrec.training.run_start import check_run_folder, with_data_folder, with_folder_of_launch
from stem_torchrec.training.watched_metric import WatchedMetric


@dataclass(frozen=True)
class BuiltRun:
    """All that a run needs for its first step but its folders."""

    config: TrainConfig
    """With the path of the log, and with what was left open."""
    lock: FolderLock
    """Has taken no folder yet."""
    data: RunData
    watched: WatchedMetric
    beginning: Beginning
    model: DistributedModelParallel
    plan: Plan
    optimizer: CombinedOptimizer
    forward: Callable[[Any], Any]
    pipeline: TrainPipelineSparseDist

    @classmethod
    def build(cls, config: TrainConfig, process: Process) -> "BuiltRun":
        """Builds a run in the order of the fields; all ranks call it.

        Raises UserError where the configuration, the log, the ranks, the run folder, the source or the deltas do not
        fit.
        """
        config, path = with_data_folder(config)
        config = with_open_fields(config, path, process)
        schema, lock = load_schema(path), FolderLock(take_over=config.take_over)
        config = with_folder_of_launch(config, schema)
        check_run_folder(config, schema, lock)
        data = RunData.open(config, path, schema, process)
        check_resume(config, schema, data.contents, models=all_options())
        watched = _check_before_building(config, data, process)
        beginning = Beginning.open(config, path, data)
        check_deltas(config, beginning)
        model, plan = build_sharded_model(
            config, data.columns, process,
            labels_missing=data.labels_missing, ids_per_row=data.ids_per_row, statistics=data.label_statistics,
        )  # fmt: skip
        check_rows(config, model)
        optimizer = build_optimizer(model, sparse=config.sparse, dense=config.dense, train=config.train)
        forward = autocast_forward(model, config.train.precision, process)
        pipeline = build_pipeline(model, optimizer, config, process, forward=forward)
        beginning = beginning.carry(model, optimizer, config, data)
        return cls(config, lock, data, watched, beginning, model, plan, optimizer, forward, pipeline)


def _check_before_building(config: TrainConfig, data: RunData, process: Process) -> WatchedMetric:
    """Raises UserError for tables that may not begin anew, a tracker or metric that does not exist, too long a profile,
    or too little memory."""
    train = config.train
    check_fresh_tables(config)
    from_first_rank(lambda: check_trackers(os.environ))
    if train.profile:
        check_steps(min(each for each in (data.train.steps, train.max_steps, train.eval_every) if each))
    watched = WatchedMetric.of_split(train.metric, data.columns, data.validation.row_groups)
    if train.best_by_task:
        watched.by_task()
    from_first_rank(lambda: check_memory(config, data.columns, process, rows=data.train.rows))
    return watched


def dry_run(config: TrainConfig, process: Process) -> None:
    """Builds a run, which logs its plan and what is carried, and ends it; no folder is made or taken.

    All ranks call it. Raises UserError as the run would.
    """
    run = BuiltRun.build(config, process)
    resumes = run.beginning.resumes_from
    end = "nothing is written" if resumes is None else f"it would resume from {resumes}"
    log_rank0(
        f"dry run: {run.data.train.rows:,} training rows in {run.data.train.steps} steps of {process.world_size} x "
        f"{run.config.data.batch_size} an epoch; {end}"
    )
    run.data.close()
