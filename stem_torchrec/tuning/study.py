"""A study: trials of a search, each trained by one rank, and the best setting of them all."""

import os
import shutil
from contextlib import redirect_stdout
from dataclasses import replace
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any

import optuna
import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, Trial, TrialState

from stem_torchrec.config.files import dump_config, what_is_trained
from stem_torchrec.config.serialization import to_dict
from stem_torchrec.runtime.errors import DivergedError, UserError
from stem_torchrec.runtime.folder_lock import FolderLock
from stem_torchrec.runtime.launch_environment import read_ranks
from stem_torchrec.runtime.owner_file import launch_id
from stem_torchrec.runtime.paths import write_text
from stem_torchrec.runtime.process import Process, join_process_group
from stem_torchrec.runtime.progress import log_rank0
from stem_torchrec.runtime.whole_file import naming_file, whole_file
from stem_torchrec.training.configuration import load_config, with_trained_options, with_values
from stem_torchrec.training.recorded_options import differences, write_or_check
from stem_torchrec.training.run_folder import CONFIG_FILE
from stem_torchrec.training.trainer import train
from stem_torchrec.training.watched_metric import Metrics, WatchedMetric
from stem_torchrec.tuning.options import TuneConfig
from stem_torchrec.tuning.search_space import Search, resolve_log

_ENDED = (TrialState.COMPLETE, TrialState.PRUNED)
_JOURNAL, _RESULTS_LOCK = "study.log", "results.lock"


def record_options(folder: Path, search: Search) -> None:
    """Writes study.yaml, or checks that it records the same options, so that no folder mixes two searches.

    Options that change no result are left out, and those that the file lacks have their defaults; a trial that is kept
    confirms it. Raises UserError for the folder of another search, or one that cannot be written.
    """
    file = folder / "study.yaml"
    options = {
        "log": dict(search.log),
        "train": to_dict(what_is_trained(search.base)),
        "space": {option: repr(distribution) for option, distribution in search.space.items()},
    }
    write_or_check(
        file,
        options,
        begun=file.exists() or (folder / _JOURNAL).exists(),
        refusal=f"{folder} holds a search with other options, another space or another log",
        fix="give another --out",
        as_of_now=with_trained_options,
        confirm=partial(_check_trial, folder, search),
        lock=FileLock(folder / "study.yaml.lock"),
    )


def _check_trial(folder: Path, search: Search) -> None:
    """Raises UserError where a trial was trained with other options than these, whatever study.yaml tells."""
    # Under this lock no other rank deletes the folders of trials.
    with FileLock(folder / _RESULTS_LOCK):
        files = sorted((folder / "trials").glob(f"*/{CONFIG_FILE}"))
        saved = load_config(str(files[0])) if files else None
    if saved is None:
        return
    chosen = {option: attrgetter(option)(saved) for option in search.space}
    expected = replace(search, base=with_values(search.base, chosen)).trial_config({})
    before, now = (to_dict(what_is_trained(each)) for each in (saved, expected))
    if unlike := next(differences(before, now), None):
        raise UserError(f"{files[0].parent} was trained with other options, where {unlike}; give another --out.")


def tune(config: TuneConfig, search: Search) -> None:
    """Runs trials, each on this rank alone, until all ranks together have made `config.trials`.

    Raises UserError if the search does not fit its log or its folder, another one runs in the folder, a trial cannot be
    trained, or none finishes.
    """
    folder = Path(config.out)
    search = resolve_log(search)
    with FolderLock(take_over=search.base.take_over) as lock:
        _own(lock, config.out)
        record_options(folder, search)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        study = optuna.create_study(
            storage=JournalStorage(StudyFile(folder / _JOURNAL)),
            study_name="tune",
            direction="maximize",
            load_if_exists=True,
            sampler=optuna.samplers.TPESampler(),
            pruner=optuna.pruners.MedianPruner(),
        )
        # Trials under way on other ranks are not counted, as they may never end: each rank may make one too many.
        while len(study.get_trials(states=_ENDED, deepcopy=False)) < config.trials:
            lock.confirm()
            # A process group for each trial, as a trial that ends early leaves connections open.
            with join_process_group(alone=True) as process:
                trial = make_trial(study, search, folder=folder, process=process)
            print(progress_line(trial, study, config.trials), flush=True)
        lock.confirm()
        write_results(study, config, search)


def _own(lock: FolderLock, folder: str) -> None:
    """Rank 0 takes the folder; the others, which form no process group with it, see that no other launch has it."""
    if read_ranks(os.environ).rank == 0:
        lock.take(folder, other="--out")
    elif launch_id():
        lock.check(folder, other="--out", allow_launch=True)


