"""The options of a comparison, checked before anything is trained, and the record of them in its folder."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

from annotated_types import Interval

from stem_torchrec.comparison.built_in import built_in
from stem_torchrec.comparison.comparable import EDGES, edges_ascend
from stem_torchrec.comparison.grid_search import Budget, Cell, Grid
from stem_torchrec.comparison.multiplicity import Correction
from stem_torchrec.comparison.parts import Part, parts_of
from stem_torchrec.comparison.runs import Run
from stem_torchrec.comparison.variants import SPACES, Variant
from stem_torchrec.comparison.variants_file import read_variants
from stem_torchrec.config import TrainConfig
from stem_torchrec.config.command_line import parse_known_arguments
from stem_torchrec.models.table import MODELS
from stem_torchrec.runtime.errors import UserError, nearest
from stem_torchrec.runtime.path_options import LocalFile, LocalOutput
from stem_torchrec.training.configuration import config_from_command_line

_DESCRIPTION = """\
Compares models on one log: trains each with each seed, on the same rows in the same order, and writes a report to
--out.

The options of stem_torchrec/train.py (--recipe, --config, --data.path, --train.patience, ...) set how each is trained;
python stem_torchrec/train.py --help lists them."""


@dataclass(frozen=True)
class CompareConfig:
    """What to compare, beside the options of train.py."""

    out: LocalOutput = ""
    """Folder for the runs and the report. The same command resumes an interrupted comparison."""
    models: str = "stem,duet_by_task,single_task"
    """Models, separated by commas: those of --model.arch, `all` for all of them, the ablations stem_reads_own,
    stem_trains_all, stem_gate_task, stem_gate_shared, stem_alone (a STEM for each task), STEM with one method more:
    stem_norm, stem_cross, stem_cross_norm, stem_feature_gate, stem_self_gate, stem_gates, stem_covariance, stem_focal,
    stem_smoothed, stem_pairs, stem_jrc, stem_positives, stem_uncertainty, stem_dwa, stem_pareto, stem_pcgrad,
    stem_cagrad, stem_gradcraft, stem_mgda, stem_by_task and duet_by_task (the best weights of each task), duet_mlp,
    escm2_dr, stem_published and single_task_published (with the options of the public code, whatever those of this
    command line are), and those of --variants."""
    variants: LocalFile | None = None
    """YAML file of further models, each a name with options of train.py over those of this command line:
    `stem_wide: {model.arch: stem, model.embedding_dim: 32}`. `alone: true` trains one for each task by itself,
    `recipe: published` starts from a recipe."""
    seeds: str = "0,1,2"
    """Seeds, separated by commas; every model trains with each."""
    base: str = "single_task"
    """The model that the others are compared with."""
    logs: tuple[str, ...] = ()
    """Folders of several logs in place of --data.path, such as one source split by other seeds or by other days: each
    model trains on each, and the report is on the test rows of all. Their group must be the same raw ids."""
    split: str = "test"
    """The split to report on: one on which nothing was chosen, so neither train nor valid."""
    resamples: Annotated[int, Interval(ge=1, le=10**6)] | None = None
    """Draws of users behind each interval and p-value; by default as many as the number of comparisons needs, from 1000
    to 20,000."""
    correction: Correction = "holm"
    """How p-values are adjusted for the number of comparisons: holm bounds the probability that any is wrong,
    benjamini_hochberg the expected share of wrong ones among the differences that are found."""
    confidence: Annotated[float, Interval(gt=0, lt=1)] = 0.95
    """Share of the draws that an interval covers."""
    recommend: bool = False
    """Ends in a line on which model to take: the one that validates best, if the test rows confirm it over --base. Of
    two forms that differ in --train.best-by-task, that with the weights of each task has to be confirmed as well."""
    pair: str = ""
    """The two tasks of the comparable-samples analysis, separated by a comma; by default the first two whose labels are
    0 and 1."""
    ratio_edges: tuple[Annotated[float, Interval(gt=0, le=1e6)], ...] = EDGES
    """Edges of its bins: how much more of a user's positives are of the first task than over the whole log."""
    item: str = ""
    """The sparse feature that identifies the item, for the same analysis by item; without it only by user."""
    tune: bool = False
    """Chooses --sparse.learning-rate and --model.embedding-l2 for each model from the two lists below, by validation
    (--train.metric) with the first seed, before it trains with all."""
    tune_runs: Annotated[int, Interval(ge=1, le=10**6)] | None = None
    """Settings that each model tries with --tune, instead of all pairs of the two lists: first that of the other
    options, then ones drawn between the ends of the lists, the same for all. A single-task model of a task counts as a
    part of one run, so each tries as many."""
    tune_minutes: Annotated[float, Interval(gt=0, le=1e6)] | None = None
    """Minutes that each model may train for with --tune, instead of a number of settings; single-task models share
    them. What is under way when they end is taken to its end."""
    learning_rates: tuple[Annotated[float, Interval(ge=0, le=1e6)], ...] = ()
    """Learning rates of the tables to choose from; by default --sparse.learning-rate, half of it and twice."""
    embedding_l2: tuple[Annotated[float, Interval(ge=0, le=1e6)], ...] = ()
    """L2 regularization of embeddings to choose from; by default 0, 0.1 and --model.embedding-l2."""


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
        if config.learning_rates or config.embedding_l2:
            raise UserError("--learning-rates and --embedding-l2 are the values that --tune chooses from; add --tune.")
        if config.tune_runs or config.tune_minutes:
            raise UserError("--tune-runs and --tune-minutes are the budget of --tune; add --tune.")
        return None
    for each in variants:
        if (option := each.sets("sparse.learning_rate", "model.embedding_l2")) is not None:
            raise UserError(f"{each.place}: {option} is chosen by --tune; leave one of both out.")
    if config.tune_runs and config.tune_minutes:
        raise UserError("--tune-runs and --tune-minutes are two budgets; leave one of them out.")
    rates = config.learning_rates or tuple(factor * train.sparse.learning_rate for factor in (0.5, 1.0, 2.0))
    l2 = config.embedding_l2 or tuple(sorted({0.0, 0.1, train.model.embedding_l2}))
    for value in (*rates, *l2):
        if not 0 <= value <= 1e6:
            raise UserError(f"--learning-rates or --embedding-l2 has {value}, but must have values from 0 to 1000000.")
    grid = Grid(rates, l2, seed, Path(config.out) / "tuning")
    if not (config.tune_runs or config.tune_minutes):
        return grid
    if min(rates) <= 0:
        raise UserError(
            f"--learning-rates has {min(rates):g}, but with a budget rates are drawn above 0; leave it out."
        )
    first = Cell(train.sparse.learning_rate, train.model.embedding_l2)
    return replace(grid, budget=Budget(first, config.tune_runs, config.tune_minutes))


def split_names(text: str) -> list[str]:
    """The names in a text that commas separate."""
    return [part.strip() for part in text.split(",") if part.strip()]
