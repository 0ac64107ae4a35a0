"""What a comparison is told, checked before anything is trained, and which comparison a folder holds."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import yaml

from stem_torchrec.cli import nearest, parse_known_arguments
from stem_torchrec.comparison.choices import Grid
from stem_torchrec.comparison.comparable import EDGES, check_edges
from stem_torchrec.comparison.runs import MODELS, Part, Run, parts_of
from stem_torchrec.config import LoopConfig, TrainConfig
from stem_torchrec.config_file import config_from_command_line, dump_config
from stem_torchrec.data.files import Columns, find_row_groups
from stem_torchrec.data.schema import load_schema
from stem_torchrec.early_stopping import EarlyStopping
from stem_torchrec.errors import UserError
from stem_torchrec.limits import check_limits
from stem_torchrec.train import log_folder

COMPARISON_FILE = "comparison.yaml"
_DESCRIPTION = """\
Compares models on one log: each with each seed, on the same rows in the same order, with a report in --out.

The options of stem_torchrec/train.py (--recipe, --config, --data.path, --train.patience, ...) say how each is trained;
python stem_torchrec/train.py --help lists them."""


@dataclass(frozen=True)
class CompareConfig:
    """What to compare, beside the options of train.py."""

    out: str = ""
    """Folder for the runs and the report. The same command again goes on where an interrupted one stopped."""
    models: str = "stem,single_task,shared_bottom,mmoe,ple"
    """Models, separated by commas: those of --model.arch, `all` for all of them, and the ablations stem_reads_own,
    stem_trains_all, stem_reads_own_trains_all, stem_gate_task, stem_gate_shared."""
    seeds: str = "0,1,2"
    """Seeds, separated by commas; every model trains with each."""
    base: str = "single_task"
    """The model that the others are compared with."""
    split: str = "test"
    """The part of the log to report on; nothing is chosen on it."""
    resamples: int = 1000
    """Draws of users behind each interval."""
    confidence: float = 0.95
    """Share of the draws that an interval holds."""
    pair: str = ""
    """The two tasks of the comparable-samples analysis, separated by a comma; by default the first two."""
    ratio_edges: tuple[float, ...] = EDGES
    """Edges of its bins: how much more of a user's positives are of the first task than over the whole log."""
    item: str = ""
    """The sparse feature that names the item, for the same analysis by item; without it only by user."""
    tune: bool = False
    """Chooses --sparse.learning-rate and --model.embedding-l2 for each model from the two lists below, by validation
    (--train.metric) with the first seed, before it trains with all."""
    learning_rates: tuple[float, ...] = ()
    """Learning rates of the tables to choose from; by default --sparse.learning-rate, half of it and twice."""
    embedding_l2: tuple[float, ...] = (0.0, 0.1)
    """L2 regularisations of embeddings to choose from."""


@dataclass(frozen=True)
class Plan:
    """A comparison whose command line has been checked."""

    config: CompareConfig
    train: TrainConfig
    runs: tuple[Run, ...]
    grid: Grid | None
    pair: tuple[str, str] | None = None

    def parts(self) -> dict[str, list[Part]]:
        """What is trained at once, by model."""
        return {run.model: parts_of(run.model, self.train.data.labels) for run in self.runs}


