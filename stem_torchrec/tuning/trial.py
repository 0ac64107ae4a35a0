"""One trial of a search: a setting is chosen, trained on this rank and reported, also where it cannot be trained."""

import shutil
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path

import optuna
from optuna.trial import FrozenTrial, Trial, TrialState

from stem_torchrec.runtime.errors import DivergedError, NoMemoryError, UserError
from stem_torchrec.runtime.memory import naming_lack_of_memory
from stem_torchrec.runtime.process import Process
from stem_torchrec.runtime.progress import log_rank0
from stem_torchrec.runtime.whole_file import naming_file
from stem_torchrec.training.trainer import Trainer
from stem_torchrec.training.watched_metric import Metrics, WatchedMetric
from stem_torchrec.tuning.search_space import Search, resolve_log
from stem_torchrec.tuning.untrained import is_refusal

_REFUSED = "refused"
"""The attribute of a trial that has the sentence by which its setting was refused."""


def make_trial(study: optuna.Study, search: Search, *, folder: Path, process: Process) -> FrozenTrial:
    """Chooses a setting, trains it, and reports the outcome to the study, also if it is an error."""
    trial, score, state = study.ask(search.space), None, TrialState.FAIL
    try:
        score = run_trial(trial, search, folder=run_folder(folder, trial.number), process=process)
        state = TrialState.COMPLETE
    except optuna.TrialPruned:
        state = TrialState.PRUNED
    finally:
        outcome = study.tell(trial, score, state)
    return outcome


def run_trial(trial: Trial, search: Search, *, folder: Path, process: Process) -> float:
    """Trains the setting of a trial; returns its best validation score, higher is better.

    Raises optuna.TrialPruned if its setting is refused or takes more memory than there is, or it lags behind or
    diverges.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with naming_file(folder / "log.txt"), (folder / "log.txt").open("w") as log, redirect_stdout(log):
        try:
            with naming_lack_of_memory():
                return _train(trial, search, folder=folder, process=process)
        except DivergedError as error:
            log_rank0(f"the trial ends: {error}")
            raise optuna.TrialPruned from error
        except NoMemoryError as error:
            # Only a step tells what the activations take, which no check counts before.
            raise _refused(trial, str(error)) from error


def _train(trial: Trial, search: Search, *, folder: Path, process: Process) -> float:
    best: dict[int, float] = {}

    def watch(metrics: Metrics) -> None:
        if any(task.has_diverged for task in metrics.values()):
            raise DivergedError("the predictions are not numbers anymore.")
        # Trials of other batch sizes and with other steps between evaluations have trained on as many rows then.
        quarters = search.quarters_made(trainer.config, trainer.state.step)
        is_first = quarters not in best
        score = WatchedMetric(trainer.config.train.metric, list(metrics)).score(metrics)
        best[quarters] = max([score, *best.values()])
        if is_first:
            trial.report(best[quarters], step=quarters)
            if quarters >= search.prunes_from(trainer.config) and trial.should_prune():
                raise optuna.TrialPruned

    trainer = _build(trial, search, folder=folder, process=process, watch=watch)
    trainer.run()
    return max(best.values())


def _build(
    trial: Trial, search: Search, *, folder: Path, process: Process, watch: Callable[[Metrics], object]
) -> Trainer:
    """The run of a trial before its first step; raises optuna.TrialPruned if its setting is refused."""
    try:
        return Trainer(search.run_config(trial.params, folder), process, watch=watch)
    except UserError as error:
        if not is_refusal(error):
            raise
        resolve_log(search)  # Raises if the log is gone meanwhile, for which no setting is to blame.
        raise _refused(trial, str(error)) from error


def _refused(trial: Trial, sentence: str) -> optuna.TrialPruned:
    """What ends a trial whose setting cannot be trained, for the reason in `sentence`."""
    log_rank0(f"the setting is refused: {sentence}")
    trial.set_user_attr(_REFUSED, sentence)
    # A failed trial would tell the sampler nothing: where half the choices are refused, it then chooses these in
    # eight of ten trials instead of three.
    return optuna.TrialPruned()


def refusal_of(trial: FrozenTrial) -> str | None:
    """The sentence by which the setting of a trial was refused; None if it was trained."""
    refusal: str | None = trial.user_attrs.get(_REFUSED)
    return refusal


def run_folder(folder: Path, trial: int) -> Path:
    """The run folder of a trial by its number, as `trials/0003`."""
    return folder / "trials" / f"{trial:04d}"
