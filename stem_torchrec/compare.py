"""Trains several models on one log with several seeds, and reports what each is worth and where.

python stem_torchrec/compare.py --data.path DIR --models stem,single_task,mmoe --seeds 0,1,2 --out DIR
"""

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from stem_torchrec.cli import nearest, parse_arguments, parse_known_arguments, run_main
from stem_torchrec.comparison.choices import Grid, chosen_configs, try_cell
from stem_torchrec.comparison.comparable import EDGES, check_edges
from stem_torchrec.comparison.diagnostic_sections import gate_sections, table_sections
from stem_torchrec.comparison.diagnostics import table_diagnostics
from stem_torchrec.comparison.report import Report
from stem_torchrec.comparison.runs import MODELS, Run, train_and_test
from stem_torchrec.comparison.sections import Comparison, Tested, choices, comparable_samples, costs, results
from stem_torchrec.config import TrainConfig
from stem_torchrec.config_file import config_from_command_line, dump_config
from stem_torchrec.data.files import Columns
from stem_torchrec.data.schema import load_schema
from stem_torchrec.errors import UserError
from stem_torchrec.limits import check_limits
from stem_torchrec.process import Process, from_first_rank, join_process_group
from stem_torchrec.progress import progress_bar, say
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
    learning_rates: tuple[float, ...] = (0.01, 0.02, 0.05)
    """Learning rates of the tables to choose from."""
    embedding_l2: tuple[float, ...] = (0.0, 0.001)
    """L2 regularisations of embeddings to choose from."""


@dataclass(frozen=True)
class Plan:
    """A comparison whose command line has been checked."""

    config: CompareConfig
    train: TrainConfig
    runs: tuple[Run, ...]
    grid: Grid | None
    pair: tuple[str, str] | None


def read_command_line(args: Sequence[str] | None = None) -> Plan:
    """What to compare; raises UserError for what makes no sense."""
    args = sys.argv[1:] if args is None else list(args)
    if {"-h", "--help"} & set(args):
        parse_arguments(CompareConfig(), ["--help"], description=_DESCRIPTION)
    config, rest = parse_known_arguments(CompareConfig(), args)
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
    if not seeds or not all(seed.isdigit() for seed in seeds) or len(set(seeds)) < len(seeds):
        raise UserError(f"--seeds is {config.seeds!r}, but must be different whole numbers, as in 0,1,2.")
    if config.resamples < 1:
        raise UserError(f"--resamples is {config.resamples}, but must be at least 1.")
    if not 0 < config.confidence < 1:
        raise UserError(f"--confidence is {config.confidence}, but must be between 0 and 1, as 0.95 is.")
    if not check_edges(config.ratio_edges):
        raise UserError(f"--ratio-edges is {list(config.ratio_edges)}, but must ascend above 0, as 0.5 2 do.")
    folder = Path(config.out)
    runs = tuple(Run(model, int(seed), folder / "runs" / model / f"seed_{seed}") for seed in seeds for model in models)
    grid = Grid(config.learning_rates, config.embedding_l2, int(seeds[0]), folder / "tuning") if config.tune else None
    if grid is not None and not grid.cells():
        raise UserError("--tune has nothing to choose from; give --learning-rates and --embedding-l2.")
    return Plan(config, train, runs, grid, None)


def prepare(plan: Plan) -> Plan:
    """The plan with what the log says: its folder and the pair of tasks; raises UserError where they do not fit."""
    train, config = plan.train, plan.config
    train = replace(train, data=replace(train.data, path=log_folder(train.data)))
    assert train.data.path is not None
    columns = Columns.select(load_schema(train.data.path), features=train.data.features, labels=train.data.labels)
    pair = tuple(_split(config.pair)) or columns.labels[:2]
    if config.pair and (len(pair) != 2 or set(pair) - set(columns.labels)):
        raise UserError(f"--pair is {config.pair!r}, but must be two of {', '.join(columns.labels)}, as in a,b.")
    if config.item and config.item not in columns.sparse:
        raise UserError(f"--item is {config.item!r}, but the sparse features are {', '.join(columns.sparse)}.")
    return replace(plan, train=train, pair=(pair[0], pair[1]) if len(pair) == 2 else None)


