"""Trains several models on one log with several seeds, and reports what each is worth and where.

python stem_torchrec/compare.py --data.path DIR --models stem,single_task,mmoe --seeds 0,1,2 --out DIR
"""

import shlex
import sys
from collections.abc import Mapping
from pathlib import Path

from stem_torchrec.cli import run_main
from stem_torchrec.comparison.choices import try_cell
from stem_torchrec.comparison.comparable_sections import comparable_samples
from stem_torchrec.comparison.diagnostic_sections import gate_sections, table_sections
from stem_torchrec.comparison.options import Plan, claim_folder, prepare, read_command_line
from stem_torchrec.comparison.report import Report
from stem_torchrec.comparison.runs import Part, train_and_test
from stem_torchrec.comparison.sections import choices, costs, results
from stem_torchrec.comparison.tested import Comparison, Tested
from stem_torchrec.config import TrainConfig
from stem_torchrec.data.schema import load_schema
from stem_torchrec.process import Process, from_first_rank, join_process_group
from stem_torchrec.progress import TimeLeft, progress_bar, say


def train_all(plan: Plan, process: Process) -> Comparison:
    """Tunes, trains and tests what is not done yet; all ranks of the process group call it.

    Raises UserError where the plan does not fit the log, or the folder holds another comparison.
    """
    plan = prepare(plan)
    from_first_rank(lambda: claim_folder(plan, process.world_size))
    parts = plan.parts()
    every = [part for of_model in parts.values() for part in of_model]
    configs: Mapping[Part, TrainConfig] = dict.fromkeys(every, plan.train)
    grid = plan.grid
    # What is left to do is what rank 0 finds: a shared file system may show the others less.
    if grid is not None:
        untried = from_first_rank(lambda: grid.missing(every))
        with progress_bar(len(untried), "trial") as bar:
            left = TimeLeft(len(untried))
            for number, (part, cell) in enumerate(untried):
                say(f"\ntrial {number + 1} of {len(untried)}{left.after(number)}")
                try_cell(grid, part, cell, plan.train, process)
                bar.update()
        configs = from_first_rank(lambda: {part: grid.choose(part).of(plan.train) for part in every})
    missing = from_first_rank(lambda: [run for run in plan.runs if not run.done])
    if len(missing) < len(plan.runs):
        say(f"{len(plan.runs) - len(missing)} of {len(plan.runs)} runs are done already")
    with progress_bar(len(missing), "run") as bar:
        left = TimeLeft(len(missing))
        for number, run in enumerate(missing):
            name = f"{run.model}, seed {run.seed}, in {run.folder}"
            say(f"\nrun {number + 1} of {len(missing)}{left.after(number)}: {name}")
            train_and_test(run, {part: configs[part] for part in parts[run.model]}, plan.config.split, process)
            bar.update()
    assert plan.train.data.path is not None
    return Comparison(
        folder=Path(plan.config.out),
        runs=plan.runs,
        path=plan.train.data.path,
        split=plan.config.split,
        base=plan.config.base,
        resamples=plan.config.resamples,
        confidence=plan.config.confidence,
        pair=plan.pair,
        edges=plan.config.ratio_edges,
        item=plan.config.item,
        skips_bad_rows=plan.train.data.skipped_share is not None,
        chosen=from_first_rank(lambda: grid.rows(every) if grid else []),
    )


def write_report(comparison: Comparison) -> None:
    """Writes report.md, report.html and the numbers as Parquet; one process does, and no process group waits for it."""
    tested = Tested(comparison)
    report = Report("Comparison of models")
    description = load_schema(comparison.path).description
    report.text(
        *([f"Log: {description}"] if description else []),
        f"`{shlex.join(['stem_torchrec/compare.py', *sys.argv[1:]])}`",
        f"{len(tested.rows):,} rows of the {comparison.split} split, seeds {', '.join(map(str, comparison.seeds))}. "
        "Mean ± standard deviation over the seeds; differences with an interval of "
        f"{comparison.confidence:.0%} by {comparison.resamples} draws of {tested.drawn} and seeds, bold where it "
        "leaves 0 out. Of few seeds the spread is drawn too small. Single-task models stop, and are tuned, each by its "
        "own task; the others by the mean over the tasks.",
    )
    results(report, comparison, tested)
    if comparison.chosen:
        choices(report, comparison)
    costs(report, comparison)
    if comparison.pair is not None:
        comparable_samples(report, comparison, tested)
    gate_sections(report, comparison)
    table_sections(report, comparison)
    report.write(comparison.folder)
    print(f"\nreport: {comparison.folder / 'report.md'}, and report.html with its plots inside")


def main() -> None:
    """The command `stem-compare`."""

    def run() -> None:
        plan = read_command_line()
        with join_process_group(timeout=plan.train.train.timeout) as process:
            comparison = train_all(plan, process)
        if process.is_first:
            write_report(comparison)

    run_main(run)


if __name__ == "__main__":
    main()
