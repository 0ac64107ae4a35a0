"""Searches for the best setting of a model, by validation; each rank runs trials of its own.

python stem_torchrec/tune.py --data.path DIR --trials 50 --out DIR
torchrun --nproc-per-node 2 stem_torchrec/tune.py --data.path DIR --trials 50 --out DIR
"""

import math
import shutil
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import dacite
import optuna
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from filelock import FileLock
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, Trial, TrialState

from stem_torchrec.cli import parse_known_arguments, run_main
from stem_torchrec.config import TrainConfig
from stem_torchrec.config_file import config_from_command_line, dump_config
from stem_torchrec.early_stopping import EarlyStopping, Metrics
from stem_torchrec.errors import UserError, reason_of
from stem_torchrec.limits import check_limits
from stem_torchrec.plain import from_plain, to_plain
from stem_torchrec.process import Process, join_process_group
from stem_torchrec.train import log_folder, train

Space = Mapping[str, BaseDistribution]

SPACE: Mapping[str, Any] = {
    "model.num_shared_experts": [1, 2, 4, 8],
    "model.num_task_experts": [1, 2, 4],
    "model.embedding_l2": {"low": 1e-3, "high": 5.0, "log": True},
    "model.dropout": {"low": 0.0, "high": 0.3, "step": 0.1},
}
"""The search space of the published experiments (arXiv 2308.13537): a list is a choice, a mapping a range. Their
L2 is 1e-6 to 5e-3, on whole tables in every step; ours is divided by the rows of a batch, so some 1000 times that."""

_DESCRIPTION = """\
Searches for the setting of a model that validates best (--train.metric), with Optuna: the same command goes on where an
interrupted one stopped, and ranks run trials side by side.

The options of stem_torchrec/train.py (--recipe, --config, --data.path, --model.arch, ...) say what each trial trains;
python stem_torchrec/train.py --help lists them."""


@dataclass(frozen=True)
class TuneConfig:
    """What to search, beside the options of train.py."""

    out: str = ""
    """Folder for the study, a run folder for each trial, best.yaml and trials.parquet."""
    trials: int = 50
    """Trials in all, over all ranks and calls."""
    space: str = ""
    """A YAML file of options to choices ([1, 2, 4]) or ranges ({low: 1e-3, high: 5.0, log: true}); by default the
    published one: shared experts 1 to 8, task experts 1 to 4, embedding L2 1e-3 to 5, dropout 0 to 0.3."""
    keep_runs: bool = False
    """Keeps the run folder of every trial, not only that of the best."""


def read_command_line(args: Sequence[str] | None = None) -> tuple[TuneConfig, TrainConfig, Space]:
    """What to search, where it starts from, and the space; raises UserError for what makes no sense."""
    config, rest = parse_known_arguments(TuneConfig(), args, description=_DESCRIPTION)
    base = config_from_command_line(rest)
    check_limits(base)
    if not config.out:
        raise UserError("say where the results go: --out DIR.")
    if config.trials < 1:
        raise UserError(f"--trials is {config.trials}, but must be at least 1.")
    space = read_space(config.space, base) if config.space else to_space(SPACE, base, "the published space")
    return config, base, space


def read_space(path: str, base: TrainConfig) -> Space:
    """A search space from a file; raises UserError with the option that is wrong."""
    try:
        space = yaml.safe_load(Path(path).read_text())
    except (OSError, yaml.YAMLError) as error:
        raise UserError(f"--space {path} cannot be read ({reason_of(error)}); give a YAML file.") from error
    if not isinstance(space, dict) or not space:
        raise UserError(f"{path} is no mapping of options to choices; write lines like `model.dropout: [0.0, 0.1]`.")
    return to_space(space, base, path)


def to_space(space: Mapping[str, Any], base: TrainConfig, where: str) -> Space:
    """Optuna's distributions of a space, with every value in the type of its option, and within its limits.

    Raises UserError with the option that is wrong.
    """
    found: dict[str, BaseDistribution] = {}
    for option, values in space.items():
        is_range = isinstance(values, dict) and {"low", "high"} <= set(values)
        if not is_range and not (isinstance(values, list) and values):
            raise UserError(f"{where}: {option} is {values!r}, but must be a list, or a mapping with low and high.")
        given = (values["low"], values["high"]) if is_range else values
        # YAML reads 1e-6 as text; the option says that it is a number.
        typed = [_checked(base, option, value) for value in given]
        try:
            if not is_range:
                found[option] = CategoricalDistribution(typed)
            elif isinstance(typed[0], int):
                found[option] = IntDistribution(**{**values, "low": typed[0], "high": typed[1]})
            else:
                found[option] = FloatDistribution(**{**values, "low": typed[0], "high": typed[1]})
        except (TypeError, ValueError) as error:
            raise UserError(f"{where}: {option} is {values!r}, which is no range: {error}") from error
    return found


def _checked(base: TrainConfig, option: str, value: Any) -> Any:
    """A value as the configuration holds it."""
    config: Any = with_values(base, {option: value})
    check_limits(config)
    for name in option.split("."):
        config = getattr(config, name)
    return config


def with_values(config: TrainConfig, values: Mapping[str, Any]) -> TrainConfig:
    """`config` with fields, by path as in `model.dropout`, replaced; raises UserError for one that is wrong."""
    plain = to_plain(config)
    for path, value in values.items():
        section, last = plain, path.split(".")[-1]
        for name in path.split(".")[:-1]:
            section = section.get(name, {})
        if last not in section:
            raise UserError(f"there is no option {path!r} to search over; train.py --help lists them.")
        section[last] = value
    try:
        return from_plain(TrainConfig, plain)
    except (dacite.DaciteError, ValueError) as error:
        raise UserError(f"a value of the search space does not fit: {reason_of(error)}.") from error


