"""The options of a comparison, checked before anything is trained, and the record of them in its folder."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

from annotated_types import Interval

from stem_torchrec.comparison.comparable import EDGES, edges_ascend
from stem_torchrec.comparison.grid_search import Grid
from stem_torchrec.comparison.multiplicity import Correction
from stem_torchrec.comparison.runs import Part, Run, comparable_models, parts_of
from stem_torchrec.config import TrainConfig
from stem_torchrec.config.command_line import parse_known_arguments
from stem_torchrec.config.files import what_is_trained
from stem_torchrec.config.serialization import to_dict
from stem_torchrec.data.columns import Columns
from stem_torchrec.data.files import find_row_groups
from stem_torchrec.data.folder import data_folder
from stem_torchrec.data.footers import fingerprint
from stem_torchrec.data.schema import load_schema
from stem_torchrec.models.build import build_model, check_task_weights
from stem_torchrec.models.table import MODELS, groups_with_tables
from stem_torchrec.runtime.errors import UserError, nearest
from stem_torchrec.runtime.path_options import LocalOutput
from stem_torchrec.sharding.placement import match_rules, parse_rules
from stem_torchrec.starting.source import with_source_path
from stem_torchrec.tables import SHARED, table_configs
from stem_torchrec.training.configuration import config_from_command_line
from stem_torchrec.training.run_folder import write_or_check
from stem_torchrec.training.watched_metric import WatchedMetric

COMPARISON_FILE = "comparison.yaml"
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
    models: str = "stem,single_task,shared_bottom,mmoe,ple"
    """Models, separated by commas: those of --model.arch, `all` for all of them, and the ablations stem_reads_own,
    stem_trains_all, stem_gate_task, stem_gate_shared."""
    seeds: str = "0,1,2"
    """Seeds, separated by commas; every model trains with each."""
    base: str = "single_task"
    """The model that the others are compared with."""
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
    pair: str = ""
    """The two tasks of the comparable-samples analysis, separated by a comma; by default the first two."""
    ratio_edges: tuple[Annotated[float, Interval(gt=0, le=1e6)], ...] = EDGES
    """Edges of its bins: how much more of a user's positives are of the first task than over the whole log."""
    item: str = ""
    """The sparse feature that identifies the item, for the same analysis by item; without it only by user."""
    tune: bool = False
    """Chooses --sparse.learning-rate and --model.embedding-l2 for each model from the two lists below, by validation
    (--train.metric) with the first seed, before it trains with all."""
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
    pair: tuple[str, str] | None = None
    """The two tasks of the comparable samples; None for a log with one task."""
    log: Mapping[str, str] = field(default_factory=dict)
    """The fingerprint of each split."""

    def parts(self) -> dict[str, list[Part]]:
        """The parts of each model."""
        return {run.model: parts_of(run.model, self.train.data.labels) for run in self.runs}


def read_command_line(args: Sequence[str] | None = None) -> Request:
    """The comparison that a command line describes; raises UserError for options that make no sense."""
    config, rest = parse_known_arguments(CompareConfig(), args, description=_DESCRIPTION)
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
    models = _models(config)
    seeds = _seeds(config.seeds)
    if config.split in ("train", "valid"):
        raise UserError(
            f"--split is {config.split!r}, on which models are trained or chosen; give another such as test."
        )
    if not edges_ascend(config.ratio_edges):
        raise UserError(f"--ratio-edges is {list(config.ratio_edges)}, but must ascend from above 0, such as 0.5 2.")
    folder = Path(config.out)
    runs = tuple(Run(model, seed, folder / "runs" / model / f"seed_{seed}") for seed in seeds for model in models)
    return Request(config, train, runs, _grid(config, train, seeds[0]))


def _models(config: CompareConfig) -> list[str]:
    names, known = _split(config.models), list(comparable_models())
    models = list(dict.fromkeys(m for name in names for m in (MODELS if name == "all" else [name])))
    for name in [*models, config.base]:
        if name not in known:
            raise UserError(f"there is no model {name!r}, only all, {', '.join(known)}{nearest(name, known)}")
    if config.base not in models:
        raise UserError(f"--base is {config.base!r}, which is not among --models {config.models}; add it.")
    return models


def _seeds(text: str) -> list[int]:
    named = _split(text)
    seeds = {int(seed) for seed in named if re.fullmatch("[0-9]{1,10}", seed) and int(seed) < 2**32}
    if not named or len(seeds) < len(named):
        raise UserError(f"--seeds is {text!r}, but must be different whole numbers below 2^32, such as 0,1,2.")
    return [int(seed) for seed in named]


