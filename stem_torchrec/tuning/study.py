"""Searches for the best setting of a model, by validation; each rank runs trials of its own.

python stem_torchrec/tune.py --data.path DIR --trials 50 --out DIR
torchrun --nproc-per-node 2 stem_torchrec/tune.py --data.path DIR --trials 50 --out DIR
"""

import math
import shutil
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path

import optuna
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from filelock import FileLock
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, Trial, TrialState

from stem_torchrec.config.command_line import parse_known_arguments
from stem_torchrec.config.files import config_from_command_line, dump_config, what_is_trained
from stem_torchrec.config.limits import check_limits
from stem_torchrec.runtime.errors import DivergedError, UserError
from stem_torchrec.runtime.process import Process, join_process_group
from stem_torchrec.runtime.progress import log_rank0
from stem_torchrec.training.run_folder import claim, write_text
from stem_torchrec.training.trainer import train
from stem_torchrec.training.watched_metric import Metrics, WatchedMetric
from stem_torchrec.tuning.search_space import SPACE, Search, fit_to_log, read_space, to_space

_ENDED = (TrialState.COMPLETE, TrialState.PRUNED)
_DESCRIPTION = """\
Searches for the setting of a model that validates best (--train.metric), with Optuna: the same command goes on where an
interrupted one stopped, and ranks run trials side by side.

Trials are evaluated four times in each epoch, unless --train.eval-every says otherwise, so that those that lag behind,
or diverge, end early; --train.patience counts these evaluations. best.yaml asks for as many, on one rank. A trial
writes no checkpoints.

The options of stem_torchrec/train.py (--recipe, --config, --data.path, --model.arch, ...) say what each trial trains;
python stem_torchrec/train.py --help lists them."""


@dataclass(frozen=True)
class TuneConfig:
    """What to search, beside the options of train.py."""

    out: str = ""
    """Folder for the study, a run folder for each trial, best.yaml and trials.parquet."""
    trials: int = 50
    """Trials in all, over all ranks and calls, those that end early among them."""
    space: str = ""
    """A YAML file of options to choices ([1, 2, 4]) or ranges ({low: 1e-3, high: 5.0, log: true}); by default the
    published one: shared experts 1 to 8, task experts 1 to 4, embedding L2 1e-3 to 5, dropout 0 to 0.3."""
    keep_runs: bool = False
    """Keeps the run folder of every trial, not only that of the best."""


def read_command_line(args: Sequence[str] | None = None) -> tuple[TuneConfig, Search]:
    """How to search, and what; raises UserError for what makes no sense."""
    config, rest = parse_known_arguments(TuneConfig(), args, description=_DESCRIPTION)
    base = config_from_command_line(rest)
    check_limits(base)
    if not config.out:
        raise UserError("say where the results go: --out DIR.")
    if config.trials < 1:
        raise UserError(f"--trials is {config.trials}, but must be at least 1.")
    if base.checkpoint.folder is not None or base.resume != "auto":
        raise UserError(
            "--checkpoint.folder and --resume would be one for all trials, which start anew; leave them out."
        )
    space = read_space(config.space, base) if config.space else to_space(SPACE, base, "the published space")
    return config, Search(base, space)


def claim_folder(folder: Path, search: Search) -> None:
    """Writes study.yaml, or checks that it says the same, so that no study mixes two searches.

    Options that change no result are left out. Raises UserError for the folder of another search, or one that cannot be
    written.
    """
    said = {
        "train": yaml.safe_load(dump_config(what_is_trained(search.base))),
        "space": {option: repr(distribution) for option, distribution in search.space.items()},
    }
    claim(
        folder / "study.yaml",
        said,
        refusal=f"{folder} holds a search of other options or another space; give another --out.",
        lock=FileLock(folder / "study.yaml.lock"),
    )


def tune(config: TuneConfig, search: Search) -> None:
    """Runs trials, each on this rank alone, until all ranks together have made as many as asked.

    Raises UserError where the search does not fit its log or its folder, a trial cannot be trained, or none finishes.
    """
    folder = Path(config.out)
    search = fit_to_log(search)
    claim_folder(folder, search)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        storage=JournalStorage(JournalFileBackend(str(folder / "study.log"))),
        study_name="tune",
        direction="maximize",
        load_if_exists=True,
        sampler=optuna.samplers.TPESampler(),
        pruner=optuna.pruners.MedianPruner(),
    )
    # What other ranks have under way is not counted, as it may never end: each may make one more.
    while len(study.get_trials(states=_ENDED, deepcopy=False)) < config.trials:
        # Groups of its own for each trial, as one that ends early leaves its connections open.
        with join_process_group(alone=True) as process:
            trial = make_trial(study, search, folder, process)
        print(progress_line(trial, study, config.trials), flush=True)
    write_results(study, config, search)


def make_trial(study: optuna.Study, search: Search, folder: Path, process: Process) -> FrozenTrial:
    """Chooses, trains, and tells the study how that ended, be it by an error."""
    trial, score, state = study.ask(search.space), None, TrialState.FAIL
    try:
        score, state = run_trial(trial, search, _run_folder(folder, trial.number), process), TrialState.COMPLETE
    except optuna.TrialPruned:
        state = TrialState.PRUNED
    finally:
        told = study.tell(trial, score, state)
    return told


def run_trial(trial: Trial, search: Search, folder: Path, process: Process) -> float:
    """Trains once; returns the best validation score, higher is better.

    Raises optuna.TrialPruned for one that lags behind or diverges.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    config = search.chosen(trial.params)
    # One that is interrupted is not gone on with.
    config = replace(config, checkpoint=replace(config.checkpoint, minutes=None, steps=None), output_dir=str(folder))
    scores: list[float] = []

    def watch(metrics: Metrics) -> None:
        if any(math.isnan(task.logloss) for task in metrics.values() if task.rows):
            raise DivergedError("predictions are not numbers any more.")
        scores.append(WatchedMetric(config.train.metric, list(metrics)).score(metrics))
        trial.report(max(scores), step=len(scores))
        if trial.should_prune():
            raise optuna.TrialPruned

    with (folder / "log.txt").open("w") as log, redirect_stdout(log):
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
    """Writes trials.parquet and best.yaml, for `--config`; removes other folders unless they are to stay.

    Every rank calls it when it has ended, so the last one has all trials. Raises UserError where none has finished.
    """
    folder = Path(config.out)
    with FileLock(folder / "results.lock"):
        best = _best(study)
        if best is None:
            raise UserError(
                f"no trial in {folder} has finished: all were pruned, and trials/*/log.txt say why; raise "
                "--trials, or search lower learning rates in another --out."
            )
        trials = study.get_trials(deepcopy=False)
        options = list(dict.fromkeys(option for trial in trials for option in trial.params))
        rows = [
            {"trial": t.number, "state": t.state.name, "score": t.value, "best": t.number == best.number}
            | {option: t.params.get(option) for option in options}
            for t in trials
        ]
        pq.write_table(pa.Table.from_pylist(rows), folder / "trials.parquet")
        write_text(folder / "best.yaml", dump_config(search.chosen(best.params)))
        for trial in trials if not config.keep_runs else ():
            if trial.state in _ENDED and trial.number != best.number:
                shutil.rmtree(_run_folder(folder, trial.number), ignore_errors=True)


def _run_folder(folder: Path, trial: int) -> Path:
    return folder / "trials" / f"{trial:04d}"


def _best(study: optuna.Study) -> FrozenTrial | None:
    try:
        return study.best_trial
    except ValueError:
        # None has finished.
        return None