def suggest(trial: Trial, space: Space) -> dict[str, Any]:
    """A value for each option, by the sampler of the study."""
    values: dict[str, Any] = {}
    for option, d in space.items():
        if isinstance(d, CategoricalDistribution):
            values[option] = trial.suggest_categorical(option, d.choices)
        elif isinstance(d, IntDistribution):
            values[option] = trial.suggest_int(option, d.low, d.high, step=d.step, log=d.log)
        elif isinstance(d, FloatDistribution):
            values[option] = trial.suggest_float(option, d.low, d.high, step=d.step, log=d.log)
    return values


def run_trial(trial: Trial, config: TuneConfig, base: TrainConfig, space: Space, process: Process) -> float:
    """Trains once; returns the best validation score, higher is better. Raises TrialPruned for one that lags behind."""
    folder = Path(config.out) / "trials" / f"{trial.number:04d}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    chosen = replace(with_values(base, suggest(trial, space)), output_dir=str(folder))
    scores: list[float] = []

    def watch(metrics: Metrics) -> None:
        if any(math.isnan(task.logloss) for task in metrics.values() if task.rows):
            raise optuna.TrialPruned  # It has diverged.
        scores.append(EarlyStopping(base.train.metric, None, list(metrics)).score(metrics))
        trial.report(max(scores), step=len(scores))
        if trial.should_prune():
            raise optuna.TrialPruned

    with (folder / "log.txt").open("w") as log, redirect_stdout(log):
        train(chosen, process, watch=watch)
    return max(scores)


def tune(config: TuneConfig, base: TrainConfig, space: Space, process: Process) -> None:
    """Runs trials until all ranks together have made as many as asked; process is a rank of one."""
    folder = Path(config.out)
    folder.mkdir(parents=True, exist_ok=True)
    base = replace(base, data=replace(base.data, path=log_folder(base.data)))
    claim_folder(folder, base, space)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        storage=JournalStorage(JournalFileBackend(str(folder / "study.log"))),
        study_name="tune",
        direction="maximize",
        load_if_exists=True,
        sampler=optuna.samplers.TPESampler(),
        pruner=optuna.pruners.MedianPruner(),
    )
    counted = (TrialState.COMPLETE, TrialState.PRUNED)

    def tell(study: optuna.Study, trial: FrozenTrial) -> None:
        finished = study.get_trials(states=(TrialState.COMPLETE,), deepcopy=False)
        best = max(finished, key=lambda t: t.value or 0) if finished else None
        value = "pruned" if trial.value is None or trial.state == TrialState.PRUNED else f"{trial.value:.5f}"
        values = "  ".join(f"{k}={v:.3g}" if isinstance(v, float) else f"{k}={v}" for k, v in trial.params.items())
        so_far = f"best {best.value:.5f} of trial {best.number}" if best else "none finished"
        ended = len(study.get_trials(states=counted, deepcopy=False))
        print(f"trial {trial.number}, {ended} of {config.trials}: {value}  ({so_far})  {values}", flush=True)

    if len(study.get_trials(states=counted, deepcopy=False)) < config.trials:
        enough = optuna.study.MaxTrialsCallback(config.trials, states=counted)
        study.optimize(
            lambda trial: run_trial(trial, config, base, space, process), callbacks=[tell, enough], gc_after_trial=True
        )
    write_results(study, config, base)


def claim_folder(folder: Path, base: TrainConfig, space: Space) -> None:
    """Writes study.yaml, or raises UserError where it says something else, so that no study mixes two searches."""
    said = {"train": yaml.safe_load(dump_config(base)), "space": {name: repr(d) for name, d in space.items()}}
    file, text = folder / "study.yaml", yaml.safe_dump(said, sort_keys=False)
    with FileLock(f"{file}.lock"):
        if file.exists() and file.read_text() != text:
            raise UserError(f"{folder} holds a search of other options or another space; give another --out.")
        file.write_text(text)


def write_results(study: optuna.Study, config: TuneConfig, base: TrainConfig) -> None:
    """Writes trials.parquet and best.yaml, for `--config`; removes other folders unless they are to stay.

    Every rank calls it when it has ended, so the last one has all trials. Raises UserError where none has finished.
    """
    folder = Path(config.out)
    with FileLock(folder / "results.lock"):
        trials = study.get_trials(deepcopy=False)
        finished = [trial for trial in trials if trial.state == TrialState.COMPLETE]
        if not finished:
            raise UserError(f"no trial in {folder} has finished; look into its log.txt.")
        best = max(finished, key=lambda trial: trial.value or -math.inf)
        options = list(dict.fromkeys(option for trial in trials for option in trial.params))
        rows = [
            {"trial": t.number, "state": t.state.name, "score": t.value, "best": t.number == best.number}
            | {option: t.params.get(option) for option in options}
            for t in trials
        ]
        pq.write_table(pa.Table.from_pylist(rows), folder / "trials.parquet")
        (folder / "best.yaml").write_text(dump_config(with_values(base, best.params)))
        ended = {t.number for t in trials if t.state in (TrialState.COMPLETE, TrialState.PRUNED)}
        for number in ended - {best.number} if not config.keep_runs else ():
            shutil.rmtree(folder / "trials" / f"{number:04d}", ignore_errors=True)


def main() -> None:
    """The command `stem-tune`."""

    def run() -> None:
        config, base, space = read_command_line()
        with join_process_group(alone=True) as process:
            tune(config, base, space, process)

    run_main(run, every_rank_speaks=True)


if __name__ == "__main__":
    main()
