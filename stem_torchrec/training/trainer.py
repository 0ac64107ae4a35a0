"""A training run, from its configuration to its best weights, which one can also take step by step.

With built_run.py it alone knows the order build -> optimizer in backward -> plan -> shard -> optimizer -> pipeline ->
restore.
"""

from collections.abc import Callable, Sequence
from contextlib import closing, nullcontext
from threading import Event

from stem_torchrec.balance.balance import balance_values
from stem_torchrec.config import TrainConfig
from stem_torchrec.metrics.multi_task import format_table
from stem_torchrec.profiles.step_profiler import StepProfiler
from stem_torchrec.runtime.errors import DivergedError, UnwritableError
from stem_torchrec.runtime.hang_detection import heartbeat
from stem_torchrec.runtime.process import Process, from_first_rank
from stem_torchrec.runtime.progress import log_rank0, progress_bar
from stem_torchrec.sharding.plan_file import plan_to_json
from stem_torchrec.tables import set_steps
from stem_torchrec.tracking.tracker import Outcome
from stem_torchrec.training.best_by_task import BestByTask
from stem_torchrec.training.best_weights import BestWeights
from stem_torchrec.training.built_run import BuiltRun, dry_run
from stem_torchrec.training.callbacks import Callback, KeepBest, KeepBestByTask, LowerRates, ProfileSteps, TrainingLog
from stem_torchrec.training.early_stopping import EarlyStopping
from stem_torchrec.training.evaluation import evaluate, with_batches_aside
from stem_torchrec.training.fresh_tables import fresh_tables
from stem_torchrec.training.gate_weights import GateWeights
from stem_torchrec.training.loop import StepOutput, TrainLoop
from stem_torchrec.training.meter import Meter
from stem_torchrec.training.metrics_log import MetricsLog
from stem_torchrec.training.open_fields import with_open_fields
from stem_torchrec.training.peak_memory import peak_memory
from stem_torchrec.training.rate_schedule import RateSchedule
from stem_torchrec.training.run_checkpoints import RunCheckpoints
from stem_torchrec.training.run_data import note_other_counts
from stem_torchrec.training.run_folder import finish, write_inputs
from stem_torchrec.training.run_start import finished, open_run_folder, with_data_folder
from stem_torchrec.training.state import TrainState
from stem_torchrec.training.watched_metric import Metrics


