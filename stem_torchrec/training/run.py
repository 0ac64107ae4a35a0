"""Trains a model on a log and keeps the best weights.

python stem_torchrec/train.py --recipe synthetic
torchx run dist.ddp -j 2x8 stem_torchrec/train.py --recipe kuairand_pure --data.path DIR
"""

from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from dataclasses import replace
from threading import Event

import torch
from torchrec.datasets.utils import Batch

from stem_torchrec.checkpoints.resume import check_resume
from stem_torchrec.config import TrainConfig, check_fields
from stem_torchrec.data.files import Columns, find_row_groups, ids_per_row, missing_labels
from stem_torchrec.data.folder import data_folder
from stem_torchrec.data.loader import data_loader
from stem_torchrec.data.reader import ParquetReader
from stem_torchrec.data.schema import load_schema
from stem_torchrec.metrics.collectives import gather
from stem_torchrec.metrics.multi_task import format_table
from stem_torchrec.profiles.step_profiler import StepProfiler, check_steps
from stem_torchrec.runtime.errors import DivergedError, UserError
from stem_torchrec.runtime.hang_detection import heartbeat
from stem_torchrec.runtime.process import Process, from_first_rank
from stem_torchrec.runtime.progress import log_rank0
from stem_torchrec.sharding.plan import plan_to_json
from stem_torchrec.training.assembly import build_pipeline, build_sharded_model
from stem_torchrec.training.best_weights import BestWeights
from stem_torchrec.training.early_stopping import EarlyStopping
from stem_torchrec.training.evaluation import evaluate
from stem_torchrec.training.loop import fit
from stem_torchrec.training.optimizers import build_optimizer, build_schedule
from stem_torchrec.training.run_checkpoints import RunCheckpoints
from stem_torchrec.training.run_folder import MetricsLog, create_run_folder, finish, finished, write_inputs
from stem_torchrec.training.watched_metric import Metrics, WatchedMetric