def _grid(config: CompareConfig, train: TrainConfig, seed: int) -> Grid | None:
    if not config.tune:
        if config.learning_rates or config.embedding_l2:
            raise UserError("--learning-rates and --embedding-l2 are the values that --tune chooses from; add --tune.")
        return None
    rates = config.learning_rates or tuple(factor * train.sparse.learning_rate for factor in (0.5, 1.0, 2.0))
    l2 = config.embedding_l2 or tuple(sorted({0.0, 0.1, train.model.embedding_l2}))
    for value in (*rates, *l2):
        if not 0 <= value <= 1e6:
            raise UserError(f"--learning-rates or --embedding-l2 has {value}, but must have values from 0 to 1000000.")
    return Grid(rates, l2, seed, Path(config.out) / "tuning")


def resolve_log(request: Request) -> Request:
    """The request with what depends on the log: its folder, labels and fingerprint, and the pair of tasks.

    Raises UserError if options do not fit the log, so that nothing is trained for a report that cannot be made.
    """
    train, config = request.train, request.config
    path = data_folder(train.data)
    schema = load_schema(path)
    columns = Columns.select(schema, features=train.data.features, labels=train.data.labels)
    train = replace(train, data=replace(train.data, path=path, labels=columns.labels), dry_run=False)
    train = with_source_path(train)
    pair = tuple(_split(config.pair)) or columns.labels[:2]
    if config.pair and (len(set(pair)) != 2 or set(pair) - set(columns.labels)):
        raise UserError(f"--pair is {config.pair!r}, but must be two of {', '.join(columns.labels)}, such as a,b.")
    if config.item and config.item not in columns.sparse:
        raise UserError(f"--item is {config.item!r}, but the sparse features are {', '.join(columns.sparse)}.")
    # Read as a group, the item must be one integer in each row; an error names the file where it is not.
    read = replace(columns, group=config.item or columns.group)
    row_groups = {split: find_row_groups(path, split, schema, read) for split in ("train", "valid", config.split)}
    log = {split: fingerprint(of_split) for split, of_split in row_groups.items()}
    WatchedMetric(train.train.metric, columns.labels, has_groups=columns.group is not None)
    resolved = replace(request, train=train, pair=(pair[0], pair[1]) if len(pair) == 2 else None, log=log)
    _check_models(resolved, columns)
    for part in (part for parts in resolved.parts().values() for part in parts):
        try:
            metric = part.configure(train).train.metric
            WatchedMetric.of_split(metric, replace(columns, labels=part.labels), row_groups["valid"])
        except UserError as error:
            raise UserError(f"{part.name}: {error}") from error
    return resolved


def _check_models(request: Request, columns: Columns) -> None:
    """Raises UserError if a model cannot be built, or a rule or learning rate names what no model has."""
    train = request.train
    check_task_weights(train.model.task_weights, columns.labels)
    parts = [part for parts in request.parts().values() for part in parts]
    groups = {g for part in parts for g in groups_with_tables(part.configure(train).model, part.labels)}
    for group in sorted(set(train.sparse.group_learning_rates) - groups):
        ordered = dict.fromkeys([*columns.labels, *sorted(groups - {SHARED}), SHARED])
        raise UserError(
            f"--sparse.group-learning-rates names {group!r}, but the models have tables of "
            f"{', '.join(g for g in ordered if g in groups)}."
        )
    for part in parts:
        model = build_model(part.configure(train).model, replace(columns, labels=part.labels))
        try:
            match_rules(parse_rules(train.sharding.rules), [table.name for table in table_configs(model)])
        except UserError as error:
            raise UserError(
                f"{part.name}: {str(error).rstrip('.')}; every model needs rules that fit its tables."
            ) from error


def record_options(request: Request, world_size: int) -> None:
    """Writes comparison.yaml, or checks that it records the same options, so that no folder mixes two comparisons.

    Options that change no result are left out. Raises UserError for a folder of another comparison, or one that cannot
    be written.
    """
    folder, grid = Path(request.config.out), request.grid
    options = {
        "ranks": world_size,
        "split": request.config.split,
        "log": dict(request.log),
        "tuned": {"seed": grid.seed, "cells": [cell.name for cell in grid.cells()]} if grid else None,
        "train": to_dict(replace(what_is_trained(request.train), seed=0)),
    }
    write_or_check(
        folder / COMPARISON_FILE,
        options,
        refusal=f"{folder} holds a comparison with other options or of another log, see {COMPARISON_FILE} in it; give "
        "another --out, or the same options on as many ranks. Models and seeds may be added.",
        begun=any(folder.glob("runs/*/*")) or any(folder.glob("tuning/*/*")),
    )


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]
