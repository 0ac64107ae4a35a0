"""Trains several models on one log with several seeds, and reports what each is worth and where.

python stem_torchrec/compare.py --data.path DIR --models stem,single_task,mmoe --seeds 0,1,2 --out DIR
"""

import shlex
import sys
from collections.abc import Mapping
from threading import Event

from stem_torchrec.checkpoints.signals import ending_on_signals
from stem_torchrec.cli import run_main
from stem_torchrec.comparison.choices import try_cell
from stem_torchrec.comparison.comparable_sections import comparable_samples
from stem_torchrec.comparison.diagnostic_sections import gate_sections, table_sections
from stem_torchrec.comparison.options import Request, claim_folder, prepare, read_command_line
from stem_torchrec.comparison.report import Report, escape
from stem_torchrec.comparison.runs import Part, train_and_test
from stem_torchrec.comparison.sections import choices, costs, results
from stem_torchrec.comparison.statistics import MIN_USERS
from stem_torchrec.comparison.tested import Comparison, Tested
from stem_torchrec.config import TrainConfig
from stem_torchrec.data.schema import load_schema
from stem_torchrec.errors import UserError
from stem_torchrec.heartbeat import collective_timeout
from stem_torchrec.process import Process, from_first_rank, join_process_group
from stem_torchrec.progress import TimeLeft, progress_bar, say


def train_all(request: Request, process: Process, *, ending: Event | None = None) -> Comparison:
    """Tunes, trains and tests what is not done yet; all ranks of the process group call it.

    Args:
        request: what to compare.
        process: this rank.
        ending: once it is set on some rank, ends by Interrupted after a checkpoint of the run under way.

    Raises UserError where the request does not fit the log, the folder holds another comparison, or a run of the base
    diverged.
    """
    request = prepare(request)
    from_first_rank(lambda: claim_folder(request, process.world_size))
    config, train, grid = request.config, request.train, request.grid
    parts = request.parts()
    every = [part for of_model in parts.values() for part in of_model]
    configs: Mapping[Part, TrainConfig] = dict.fromkeys(every, train)
    # What is left to do is what rank 0 finds: a shared file system may show the others less.
    if grid is not None:
        untried = from_first_rank(lambda: grid.missing(every))
        with progress_bar(len(untried), "trial") as bar:
            left = TimeLeft(len(untried))
            for number, (part, cell) in enumerate(untried):
                say(f"\ntrial {number + 1} of {len(untried)}{left.after(number)}")
                try_cell(grid, part, cell, train, process, ending=ending)
                bar.update()
        configs = from_first_rank(lambda: {part: grid.choose(part).of(train) for part in every})
    missing = from_first_rank(lambda: [run for run in request.runs if not run.done])
    if len(missing) < len(request.runs):
        say(f"{len(request.runs) - len(missing)} of {len(request.runs)} runs are done already")
    with progress_bar(len(missing), "run") as bar:
        left = TimeLeft(len(missing))
        for number, run in enumerate(missing):
            name = f"{run.model}, seed {run.seed}, in {run.folder}"
            say(f"\nrun {number + 1} of {len(missing)}{left.after(number)}: {name}")
            of_parts = {part: configs[part] for part in parts[run.model]}
            train_and_test(run, of_parts, config.split, process, ending=ending)
            bar.update()
    diverged = from_first_rank(
        lambda: {run.model: said for run in request.runs if (said := run.test().get("diverged"))}
    )
    if config.base in diverged:
        raise UserError(
            f"{diverged[config.base].rstrip('.')}; with --base {config.base} there is nothing to compare with, give "
            "another, or lower rates and another --out."
        )
    return Comparison(
        config,
        train,
        runs=[run for run in request.runs if run.model not in diverged],
        pair=request.pair,
        chosen=from_first_rank(lambda: grid.rows(every) if grid else []),
        diverged=diverged,
    )


def write_report(comparison: Comparison) -> None:
    """Writes report.md, report.html and the numbers as Parquet; one process does, and no process group waits for it."""
    tested = Tested(comparison)
    report = Report("Comparison of models")
    config, description = comparison.config, load_schema(comparison.path).description
    seeds = " and seeds" if len(comparison.seeds) > 1 else ""
    report.text(
        *([f"Log: {escape(description)}"] if description else []),
        # Four spaces: code, in which nothing is a mark.
        f"    {' '.join(shlex.join(['stem_torchrec/compare.py', *sys.argv[1:]]).split())}",
        f"{len(tested.rows):,} rows of the {escape(config.split)} split, seeds "
        f"{', '.join(map(str, comparison.seeds))}. Mean ± standard deviation over the seeds; differences with an "
        f"interval of {config.confidence:.0%} by {config.resamples} draws of {tested.drawn}{seeds}, bold where it "
        "leaves 0 out. Of few seeds the spread is drawn too small, of one not at all. Where fewer than "
        f"{MIN_USERS} {tested.drawn} have positives, or negatives, or for gAUC both, there is no interval. Single-task "
        "models stop, and are tuned, each by its own task; the others by the mean over the tasks.",
        *[f"Left out, as a run diverged: {escape(said)}" for said in comparison.diverged.values()],
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
        request = read_command_line()
        timeout = collective_timeout(request.train.train.timeout)
        with ending_on_signals() as ending, join_process_group(timeout=timeout) as process:
            comparison = train_all(request, process, ending=ending)
        if process.is_first:
            write_report(comparison)

    run_main(run)


if __name__ == "__main__":
    main()
