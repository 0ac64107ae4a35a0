"""The command line of a comparison, checked before anything is trained."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from stem_torchrec.comparison.comparable import edges_ascend
from stem_torchrec.comparison.compare_config import CompareConfig
from stem_torchrec.comparison.grid_search import Budget, Grid
from stem_torchrec.comparison.parts import Part, parts_of
from stem_torchrec.comparison.runs import Run
from stem_torchrec.comparison.settings import Lists, Space, setting_of
from stem_torchrec.comparison.variants import ARCH, SPACES, Variant, built_in, option_of_model, read_variants
from stem_torchrec.config import TrainConfig
from stem_torchrec.config.command_line import parse_known_arguments
from stem_torchrec.models.table import MODELS
from stem_torchrec.runtime.errors import UserError, nearest
from stem_torchrec.training.configuration import config_from_command_line
from stem_torchrec.tuning.search_space import read_space

_DESCRIPTION = """\
Compares models on one log: trains each with each seed, on the same rows in the same order, and writes a report to
--out.

The options of stem_torchrec/train.py (--recipe, --config, --data.path, --train.patience, ...) set how each is trained;
python stem_torchrec/train.py --help lists them."""


@dataclass(frozen=True)
class Request:
    """A comparison whose command line has been checked; `resolve_log` fills in what depends on the log."""

    config: CompareConfig
    train: TrainConfig
    runs: tuple[Run, ...]
    """One for each model and seed."""
    grid: Grid | None
    """What to tune, if anything."""
    variants: Mapping[str, Variant]
    """The models by name."""
    pair: tuple[str, str] | None = None
    """The two tasks of the comparable samples; None for a log without two binary tasks."""
    log: Mapping[str, str] = field(default_factory=dict)
    """The fingerprint of each split."""

    def parts(self) -> dict[str, list[Part]]:
        """The parts of each model."""
        return {run.model: parts_of(run.model, self.train.data.labels, self.variants) for run in self.runs}


def read_command_line(args: Sequence[str] | None = None) -> Request:
    """The comparison that a command line describes; raises UserError for options that make no sense."""
    config, rest = parse_known_arguments(CompareConfig(), args, description=_DESCRIPTION)
    if config.logs:
        rest = [*rest, *log_options(config.logs, rest)]
    train = config_from_command_line(rest)
    if not config.out:
        raise UserError("--out is missing; name the folder for the results, as in --out DIR.")
    if train.checkpoint.folder is not None or train.resume != "auto":
        raise UserError(
            "--checkpoint.folder and --resume do not apply: every run of a comparison keeps its own checkpoints; leave "
            "them out."
        )
    if train.sharding.plan is not None:
        raise UserError(
            "--sharding.plan pins the tables of one model, but every model has its own; give --sharding.rules or .type."
        )
    of_file = read_variants(config.variants, train) if config.variants else {}
    variants = {name: {**built_in(), **of_file}[name] for name in _models(config, of_file)}
    _check_spaces(config, train, variants.values())
    seeds = _seeds(config.seeds)
    if config.split in ("train", "valid"):
        raise UserError(
            f"--split is {config.split!r}, on which models are trained or chosen; give another such as test."
        )
    if not edges_ascend(config.ratio_edges):
        raise UserError(f"--ratio-edges is {list(config.ratio_edges)}, but must ascend from above 0, such as 0.5 2.")
    folder = Path(config.out)
    runs = tuple(Run(model, seed, folder / "runs" / model / f"seed_{seed}") for seed in seeds for model in variants)
    return Request(config, train, runs, _grid(config, train, variants.values(), seeds[0]), variants)


def _models(config: CompareConfig, of_file: Mapping[str, Variant]) -> list[str]:
    names, known = split_names(config.models), [*built_in(), *of_file]
    models = list(dict.fromkeys(m for name in names for m in (MODELS if name == "all" else [name])))
    for name in [*models, config.base]:
        if name not in known:
            raise UserError(f"there is no model {name!r}, only all, {', '.join(known)}{nearest(name, known)}")
    if config.base not in models:
        raise UserError(f"--base is {config.base!r}, which is not among --models {config.models}; add it.")
    return models


def _seeds(text: str) -> list[int]:
    named = split_names(text)
    seeds = {int(seed) for seed in named if re.fullmatch("[0-9]{1,10}", seed) and int(seed) < 2**32}
    if not named or len(seeds) < len(named):
        raise UserError(f"--seeds is {text!r}, but must be different whole numbers below 2^32, such as 0,1,2.")
    return [int(seed) for seed in named]


def _check_spaces(config: CompareConfig, train: TrainConfig, variants: Iterable[Variant]) -> None:
    """Raises UserError where models with spaces of their own would be told apart by other rows than those of all."""
    for each in variants:
        if not each.sets(SPACES):
            continue
        if train.data.spaces:
            raise UserError(
                f"{each.place}: {SPACES} and --data.spaces differ in the rows that a task is tested on; leave "
                f"--data.spaces out, and give each model its own {SPACES}."
            )
        if config.recommend:
            raise UserError(
                f"{each.place}: {SPACES} lets it validate on other rows than the other models, by which --recommend "
                "chooses; leave one of both out."
            )


def log_options(logs: Sequence[str], others: Sequence[str]) -> list[str]:
    """The option of train.py that names the first of several logs; raises UserError for logs that are named twice."""
    if len(set(logs)) < max(2, len(logs)):
        raise UserError(f"--logs is {' '.join(logs)}, but must be two or more different folders; give others.")
    if any(option.partition("=")[0] == "--data.path" for option in others):
        raise UserError("--logs and --data.path both name logs; leave one of them out.")
    return ["--data.path", logs[0]]


def _grid(config: CompareConfig, train: TrainConfig, variants: Iterable[Variant], seed: int) -> Grid | None:
    if not config.tune:
        if config.learning_rates or config.embedding_l2 or config.space:
            raise UserError("--learning-rates, --embedding-l2 and --space are what --tune chooses from; add --tune.")
        if config.tune_runs or config.tune_minutes:
            raise UserError("--tune-runs and --tune-minutes are the budget of --tune; add --tune.")
        return None
    if config.tune_runs and config.tune_minutes:
        raise UserError("--tune-runs and --tune-minutes are two budgets; leave one of them out.")
    variants, has_budget = [*variants], bool(config.tune_runs or config.tune_minutes)
    choices = _space(config, train, variants, has_budget) if config.space else _lists(config, train, has_budget)
    for each in variants:
        if (option := each.sets(*choices.options)) is not None:
            raise UserError(f"{each.place}: {option} is chosen by --tune; leave one of both out.")
    first = setting_of(train, choices.options)
    budget = Budget(first, config.tune_runs, config.tune_minutes) if has_budget else None
    return Grid(choices, seed, Path(config.out) / "tuning", budget)


def _lists(config: CompareConfig, train: TrainConfig, has_budget: bool) -> Lists:
    rates = config.learning_rates or tuple(factor * train.sparse.learning_rate for factor in (0.5, 1.0, 2.0))
    if has_budget and min(rates) <= 0:
        raise UserError(
            f"--learning-rates has {min(rates):g}, but with a budget rates are drawn above 0; leave it out."
        )
    return Lists(rates, config.embedding_l2 or tuple(sorted({0.0, 0.1, train.model.embedding_l2})))


def _space(config: CompareConfig, train: TrainConfig, variants: Sequence[Variant], has_budget: bool) -> Space:
    """The space of `--space`, whose options are those of every model."""
    if config.learning_rates or config.embedding_l2:
        raise UserError("--space takes the place of --learning-rates and --embedding-l2; leave one of both out.")
    file = config.space or ""
    for each in variants:
        of_model = each.configure(train)
        distributions = read_space(file, of_model)
        for option in distributions:
            try:
                if option_of_model(option, of_model) in (ARCH, SPACES):
                    raise UserError(f"{option} is what models differ in, or are judged by; leave it out.")
            except UserError as error:
                raise UserError(f"{file}: {error}") from error
    space = Space(distributions)
    if space.ranges and not has_budget:
        raise UserError(
            f"{file}: {space.ranges[0]} has a range, from which a budget alone draws; give a list, or --tune-runs."
        )
    return space


def split_names(text: str) -> list[str]:
    """The names in a text that commas separate."""
    return [part.strip() for part in text.split(",") if part.strip()]