def train(
    config: TrainConfig,
    process: Process,
    *,
    watch: Callable[[Metrics], object] = lambda metrics: None,
    ending: Event | None = None,
) -> Metrics:
    """Runs `config` on this rank; returns the best evaluation's metrics. All ranks of the process group call it.

    A run folder with a checkpoint is gone on with, see `--resume`.

    Args:
        config: the run.
        process: this rank.
        watch: called with the metrics of each evaluation; what it raises ends the run.
        ending: once it is set on some rank, the run ends by Interrupted after a checkpoint.
    """
    check_fields(config)
    log_path = data_folder(config.data)
    if config.data.path is not None:
        config = replace(config, data=replace(config.data, path=log_path))
    done = finished(config)
    if done is not None:
        log_rank0(f"the run in {config.output_dir} has ended already; its best evaluation:\n{format_table(done)}")
        return done
    schema = load_schema(log_path)
    check_resume(config, schema)
    columns = Columns.select(schema, features=config.data.features, labels=config.data.labels)
    reader, validation = (
        ParquetReader(
            find_row_groups(log_path, split, schema, columns),
            columns,
            batch_size=batch_size,
            rank=process.rank,
            world_size=process.world_size,
            num_workers=config.data.num_workers,
            training=split == "train",
            shuffle_rows=config.data.shuffle_rows,
            seed=config.seed,
            max_bad_share=config.data.skipped_share,
        )
        for split, batch_size in (("train", config.data.batch_size), ("valid", config.data.eval_batch_size))
    )
    batches, exposures = (
        data_loader(source, pin_memory=process.device.type == "cuda") for source in (reader, validation)
    )
    steps_per_epoch = reader.steps
    if config.train.profile:
        check_steps(min(each for each in (steps_per_epoch, config.train.max_steps, config.train.eval_every) if each))
    watched = WatchedMetric(config.train.metric, columns.labels, has_groups=columns.group is not None)
    stopping = EarlyStopping(watched, config.train.patience)

    model, plan = build_sharded_model(
        config,
        columns,
        process,
        labels_missing=missing_labels(reader.row_groups, columns.labels),
        ids_per_row=ids_per_row(reader.row_groups, columns.sparse),
    )
    optimizer = build_optimizer(model, sparse=config.sparse, dense=config.dense, clip_norm=config.train.clip_norm)
    pipeline = build_pipeline(model, optimizer, config, process)

    folder = create_run_folder(config)
    from_first_rank(lambda: write_inputs(folder, schema, plan_to_json(plan)))
    log_rank0(
        f"{reader.rows:,} training rows: {steps_per_epoch} steps of {process.world_size} x {reader.batch_size} an "
        f"epoch\n{validation.rows:,} validation rows; run folder {folder}"
    )
    best = BestWeights(model, folder, stopping, max_failures=config.checkpoint.max_failures)
    checkpoints = RunCheckpoints(
        config, folder, schema,
        model=model, optimizer=optimizer, pipeline=pipeline, reader=reader, best=best,
    )  # fmt: skip
    start = checkpoints.restore()
    # On other ranks the rest of the epoch may take another number of steps.
    epochs_to_come = config.train.epochs - start.epoch - 1
    steps = start.step + (steps_per_epoch if start.left is None else start.left) + epochs_to_come * steps_per_epoch
    steps = min(steps, config.train.max_steps or steps)
    schedule = build_schedule(optimizer, config.schedule, steps=steps, made=start.step)
    pauses = checkpoints.watch(ending or Event())

    def judge() -> Metrics:
        validation.start_epoch(0)
        metrics = evaluate(
            pipeline, model, exposures,
            tasks=columns.labels, device=process.device, asks=pauses.asks_to_end,
        )  # fmt: skip
        # FBGEMM counts lookups, those of evaluations as well, and corrects the bias of moments by the number.
        optimizer.set_optimizer_step(schedule.last_epoch)
        watch(metrics)
        return metrics

    def counts() -> dict[str, int]:
        skipped = rows_skipped({"train": reader, "valid": validation}, process.device)
        if skipped:
            log_rank0(f"rows skipped, of this epoch so far: {', '.join(f'{name} {n}' for name, n in skipped.items())}")
        return {f"count/skipped_rows/{name}": n for name, n in skipped.items()} | checkpoints.counts()

    def epoch_batches(epoch: int) -> Iterable[Batch]:
        if epoch != reader.epoch:
            reader.start_epoch(epoch)
        return batches

    log = MetricsLog(folder, after=start.step, evaluate=start.evaluate)
    try:
        with closing(log), heartbeat(process, timeout=config.train.timeout):
            fit(
                pipeline,
                epoch_batches,
                tasks=columns.labels,
                steps=steps,
                steps_per_epoch=steps_per_epoch,
                start=start,
                schedule=schedule,
                evaluate=judge,
                eval_every=config.train.eval_every,
                stopping=stopping,
                keep=best.keep,
                counts=counts,
                watch=pauses,
                log_every=config.train.log_every,
                log=log,
                profiler=StepProfiler(folder / "profile", process.device) if config.train.profile else None,
            )
    except DivergedError:
        # All ranks meet it alike, and another model may be trained next.
        checkpoints.close()
        raise
    checkpoints.close()
    if not best.metrics:
        raise UserError(f"no weights could be written to {folder}; make room there, or give another --output-dir.")
    from_first_rank(lambda: finish(folder))
    log_rank0(f"\nbest evaluation of the validation split, in {folder}:\n{format_table(best.metrics)}")
    return best.metrics


def rows_skipped(readers: Mapping[str, ParquetReader], device: torch.device) -> dict[str, int]:
    """Rows that broke the schema on any rank, as `train/tags`, where there are some; all ranks call it."""
    return {
        f"{split}/{reason}": count
        for split, reader in readers.items()
        if reader.bad is not None
        for reason, count in zip(
            reader.bad.reasons, gather(reader.bad.counted.to(device)).sum(dim=0).tolist(), strict=True
        )
        if count
    }