def read_command_line(args: Sequence[str] | None = None) -> Plan:
    """What to compare; raises UserError for what makes no sense."""
    config, rest = parse_known_arguments(CompareConfig(), args, description=_DESCRIPTION)
    train = config_from_command_line(rest)
    check_limits(train)
    if not config.out:
        raise UserError("say where the results go: --out DIR.")
    names = _split(config.models)
    models = list(dict.fromkeys(m for name in names for m in (_all_archs() if name == "all" else [name])))
    for name in [*models, config.base]:
        if name not in MODELS:
            raise UserError(f"there is no model {name!r}, only all, {', '.join(MODELS)}{nearest(name, list(MODELS))}")
    if config.base not in models:
        raise UserError(f"--base is {config.base!r}, which is not among --models {config.models}; add it there.")
    seeds = _split(config.seeds)
    if not seeds or not all(seed.isdigit() and int(seed) < 2**32 for seed in seeds) or len(set(seeds)) < len(seeds):
        raise UserError(f"--seeds is {config.seeds!r}, but must be different whole numbers below 2^32, as in 0,1,2.")
    if config.resamples < 1:
        raise UserError(f"--resamples is {config.resamples}, but must be at least 1.")
    if not 0 < config.confidence < 1:
        raise UserError(f"--confidence is {config.confidence}, but must be between 0 and 1, as 0.95 is.")
    if not check_edges(config.ratio_edges):
        raise UserError(f"--ratio-edges is {list(config.ratio_edges)}, but must ascend above 0, as 0.5 2 do.")
    folder = Path(config.out)
    runs = tuple(Run(model, int(seed), folder / "runs" / model / f"seed_{seed}") for seed in seeds for model in models)
    rates = config.learning_rates or tuple(factor * train.sparse.learning_rate for factor in (0.5, 1.0, 2.0))
    grid = Grid(rates, config.embedding_l2, int(seeds[0]), folder / "tuning") if config.tune else None
    if grid is not None and not grid.cells():
        raise UserError("--tune has nothing to choose from; give --embedding-l2.")
    for value in (*rates, *config.embedding_l2) if grid else ():
        if not 0 <= value <= 1e6:
            raise UserError(f"a value to choose from is {value}, but must be from 0 to 1000000.")
    return Plan(config, train, runs, grid)


def prepare(plan: Plan) -> Plan:
    """The plan with what the log says: its folder, its labels and the pair of tasks.

    Raises UserError where they do not fit, so that nothing is trained for a report that cannot be made.
    """
    train, config = plan.train, plan.config
    path = log_folder(train.data)
    schema = load_schema(path)
    columns = Columns.select(schema, features=train.data.features, labels=train.data.labels)
    train = replace(train, data=replace(train.data, path=path, labels=columns.labels))
    pair = tuple(_split(config.pair)) or columns.labels[:2]
    if config.pair and (len(set(pair)) != 2 or set(pair) - set(columns.labels)):
        raise UserError(f"--pair is {config.pair!r}, but must be two of {', '.join(columns.labels)}, as in a,b.")
    if config.item and config.item not in columns.sparse:
        raise UserError(f"--item is {config.item!r}, but the sparse features are {', '.join(columns.sparse)}.")
    # The item is read as a group is: an integer in each row, or its file is named here.
    read = replace(columns, group=config.item or columns.group)
    for split in ("train", "valid", config.split):
        find_row_groups(path, split, schema, read)
    EarlyStopping(train.train.metric, None, columns.labels, has_groups=columns.group is not None)
    if len(columns.labels) < 2 and {run.model for run in plan.runs} & {"aitm", "esmm"}:
        raise UserError(
            f"aitm and esmm need two tasks or more, but the log has only {columns.labels[0]}; leave them out."
        )
    return replace(plan, train=train, pair=(pair[0], pair[1]) if len(pair) == 2 else None)


def claim_folder(plan: Plan, world_size: int) -> None:
    """Writes comparison.yaml, or checks that it says the same, so that no folder mixes two comparisons.

    Options that change no result are left out. Raises UserError for a folder of another comparison, or one that cannot
    be written.
    """
    folder = Path(plan.config.out)
    usual = LoopConfig()
    loop = replace(plan.train.train, timeout=usual.timeout, log_every=usual.log_every, profile=usual.profile)
    said = {
        "ranks": world_size,
        "split": plan.config.split,
        "tuned": {"seed": plan.grid.seed, "cells": [c.name for c in plan.grid.cells()]} if plan.grid else None,
        "train": yaml.safe_load(dump_config(replace(plan.train, train=loop, seed=0))),
    }
    text = yaml.safe_dump(said, sort_keys=False)
    file = folder / COMPARISON_FILE
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if file.exists() and file.read_text() != text and any(folder.glob("runs/*/*")):
            raise UserError(
                f"{folder} holds a comparison of other options, see {COMPARISON_FILE} there; give another --out, or "
                "the same options on as many ranks. Models and seeds may be added."
            )
        file.write_text(text)
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error.strerror}); give another --out.") from error


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _all_archs() -> list[str]:
    return [name for name, options in MODELS.items() if list(options) == ["arch"]]
