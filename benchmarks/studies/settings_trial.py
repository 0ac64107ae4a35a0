"""Settings of training on logs of several kinds, each trained with several seeds and scored on the validation split."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated

from annotated_types import Interval

from stem_torchrec.comparison.compare_config import CompareConfig
from stem_torchrec.comparison.parts import parts_of
from stem_torchrec.comparison.runs import Run, train_and_test
from stem_torchrec.comparison.scored_rows import Comparison
from stem_torchrec.config import TrainConfig, parse_known_arguments
from stem_torchrec.data.columns import Columns
from stem_torchrec.data.schema import load_schema
from stem_torchrec.runtime.errors import UserError
from stem_torchrec.runtime.path_options import LocalOutput
from stem_torchrec.runtime.process import Process, from_first_rank, join_process_group
from stem_torchrec.runtime.progress import log_rank0
from stem_torchrec.training.configuration import config_from_command_line
from stem_torchrec.training.open_fields import with_open_fields

from common.output import check_out, make_folder
from studies.settings_report import write_report

_PUBLISHED_SIZES = (
    *("--recipe", "log", "--model.num-shared-experts", "8", "--model.expert-hidden", "512", "512", "512"),
    *("--model.gate-hidden", "128", "64", "--model.tower-hidden", "128", "64"),
)
_TABLES_STAY = ("--train.no-fresh-tables", "--train.eval-every", "0", "--train.patience", "4")

SETTINGS: Mapping[str, tuple[str, ...]] = {
    "log": ("--recipe", "log"),
    "published_sizes": _PUBLISHED_SIZES,
    "tables_stay": ("--recipe", "log", *_TABLES_STAY),
    "log_before": (*_PUBLISHED_SIZES, *_TABLES_STAY, "--sparse.eps", "1e-8"),
    "eps_1e-8": ("--recipe", "log", "--sparse.eps", "1e-8"),
    "synthetic": ("--recipe", "synthetic"),
    "batch_4096": ("--recipe", "log", "--data.batch-size", "4096"),
    "batch_128": ("--recipe", "log", "--data.batch-size", "128"),
    "batch_1024": ("--recipe", "log", "--data.batch-size", "1024"),
    "batch_512": ("--recipe", "log", "--data.batch-size", "512"),
    "tables_0.005": ("--recipe", "log", "--sparse.learning-rate", "0.005"),
    "tables_0.05": ("--recipe", "log", "--sparse.learning-rate", "0.05"),
    "tables_0.1": ("--recipe", "log", "--sparse.learning-rate", "0.1"),
    "dense_3e-4": ("--recipe", "log", "--dense.learning-rate", "3e-4"),
    "l2_0.1": ("--recipe", "log", "--model.embedding-l2", "0.1"),
    "dropout_0.2": ("--recipe", "log", "--model.dropout", "0.2"),
    "small_experts": ("--recipe", "log", "--model.expert-hidden", "64", "32"),
    "two_passes": ("--recipe", "log", "--train.epochs", "2"),
}
"""What may be tried: options of train.py."""


@dataclass(frozen=True)
class TrialConfig:
    """What to try; options of train.py are taken as well, and count for all settings."""

    logs: tuple[str, ...] = ()
    """Folders of logs, of which train/ and valid/ are read."""
    out: LocalOutput = ""
    """Folder for the runs and for settings.md and settings.parquet. The same command resumes an interrupted trial, and
    settings, logs and seeds may be added."""
    settings: tuple[str, ...] = ("log", "synthetic")
    """Names of settings; the others are compared with the first."""
    seeds: tuple[Annotated[int, Interval(ge=0, le=2**32 - 1)], ...] = (0,)
    """Every setting trains with each."""


MODELS = ("stem", "single_task")


def read_command_line(
    args: Sequence[str] | None = None, *, description: str | None = None
) -> tuple[TrialConfig, list[str]]:
    """What to try, and options of train.py; raises UserError for values that make no sense.

    Args:
        args: the command line, that of this process if None.
        description: what `--help` shows above the options.
    """
    config, rest = parse_known_arguments(TrialConfig(), args, description=description or "")
    check_out(config.out)
    if not config.logs or not config.settings or not config.seeds:
        raise UserError("--logs, --settings and --seeds need at least one value each.")
    for name in config.settings:
        if name not in SETTINGS:
            raise UserError(f"--settings has {name!r}, but the settings are {', '.join(SETTINGS)}.")
    return config, rest


def try_settings(config: TrialConfig, rest: Sequence[str]) -> None:
    """Trains what is missing and writes the report after each setting.

    Args:
        config: what to try.
        rest: options of train.py, for all settings.
    """
    with join_process_group() as process:
        folder = from_first_rank(partial(make_folder, config.out))
        trials: dict[str, list[Run]] = {log: [] for log in config.logs}
        for setting in config.settings:
            for log in config.logs:
                options = [*SETTINGS[setting], "--data.path", log, *rest]
                trained = _trained(config_from_command_line(options), process)
                runs = [
                    Run(f"{setting}/{model}", seed, folder / Path(log).name / setting / model / f"seed_{seed}")
                    for model in MODELS
                    for seed in config.seeds
                ]
                for run in runs:
                    _train(run, trained, process)
                trials[log] += runs
            if process.is_first:
                write_report(folder, [_comparison(config, log, runs) for log, runs in trials.items()])


def _trained(config: TrainConfig, process: Process) -> TrainConfig:
    """The configuration with the labels of its log and what its rows decide."""
    path = config.data.path or ""
    labels = Columns.select(load_schema(path), labels=config.data.labels).labels
    return with_open_fields(replace(config, data=replace(config.data, labels=labels)), path, process)


def _train(run: Run, config: TrainConfig, process: Process) -> None:
    if from_first_rank(lambda: run.done):
        return
    log_rank0(f"\n{run.folder}")
    model = run.model.rpartition("/")[2]
    train_and_test(run, parts_of(model, config.data.labels), config, split="valid", process=process)


def _comparison(config: TrialConfig, log: str, runs: Sequence[Run]) -> Comparison:
    """What the intervals of a comparison are taken of."""
    settings = CompareConfig(out=config.out, split="valid")
    train = TrainConfig()
    return Comparison(settings, replace(train, data=replace(train.data, path=log)), runs, pair=None)