class Trainer:
    """Builds a run and trains it, at once (`run`) or step by step; all ranks of the process group make the same calls.

    If the run folder has a checkpoint, training resumes from it; see `--resume`.

    Args:
        config: the run.
        process: this rank.
        callbacks: hooks around the steps, called after the run's own.
        watch: called with the metrics of each evaluation before anything is kept; an error that it raises ends the run.
        ending: once it is set on some rank, the run writes a checkpoint and ends by Interrupted.

    Raises UserError where the configuration, the log, the ranks or the run folder do not fit each other.

    Example::

        with join_process_group() as process:
            trainer = Trainer(tiny(), process)
            for _ in range(10):
                output = trainer.train_step()
            trainer.evaluate()["like"].auc
            trainer.save()
            trainer.run()  # the rest
    """

    def __init__(
        self,
        config: TrainConfig,
        process: Process,
        *,
        callbacks: Sequence[Callback] = (),
        watch: Callable[[Metrics], object] = lambda metrics: None,
        ending: Event | None = None,
    ) -> None:
        run = BuiltRun.build(config, process)
        self.config, self.process, self._watch = run.config, process, watch
        self.data, self._lock, self._watched = run.data, run.lock, run.watched
        self.model, self.optimizer, self.pipeline, self._forward = run.model, run.optimizer, run.pipeline, run.forward
        self.folder = open_run_folder(self.config, self.data.schema, self._lock)
        self._record = from_first_rank(lambda: run.beginning.record_in(self.folder, self.config))
        plan = plan_to_json(run.plan)
        from_first_rank(lambda: write_inputs(self.folder, self.data.schema, plan, self._record))
        steps_per_epoch = self.data.train.steps
        log_rank0(
            f"{self.data.train.rows:,} training rows: {steps_per_epoch} steps of {process.world_size} x "
            f"{self.config.data.batch_size} an epoch\n{self.data.validation.rows:,} validation rows; run folder "
            f"{self.folder}"
        )
        self._make_callbacks(ending or Event())
        self.loop = self._make_loop(steps_per_epoch, callbacks)

    @property
    def state(self) -> TrainState:
        """How far the run is."""
        return self.loop.state

    def train_step(self) -> StepOutput:
        """One step on this rank's next batch; evaluations and checkpoints are left to the caller. See `TrainLoop`."""
        return self.loop.train_step()

    def evaluate(self) -> Metrics:
        """Metrics of the validation split by task; keeps the weights if they are the best so far, as `run` does."""
        return self.loop.evaluate()

    def save(self) -> None:
        """Writes a checkpoint and waits for it; a run that resumes from it goes through the same bits as this one."""
        self._file.sync()
        self.checkpoints.save(self.state)

    def run(self) -> Metrics:
        """Makes the steps that are left; returns the metrics of the best evaluation.

        Raises DivergedError for losses that are not finite, Interrupted where the run is asked to end, UnwritableError
        where no weights could be written.
        """
        profiler = StepProfiler(self.folder / "profile", self.process.device) if self.config.train.profile else None
        if profiler is not None:
            self.loop.callbacks.insert(self.loop.callbacks.index(self._log) + 1, ProfileSteps(profiler))
        try:
            with self._file.tracked():
                with (
                    closing(self._file),
                    heartbeat(self.process, timeout=self.config.train.timeout),
                    progress_bar(self.loop.steps, "step") as self._log.bar,
                    profiler or nullcontext(),
                ):
                    self._log.bar.update(self.state.step)
                    self._meter.start_clock()
                    self.loop.run()
                    self.checkpoints.deltas.ship_last(self.state.step)
                self._close_connections()
                if not self._best.result:
                    raise UnwritableError(
                        f"no weights could be written to {self.folder}; make room, or give another --output-dir."
                    )
                from_first_rank(lambda: finish(self.folder, self._lock, self.data.contents))
        except Exception as error:
            # Another model may be trained next. Of several ranks, closing would wait for those that raised nothing.
            if isinstance(error, DivergedError) or self.process.world_size == 1:
                self.close()
            raise
        self._lock.release()
        log_rank0(f"\nbest evaluation of the validation split, in {self.folder}:\n{format_table(self._best.result)}")
        note_other_counts(self.data.schema, "valid", self._best.result, spaces=self.data.columns.spaces)
        return self._best.result

    def close(self) -> None:
        """Ends a run that is not taken to its end; the next one in its folder resumes from the last checkpoint."""
        self._file.close()
        self._file.end_trackers(Outcome.KILLED)
        self._close_connections()
        self._lock.release()

    def _close_connections(self) -> None:
        self.checkpoints.close()
        self.data.close()

    def _make_callbacks(self, ending: Event) -> None:
        """Makes the parts of the run that its loop calls, and restores them from a checkpoint."""
        config, patience, max_failures = self.config, self.config.train.patience, self.config.checkpoint.max_failures
        stopping, by_task = EarlyStopping(self._watched, patience), None
        if config.train.best_by_task:
            stopping.patience = None
            by_task = BestByTask(
                self.model, self.folder, self._lock, self._watched, patience=patience, max_failures=max_failures
            )
        self._meter, self._gates = Meter(self.data.columns.labels), GateWeights(self.process.device)
        self._best = BestWeights(
            self.model, self.folder, self._lock, stopping, max_failures=max_failures, by_task=by_task
        )
        self.checkpoints = RunCheckpoints(
            config, self.folder, self._lock, self.data,
            model=self.model, optimizer=self.optimizer, pipeline=self.pipeline, best=self._best, meter=self._meter,
            start=self._record,
        )  # fmt: skip
        self._start = self.checkpoints.restore()
        self.checkpoints.start(ending)
        self._file = MetricsLog(self.folder, self._lock, after=self._start.step, evaluate=self._start.evaluate)
        self._log = TrainingLog(
            self._meter, every_steps=config.train.log_every, file=self._file,
            beside=self._beside, histograms=self._gates.histograms,
        )  # fmt: skip
        self._keep_best = [KeepBest(self._best.keep, stopping), *([KeepBestByTask(by_task)] if by_task else [])]

    def _make_loop(self, steps_per_epoch: int, callbacks: Sequence[Callback]) -> TrainLoop:
        train, state = self.config.train, self._start
        steps = state.epoch_end + (train.epochs - state.epoch - 1) * steps_per_epoch
        steps = min(steps, train.max_steps or steps)
        self.schedule = RateSchedule(self.optimizer, self.config.schedule, steps=steps, made=state.step)
        fresh = fresh_tables(self.config, self.model, self.optimizer, self._meter)
        changes = [LowerRates(self.schedule, self._best.stopping), *fresh]
        return TrainLoop(
            self.pipeline, self.data.batches,
            steps=steps, steps_per_epoch=steps_per_epoch, state=state, schedule=self.schedule,
            evaluate=self._validate, eval_every=train.eval_every,
            callbacks=[*self._keep_best, self._log, *callbacks, *changes, self.checkpoints.deltas, self.checkpoints],
        )  # fmt: skip

    def _validate(self) -> Metrics:
        """Exact metrics of the validation split, between two steps."""
        self.checkpoints.watch.check_finite()
        self.checkpoints.save_before_evaluation(self.state, last=self.state.step == self.loop.steps)
        self.data.validation.start_epoch(0)
        device, empty = self.process.device, self.loop.pipeline_is_empty
        aside = with_batches_aside(self.pipeline, self._forward, device=device)
        with self._gates.watch(self.model), nullcontext(self.pipeline) if empty else aside as each:
            metrics = evaluate(
                each, self.model, self.data.exposures,
                tasks=self.data.columns.labels, device=device, weighted=self.data.columns.weighs_rows,
                levels=self.data.columns.task_levels, should_end=self.checkpoints.watch.should_end,
            )  # fmt: skip
        # FBGEMM has counted the lookups of the evaluation, and would correct the bias of moments by them as well.
        set_steps(self.model, self.optimizer, self._record.table_steps + self.schedule.last_epoch)
        self._watch(metrics)
        return metrics

    def _beside(self) -> dict[str, float | None]:
        counts = {**self.data.skipped_rows(), **self.checkpoints.counts()}
        balance = balance_values(self.model, self.data.columns.labels)
        return {**counts, **balance, **self._gates.values(), **peak_memory(self.process.device)}


def train(
    config: TrainConfig,
    process: Process,
    *,
    watch: Callable[[Metrics], object] = lambda metrics: None,
    ending: Event | None = None,
) -> Metrics:
    """Trains `config` to its end on this rank; returns the best evaluation's metrics. See `Trainer`.

    A run that has ended already is not trained again, and a dry run trains nothing and returns {}.
    """
    resolved, path = with_data_folder(config)
    resolved = with_open_fields(resolved, path, process)
    done = finished(resolved, path, process)
    if done is not None:
        log_rank0(f"the run in {config.output_dir} has ended already; its best evaluation:\n{format_table(done)}")
        return done
    if resolved.dry_run:
        dry_run(resolved, process)
        return {}
    return Trainer(resolved, process, watch=watch, ending=ending).run()
