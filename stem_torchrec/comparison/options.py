"""The command line of a comparison, checked before anything is trained."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from stem_torchrec.comparison.built_in import built_in
from stem_torchrec.comparison.comparable import edges_ascend
from stem_torchrec.comparison.compare_config import CompareConfig
from stem_torchrec.comparison.grid_options import grid_of
from stem_torchrec.comparison.grid_search import Grid
from stem_torchrec.comparison.parts import Part, parts_of
from stem_torchrec.comparison.runs import Run
from stem_torchrec.comparison.variants import SPACES, Variant
from stem_torchrec.comparison.variants_file import read_variants
from stem_torchrec.config import TrainConfig
from stem_torchrec.config.command_line import parse_known_arguments
from stem_torchrec.models.table import MODELS
from stem_torchrec.runtime.errors import UserError, nearest
from stem_torchrec.training.configuration import config_from_command_line

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
    return Request(config, train, runs, grid_of(config, train, [*variants.values()], seeds[0]), variants)


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


def split_names(text: str) -> list[str]:
    """The names in a text that commas separate."""
    return [part.strip() for part in text.split(",") if part.strip()]
