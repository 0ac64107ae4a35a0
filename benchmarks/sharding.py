"""Measures sharding types, layouts and input distributions on your log or a list of tables, and says which to take.

torchx run dist.ddp -j 1x2 benchmarks/sharding.py --recipe synthetic --out sweep
torchrun --nproc-per-node 2 benchmarks/sharding.py --tables benchmarks/tables/small.yaml --tasks 2 8 --out sweep
"""

import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path

# launch/run.py starts scripts with the repository's root in place of their own folder.
sys.path.append(os.path.dirname(os.path.abspath(__file__)))

from stem_torchrec.cli import run_main
from stem_torchrec.plain import from_plain, to_plain
from stem_torchrec.process import Process, from_first_rank, join_process_group
from stem_torchrec.progress import say

from sweep_cases import Case
from sweep_config import Sweep, SweepConfig, plan_sweep, read_command_line
from sweep_machine import describe_launch, git_revision
from sweep_ranks import Ending, Job, judge, no_gpu, run_case
from sweep_report import REPORT, TABLE, write_report
from sweep_results import Measurement, Outcome, ResultFolder
from sweep_rows import summarize

Turn = tuple[int, Case]
"""A case in one round."""


def run_sweep(config: SweepConfig, sweep: Sweep, process: Process) -> None:
    """Runs what is left to run, case by case, and writes the report; all ranks of the launcher call it."""
    folder = from_first_rank(lambda: open_folder(config, sweep, process))
    turns = [(round_, case) for round_ in range(config.rounds) for case in order_of_round(sweep.cases, round_)]
    known = from_first_rank(lambda: len(folder.read_all(sweep.cases, config.rounds)))
    say(
        f"{len(sweep.cases)} cases x {config.rounds} rounds on {process.world_size} ranks, without {sweep.left_out} "
        f"combinations that make no sense; results in {config.out}, where {known} are already"
    )
    global_batch = sweep.train.data.batch_size * process.world_size
    # Only rank 0 looks into the folder, which other hosts need not see.
    left = turns_left(folder, turns, retry=config.retry)
    while (turn := from_first_rank(lambda: next(left, None))) is not None:
        round_, case = turn
        started, load = time.monotonic(), os.getloadavg()[0]
        job = Job(sweep.train, case, sweep.tables, config.warmup, config.steps, config.timeout, outcome="")
        endings = run_case(job, process)
        if process.is_first:
            outcome = make_outcome(case, round_, endings, time.monotonic() - started, load)
            keep(folder, outcome, endings)
            write_report(folder, sweep, rounds=config.rounds, global_batch=global_batch)
            say(f"[{turns.index(turn) + 1}/{len(turns)}] {format_outcome(outcome, global_batch)}")
    if process.is_first:
        rows, advice = write_report(folder, sweep, rounds=config.rounds, global_batch=global_batch)
        # Late, as it takes a second to import.
        from sweep_plots import write_plots

        write_plots(rows, folder.folder)
        say(f"\n{advice}\nThe results are in {folder.folder / REPORT}, {TABLE} and the plots beside them.")


def open_folder(config: SweepConfig, sweep: Sweep, process: Process) -> ResultFolder:
    """The folder of the results; raises UserError where it holds those of another sweep."""
    identity = {
        **to_plain(replace(sweep.train, output_dir=None)),
        "tables": [to_plain(table) for table in sweep.tables],
        "cases": [case.name for case in sweep.cases],
        "steps": config.steps,
        "warmup": config.warmup,
        "rounds": config.rounds,
        "ranks": process.world_size,
        "ranks_per_host": process.local_world_size,
    }
    return ResultFolder(Path(config.out), identity, describe_launch(process))


def order_of_round(cases: Sequence[Case], round_: int) -> list[Case]:
    """The cases as listed, then backward, and so on: drift favors none, and those to be compared stay side by side."""
    return list(cases)[:: -1 if round_ % 2 else 1]


def turns_left(folder: ResultFolder, turns: Sequence[Turn], *, retry: bool) -> Iterator[Turn]:
    """The turns without an outcome; a case that has failed once is not tried in later rounds."""
    failed: set[Case] = set()
    for round_, case in turns:
        known = folder.read(case, round_)
        if case not in failed and (known is None or (retry and known.status != "ok")):
            yield round_, case
            known = folder.read(case, round_)
        if known is not None and known.status != "ok":
            failed.add(case)


def make_outcome(case: Case, round_: int, endings: Sequence[Ending], seconds: float, load: float) -> Outcome:
    """The outcome of a case from how its ranks ended."""
    status, reason = judge(endings)
    measured = endings[0].measurement
    return Outcome(
        case,
        round_,
        status,
        reason,
        seconds=round(seconds, 1),
        date=datetime.now().astimezone().isoformat(timespec="seconds"),
        revision=git_revision(),
        load=round(load, 2),
        measurement=from_plain(Measurement, measured) if status == "ok" and measured else None,
    )


def keep(folder: ResultFolder, outcome: Outcome, endings: Sequence[Ending]) -> None:
    """Writes the outcome, and beside it what the ranks of a failed case printed, or the plan."""
    folder.path(outcome.case, outcome.round, ".log").unlink(missing_ok=True)
    if outcome.measurement is not None:
        folder.path(outcome.case, outcome.round, ".plan.json").write_text(outcome.measurement.plan)
    else:
        logs = [f"rank {ending.rank}, {ending.status}:\n{ending.log}\n" for ending in endings if ending.log]
        folder.path(outcome.case, outcome.round, ".log").write_text("\n".join(logs))
    # Last, as the outcome says that the case is done.
    folder.write(outcome)


def format_outcome(outcome: Outcome, global_batch: int) -> str:
    """A line for a case that has just ended."""
    [row] = summarize([outcome], global_batch=global_batch)
    how = f"{outcome.status}: {outcome.reason}"
    if outcome.status == "ok":
        how = f"{row.p50_ms:.1f} ms  {row.samples_per_second / 1000:.1f}k samples/s  {row.peak_mib:.0f} MiB"
    return f"{outcome.case.name}  {how}  ({outcome.seconds:.0f} s)"


def main() -> None:
    """The command."""

    def run() -> None:
        config, train = read_command_line()
        # Rank 0 waits for a whole case, the others for it to write the report.
        with no_gpu(), join_process_group(timeout=2 * config.timeout + 600) as process:
            sweep = from_first_rank(lambda: plan_sweep(config, train))
            run_sweep(config, sweep, process)

    run_main(run)


if __name__ == "__main__":
    main()
