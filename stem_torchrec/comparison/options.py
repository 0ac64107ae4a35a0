"""What a comparison is told, checked before anything is trained, and which comparison a folder holds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from stem_torchrec.comparison.choices import Grid
from stem_torchrec.comparison.comparable import check_edges
from stem_torchrec.comparison.config import CompareConfig
from stem_torchrec.comparison.runs import Part, Run, comparable_models, parts_of
from stem_torchrec.config import TrainConfig
from stem_torchrec.config.command_line import parse_known_arguments
from stem_torchrec.config.files import what_is_trained
from stem_torchrec.config.serialization import to_dict
from stem_torchrec.data.files import Columns, find_row_groups, fingerprint
from stem_torchrec.data.folder import data_folder
from stem_torchrec.data.schema import load_schema
from stem_torchrec.models.build import build_model, check_task_weights
from stem_torchrec.models.table import MODELS, groups_with_tables
from stem_torchrec.runtime.errors import UserError, nearest
from stem_torchrec.sharding.placement import match_rules, parse_rules
from stem_torchrec.tables import groups_of, table_configs
from stem_torchrec.training.configuration import config_from_command_line
from stem_torchrec.training.run_folder import claim
from stem_torchrec.training.watched_metric import WatchedMetric

COMPARISON_FILE = "comparison.yaml"
_DESCRIPTION = """\
Compares models on one log: each with each seed, on the same rows in the same order, with a report in --out.