def claim_folder(plan: Plan) -> None:
    """Writes comparison.yaml, or checks that it says the same, so that no folder mixes two comparisons.

    Raises UserError for a folder of another comparison, or one that cannot be written.
    """
    folder = Path(plan.config.out)
    grid = [cell.name for cell in plan.grid.cells()] if plan.grid else []
    train = yaml.safe_load(dump_config(plan.train))
    text = yaml.safe_dump({"train": train, "split": plan.config.split, "tuned": grid})
    file = folder / COMPARISON_FILE
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if file.exists() and file.read_text() != text:
            raise UserError(
                f"{folder} holds a comparison of other options, see {COMPARISON_FILE} there; give another --out, or "
                "the same options. Models and seeds may be added."
            )
        file.write_text(text)
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error.strerror}); give another --out.") from error


def compare(plan: Plan, process: Process) -> None:
    """Trains and tests what is not done yet, and writes the report; all ranks of the process group call it."""
    plan = prepare(plan)
    from_first_rank(lambda: claim_folder(plan))
    models = list(dict.fromkeys(run.model for run in plan.runs))
    configs: Mapping[str, TrainConfig] = dict.fromkeys(models, plan.train)
    if plan.grid is not None:
        untried = plan.grid.missing(models)
        with progress_bar(len(untried), "trial") as bar:
            for model, cell in untried:
                try_cell(plan.grid, model, cell, plan.train, process)
                bar.update()
        configs = chosen_configs(plan.grid, plan.train, models)
    missing = [run for run in plan.runs if not run.done]
    if len(missing) < len(plan.runs):
        say(f"{len(plan.runs) - len(missing)} of {len(plan.runs)} runs are done already")
    with progress_bar(len(missing), "run") as bar:
        for run in missing:
            say(f"\n{run.model}, seed {run.seed}: {run.folder}")
            train_and_test(run, configs[run.model], plan.config.split, process)
            bar.update()
    comparison = Comparison(
        folder=Path(plan.config.out),
        runs=plan.runs,
        path=log_folder(plan.train.data),
        split=plan.config.split,
        base=plan.config.base,
        resamples=plan.config.resamples,
        confidence=plan.config.confidence,
        pair=plan.pair,
        edges=plan.config.ratio_edges,
        item=plan.config.item,
        chosen=plan.grid.rows(models) if plan.grid else (),
    )
    tables, pairs = [], []
    for run in plan.runs:
        label = {"model": run.model, "seed": run.seed}
        of_tables, of_pairs = table_diagnostics(run.folder)
        tables += [{**label, **row} for row in of_tables]
        pairs += [{**label, **row} for row in of_pairs]
    from_first_rank(lambda: write_report(comparison, tables, pairs, command=describe_command()))
    say(f"\nreport: {comparison.folder / 'report.md'}, and report.html with its plots inside")


def write_report(
    comparison: Comparison, tables: Sequence[Mapping[str, Any]], pairs: Sequence[Mapping[str, Any]], *, command: str
) -> None:
    """Writes report.md, report.html and the numbers as Parquet; rank 0 calls it."""
    tested = Tested(comparison)
    report = Report("Comparison of models")
    report.text(
        f"`{command}`",
        f"{len(tested.rows):,} rows of the {comparison.split} split, seeds {', '.join(map(str, comparison.seeds))}. "
        "Mean ± standard deviation over the seeds; differences with an interval of "
        f"{comparison.confidence:.0%} by {comparison.resamples} draws of users, bold where it leaves 0 out.",
    )
    results(report, comparison, tested)
    if comparison.chosen:
        choices(report, comparison)
    costs(report, comparison)
    if comparison.pair is not None:
        comparable_samples(report, comparison, tested)
    gate_sections(report, comparison)
    table_sections(report, comparison, tables, pairs)
    report.write(comparison.folder)


def describe_command() -> str:
    """The command line, as a reader would type it."""
    return shlex.join(["stem_torchrec/compare.py", *sys.argv[1:]])


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _all_archs() -> list[str]:
    return [name for name, options in MODELS.items() if list(options) == ["arch"]]


def main() -> None:
    """The command `stem-compare`."""

    def run() -> None:
        plan = read_command_line()
        with join_process_group(timeout=plan.train.train.timeout) as process:
            compare(plan, process)

    run_main(run)


if __name__ == "__main__":
    main()