class StudyFile(JournalFileBackend):
    """The file of a study's trials; an error of the disk names it and leaves no half line, which would damage it."""

    def __init__(self, path: Path) -> None:
        super().__init__(str(path))
        self.path = path

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Appends a line for each; raises OSError."""
        try:
            with naming_file(self.path):
                super().append_logs(logs)
        except OSError:
            os.truncate(self.path, self.path.read_bytes().rfind(b"\n") + 1)
            raise


def make_trial(study: optuna.Study, search: Search, *, folder: Path, process: Process) -> FrozenTrial:
    """Chooses a setting, trains it, and reports the outcome to the study, also if it is an error."""
    trial, score, state = study.ask(search.space), None, TrialState.FAIL
    try:
        score = run_trial(trial, search, folder=_run_folder(folder, trial.number), process=process)
        state = TrialState.COMPLETE
    except optuna.TrialPruned:
        state = TrialState.PRUNED
    finally:
        outcome = study.tell(trial, score, state)
    return outcome


def run_trial(trial: Trial, search: Search, *, folder: Path, process: Process) -> float:
    """Trains the setting of a trial; returns its best validation score, higher is better.

    Raises optuna.TrialPruned if it lags behind or diverges.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    config = search.trial_config(trial.params)
    # An interrupted trial is not resumed, so it needs no checkpoints.
    config = replace(config, checkpoint=replace(config.checkpoint, minutes=None, steps=None), output_dir=str(folder))
    scores: list[float] = []

    def watch(metrics: Metrics) -> None:
        if any(task.has_diverged for task in metrics.values()):
            raise DivergedError("the predictions are not numbers anymore.")
        scores.append(WatchedMetric(config.train.metric, list(metrics)).score(metrics))
        trial.report(max(scores), step=len(scores))
        if trial.should_prune():
            raise optuna.TrialPruned

    with naming_file(folder / "log.txt"), (folder / "log.txt").open("w") as log, redirect_stdout(log):
        try:
            train(config, process, watch=watch)
        except DivergedError as error:
            log_rank0(f"the trial ends: {error}")
            raise optuna.TrialPruned from error
    return max(scores)


def progress_line(trial: FrozenTrial, study: optuna.Study, trials: int) -> str:
    """`trial 3, 4 of 50: 0.74211  (best 0.74530 of trial 1)  model.dropout=0.1`."""
    ended = len(study.get_trials(states=_ENDED, deepcopy=False))
    score = f"{trial.value:.5f}" if trial.state == TrialState.COMPLETE else "pruned"
    best = _best(study)
    so_far = "none finished" if best is None else f"best {best.value:.5f} of trial {best.number}"
    values = "  ".join(f"{k}={v:.3g}" if isinstance(v, float) else f"{k}={v}" for k, v in trial.params.items())
    return f"trial {trial.number}, {ended} of {trials}: {score}  ({so_far})  {values}"


def write_results(study: optuna.Study, config: TuneConfig, search: Search) -> None:
    """Writes trials.parquet and best.yaml; deletes the run folders of the other trials without --keep-runs.

    Every rank calls it after its trials, so the last one writes all trials. Raises UserError if none has finished.
    """
    folder = Path(config.out)
    with FileLock(folder / _RESULTS_LOCK):
        best = _best(study)
        if best is None:
            raise UserError(
                f"no trial in {folder} has finished: all were pruned, for the reasons in trials/*/log.txt; raise "
                "--trials, or search lower learning rates in another --out."
            )
        trials = study.get_trials(deepcopy=False)
        options = list(dict.fromkeys(option for trial in trials for option in trial.params))
        rows = [
            {"trial": t.number, "state": t.state.name, "score": t.value, "best": t.number == best.number}
            | {option: t.params.get(option) for option in options}
            for t in trials
        ]
        with whole_file(folder / "trials.parquet") as new:
            pq.write_table(pa.Table.from_pylist(rows), new)
        write_text(folder / "best.yaml", dump_config(search.trial_config(best.params)))
        for trial in trials if not config.keep_runs else ():
            if trial.state in _ENDED and trial.number != best.number:
                shutil.rmtree(_run_folder(folder, trial.number), ignore_errors=True)


def _run_folder(folder: Path, trial: int) -> Path:
    return folder / "trials" / f"{trial:04d}"


def _best(study: optuna.Study) -> FrozenTrial | None:
    try:
        return study.best_trial
    except ValueError:
        # No trial has finished.
        return None
