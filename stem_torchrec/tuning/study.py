"""A study: the trials of a search in one folder, made by all ranks, and the best setting of them all."""

import os
import shutil
from dataclasses import replace
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any

import optuna
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from filelock import FileLock
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from stem_torchrec.config.files import dump_config, what_is_trained
from stem_torchrec.config.serialization import to_dict
from stem_torchrec.runtime.errors import UserError
from stem_torchrec.runtime.folder_lock import FolderLock
from stem_torchrec.runtime.launch_environment import read_ranks
from stem_torchrec.runtime.owner_file import launch_id
from stem_torchrec.runtime.paths import write_text
from stem_torchrec.runtime.process import join_process_group
from stem_torchrec.runtime.whole_file import naming_file, whole_file
from stem_torchrec.training.configuration import load_config, with_trained_options, with_values
from stem_torchrec.training.recorded_options import differences, write_or_check
from stem_torchrec.training.run_folder import CONFIG_FILE
from stem_torchrec.tuning.options import TuneConfig
from stem_torchrec.tuning.search_space import Search, resolve_log
from stem_torchrec.tuning.trial import make_trial, refusal_of, run_folder
from stem_torchrec.tuning.untrained import check_space

_ENDED = (TrialState.COMPLETE, TrialState.PRUNED)
_JOURNAL, _RESULTS_LOCK = "study.log", "results.lock"
_MOST_REFUSED = 10
"""Refused trials for each one that a search makes, after which it ends."""


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
        files = _built_trials(folder)
        saved = load_config(str(files[0])) if files else None
    if saved is None:
        return
    chosen = {option: attrgetter(option)(saved) for option in search.space}
    expected = replace(search, base=with_values(search.base, chosen)).trial_config({})
    before, now = (to_dict(what_is_trained(each)) for each in (saved, expected))
    if unlike := next(differences(before, now), None):
        raise UserError(f"{files[0].parent} was trained with other options, where {unlike}; give another --out.")


def _built_trials(folder: Path) -> list[Path]:
    """The configurations of the trials in a folder that no run refused, as far as they are kept."""
    return sorted((folder / "trials").glob(f"*/{CONFIG_FILE}"))


def tune(config: TuneConfig, search: Search) -> None:
    """Runs trials, each on this rank alone, until all ranks together have made `config.trials`, without refused ones.

    Raises UserError if the search does not fit its log or its folder, another one runs in the folder, no setting can be
    trained, or no trial finishes.
    """
    folder = Path(config.out)
    search = resolve_log(search)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    # A search that goes on has shown that its space can be trained.
    if not _built_trials(folder):
        check_space(search, folder)
    with FolderLock(take_over=search.base.take_over) as lock:
        _own(lock, config.out)
        record_options(folder, search)
        study = optuna.create_study(
            storage=JournalStorage(StudyFile(folder / _JOURNAL)),
            study_name="tune",
            direction="maximize",
            load_if_exists=True,
            sampler=optuna.samplers.TPESampler(),
            pruner=optuna.pruners.MedianPruner(),
        )
        # Trials under way on other ranks are not counted, as they may never end: each rank may make one too many.
        while (left := config.trials - _trained(study)) > 0 and _refused(study) < _MOST_REFUSED * config.trials:
            lock.confirm()
            # A process group for each trial, as a trial that ends early leaves connections open.
            with join_process_group(alone=True) as process:
                trial = make_trial(study, search, folder=folder, process=process)
            # torch keeps what a trial on a GPU has freed, after one without enough memory all of it; NCCL needs some.
            torch.cuda.empty_cache()
            print(progress_line(trial, study, config.trials), flush=True)
        if left > 0:
            print(f"the search ends: {_refused(study)} settings of the space were refused; narrow it in another --out")
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


def progress_line(trial: FrozenTrial, study: optuna.Study, trials: int) -> str:
    """`trial 3, 4 of 50: 0.74211  (best 0.74530 of trial 1)  model.dropout=0.1`; of a refused one also the reason."""
    refusal = refusal_of(trial)
    score = f"{trial.value:.5f}" if trial.state == TrialState.COMPLETE else "refused" if refusal else "pruned"
    best = _best(study)
    so_far = "none finished" if best is None else f"best {best.value:.5f} of trial {best.number}"
    values = "  ".join(f"{k}={v:.3g}" if isinstance(v, float) else f"{k}={v}" for k, v in trial.params.items())
    reason = f"\n  {refusal}" if refusal else ""
    return f"trial {trial.number}, {_trained(study)} of {trials}: {score}  ({so_far})  {values}{reason}"


def write_results(study: optuna.Study, config: TuneConfig, search: Search) -> None:
    """Writes trials.parquet and best.yaml; deletes the run folders of the other trials without --keep-runs.

    Every rank calls it after its trials, so the last one writes all trials. Raises UserError if none has finished.
    """
    folder = Path(config.out)
    with FileLock(folder / _RESULTS_LOCK):
        best = _best(study)
        if best is None:
            raise UserError(
                f"no trial in {folder} has finished: all were pruned or refused, for the reasons in trials/*/log.txt; "
                "raise --trials, or search lower learning rates in another --out."
            )
        trials = study.get_trials(deepcopy=False)
        options = list(dict.fromkeys(option for trial in trials for option in trial.params))
        rows = [
            {"trial": t.number, "state": _state(t), "score": t.value, "best": t.number == best.number}
            | {option: t.params.get(option) for option in options}
            | {"reason": refusal_of(t)}
            for t in trials
        ]
        with whole_file(folder / "trials.parquet") as new:
            pq.write_table(pa.Table.from_pylist(rows), new)
        write_text(folder / "best.yaml", dump_config(search.trial_config(best.params)))
        for trial in trials if not config.keep_runs else ():
            if trial.state in _ENDED and trial.number != best.number:
                shutil.rmtree(run_folder(folder, trial.number), ignore_errors=True)


def _trained(study: optuna.Study) -> int:
    """Trials that have ended, without refused ones."""
    return len(study.get_trials(states=_ENDED, deepcopy=False)) - _refused(study)


def _refused(study: optuna.Study) -> int:
    return sum(refusal_of(trial) is not None for trial in study.get_trials(deepcopy=False))


def _state(trial: FrozenTrial) -> str:
    return trial.state.name if refusal_of(trial) is None else "REFUSED"


def _best(study: optuna.Study) -> FrozenTrial | None:
    try:
        return study.best_trial
    except ValueError:
        # No trial has finished.
        return None