The options of stem_torchrec/train.py (--recipe, --config, --data.path, --train.patience, ...) say how each is trained;
python stem_torchrec/train.py --help lists them."""


@dataclass(frozen=True)
class Request:
    """A comparison whose command line has been checked; `prepare` adds what the log says."""

    config: CompareConfig
    train: TrainConfig
    runs: tuple[Run, ...]
    grid: Grid | None
    pair: tuple[str, str] | None = None
    log: Mapping[str, str] = field(default_factory=dict)
    """The fingerprint of each split."""

    def parts(self) -> dict[str, list[Part]]:
        """What is trained at once, by model."""
        return {run.model: parts_of(run.model, self.train.data.labels) for run in self.runs}


def read_command_line(args: Sequence[str] | None = None) -> Request:
    """What to compare; raises UserError for what makes no sense."""
    config, rest = parse_known_arguments(CompareConfig(), args, description=_DESCRIPTION)
    train = config_from_command_line(rest)
    if not config.out:
        raise UserError("say where the results go: --out DIR.")
    if train.checkpoint.folder is not None or train.resume != "auto":
        raise UserError(
            "every run of a comparison keeps its own checkpoints; leave out --checkpoint.folder and --resume."
        )
    if train.sharding.plan is not None:
        raise UserError(
            "--sharding.plan pins the tables of one model, but each has others; give --sharding.rules or .type."
        )
    models = _models(config)
    seeds = _seeds(config.seeds)
    if config.split in ("train", "valid"):
        raise UserError(f"--split is {config.split!r}, on which models are trained or chosen; give another, as test.")
    if not check_edges(config.ratio_edges):
        raise UserError(f"--ratio-edges is {list(config.ratio_edges)}, but must ascend above 0, as 0.5 2 do.")
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
        raise UserError(f"--base is {config.base!r}, which is not among --models {config.models}; add it there.")
    return models


def _seeds(text: str) -> list[int]:
    named = _split(text)
    seeds = {int(seed) for seed in named if seed.isascii() and seed.isdigit() and int(seed) < 2**32}
    if not named or len(seeds) < len(named):
        raise UserError(f"--seeds is {text!r}, but must be different whole numbers below 2^32, as in 0,1,2.")
    return [int(seed) for seed in named]


def _grid(config: CompareConfig, train: TrainConfig, seed: int) -> Grid | None:
    if not config.tune:
        if config.learning_rates or config.embedding_l2:
            raise UserError("--learning-rates and --embedding-l2 are what --tune chooses from; add it.")
        return None
    rates = config.learning_rates or tuple(factor * train.sparse.learning_rate for factor in (0.5, 1.0, 2.0))
    l2 = config.embedding_l2 or tuple(sorted({0.0, 0.1, train.model.embedding_l2}))
    for value in (*rates, *l2):
        if not 0 <= value <= 1e6:
            raise UserError(f"a value to choose from is {value}, but must be from 0 to 1000000.")
    return Grid(rates, l2, seed, Path(config.out) / "tuning")


def prepare(request: Request) -> Request:
    """The request with what the log says: its folder, its labels, its fingerprint and the pair of tasks.

    Raises UserError where they do not fit, so that nothing is trained for a report that cannot be made.
    """
    train, config = request.train, request.config
    path = data_folder(train.data)
    schema = load_schema(path)
    columns = Columns.select(schema, features=train.data.features, labels=train.data.labels)
    train = replace(train, data=replace(train.data, path=path, labels=columns.labels))
    pair = tuple(_split(config.pair)) or columns.labels[:2]
    if config.pair and (len(set(pair)) != 2 or set(pair) - set(columns.labels)):
        raise UserError(f"--pair is {config.pair!r}, but must be two of {', '.join(columns.labels)}, as in a,b.")
    if config.item and config.item not in columns.sparse:
        raise UserError(f"--item is {config.item!r}, but the sparse features are {', '.join(columns.sparse)}.")
    # The item is one integer in each row, as a group is, or its file is named here.
    read = replace(columns, group=config.item or columns.group)
    log = {split: fingerprint(find_row_groups(path, split, schema, read)) for split in ("train", "valid", config.split)}
    WatchedMetric(train.train.metric, columns.labels, has_groups=columns.group is not None)
    prepared = replace(request, train=train, pair=(pair[0], pair[1]) if len(pair) == 2 else None, log=log)
    _check_models(prepared, columns)
    return prepared


def _check_models(request: Request, columns: Columns) -> None:
    """Raises UserError where a model cannot be built, or a rule or a learning rate names what none of them has."""
    train = request.train
    check_task_weights(train.model.task_weights, columns.labels)
    parts = [part for of_model in request.parts().values() for part in of_model]
    groups = {g for part in parts for g in groups_with_tables(part.of(train).model.arch, part.labels)}
    for group in sorted(set(train.sparse.group_learning_rates) - groups):
        raise UserError(
            f"--sparse.group-learning-rates names {group!r}, but the models have tables of "
            f"{', '.join(g for g in groups_of(columns.labels) if g in groups)}."
        )
    for part in parts:
        model = build_model(part.of(train).model, replace(columns, labels=part.labels))
        try:
            match_rules(parse_rules(train.sharding.rules), [table.name for table in table_configs(model)])
        except UserError as error:
            raise UserError(
                f"{part.name}: {str(error).rstrip('.')}; every model needs rules that fit its tables."
            ) from error


def claim_folder(request: Request, world_size: int) -> None:
    """Writes comparison.yaml, or checks that it says the same, so that no folder mixes two comparisons.

    Options that change no result are left out. Raises UserError for a folder of another comparison, or one that cannot
    be written.
    """
    folder, grid = Path(request.config.out), request.grid
    said = {
        "ranks": world_size,
        "split": request.config.split,
        "log": dict(request.log),
        "tuned": {"seed": grid.seed, "cells": [cell.name for cell in grid.cells()]} if grid else None,
        "train": to_dict(replace(what_is_trained(request.train), seed=0)),
    }
    claim(
        folder / COMPARISON_FILE,
        said,
        refusal=f"{folder} holds a comparison of other options or of another log, see {COMPARISON_FILE} there; give "
        "another --out, or the same options on as many ranks. Models and seeds may be added.",
        begun=any(folder.glob("runs/*/*")) or any(folder.glob("tuning/*/*")),
    )


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]
