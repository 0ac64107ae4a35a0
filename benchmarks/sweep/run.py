"""Runs the cases of a sweep that have no outcome yet, one by one, and writes the report after each."""

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from stem_torchrec.config import TrainConfig
from stem_torchrec.config.serialization import from_dict, to_dict
from stem_torchrec.runtime.process import Process, from_first_rank
from stem_torchrec.runtime.progress import log_rank0
from stem_torchrec.training.configuration import run_config

from common.load import cores
from common.machine import command_line, describe_machine, format_hosts, git_revision
from common.output import write_whole
from common.table_list import tables_of_now
from sweep.cases import Case
from sweep.config import Sweep, SweepConfig
from sweep.ranks import Ending, Environment, Job, cores_of_others, judge, run_case
from sweep.report import REPORT, TABLE, write_report
from sweep.results import Measurement, Outcome, ResultFolder
from sweep.rows import summarize

Turn = tuple[int, Case]
"""The number of a round, and a case to run in it."""


def run_sweep(config: SweepConfig, sweep: Sweep, process: Process, environment: Environment) -> None:
    """Runs the cases without an outcome and writes the report; all ranks of the launcher call it.

    Args:
        config: the options of the sweep.
        sweep: the cases and what they run on; the same on all ranks.
        process: this rank of the launcher.
        environment: of the launcher, for the processes that measure.

    Raises UserError if the folder holds another sweep or cannot be written.
    """
    folder = from_first_rank(lambda: open_folder(config, sweep, process))
    turns = [(round_, case) for round_ in range(config.rounds) for case in order_of_round(sweep.cases, round_)]
    done = from_first_rank(lambda: len(folder.read_all(sweep.cases, config.rounds)))
    log_rank0(
        f"{len(sweep.cases)} cases x {config.rounds} rounds on {process.world_size} ranks; {len(sweep.left_out)} "
        f"combinations that make no sense are left out, the report names each; already done: {done}, in {config.out}"
    )
    global_batch = sweep.train.data.batch_size * process.world_size
    # Only rank 0 reads the folder, which other hosts need not see.
    left = turns_left(folder, turns, retry=config.retry)
    while (turn := from_first_rank(lambda: next(left, None))) is not None:
        round_, case = turn
        started, load = time.monotonic(), os.getloadavg()[0]
        job = Job(sweep.train, case, sweep.tables, config.warmup, config.steps, round_ == 0, config.timeout, outcome="")
        endings = run_case(job, process, environment)
        if process.is_first:
            others = cores_of_others(endings, process.local_world_size)
            outcome = make_outcome(case, round_, endings, seconds=time.monotonic() - started, load=load, others=others)
            keep(folder, outcome, endings)
            write_report(folder, sweep, rounds=config.rounds, global_batch=global_batch)
            log_rank0(f"[{turns.index(turn) + 1}/{len(turns)}] {format_outcome(outcome, global_batch)}")
    if process.is_first:
        rows, advice = write_report(folder, sweep, rounds=config.rounds, global_batch=global_batch)
        # Imported late, as that takes a second.
        from sweep.plots import write_plots

        write_plots(rows, folder.folder)
        log_rank0(f"\n{advice}\nThe results are in {folder.folder / REPORT}, {TABLE} and the plots beside them.")


def open_folder(config: SweepConfig, sweep: Sweep, process: Process) -> ResultFolder:
    """The folder of the results; raises UserError if it holds those of another sweep."""
    identity = {
        **to_dict(replace(sweep.train, output_dir=None)),
        "tables": [to_dict(table) for table in sweep.tables],
        "cases": [case.name for case in sweep.cases],
        "steps": config.steps,
        "warmup": config.warmup,
        "rounds": config.rounds,
        "ranks": process.world_size,
        "ranks_per_host": process.local_world_size,
    }
    head = {
        "command": command_line("sharding.py"),
        "ranks": format_hosts(process.world_size // process.local_world_size, process.local_world_size),
        **describe_machine(),
    }
    return ResultFolder(Path(config.out), identity, head, as_of_now=_as_of_now)


def _as_of_now(recorded: dict[str, Any]) -> dict[str, Any]:
    names = {field.name for field in fields(TrainConfig)}
    train = {name: value for name, value in recorded.items() if name in names}
    tables = {"tables": tables_of_now(recorded["tables"])} if "tables" in recorded else {}
    return {**recorded, **to_dict(run_config(train)), **tables}


def order_of_round(cases: Sequence[Case], round_: int) -> list[Case]:
    """The cases in the order of a round: as listed, then backward, and so on.

    So drift of the machine favors no case, and cases that are compared run close to each other.
    """
    return list(cases)[:: -1 if round_ % 2 else 1]


def turns_left(folder: ResultFolder, turns: Sequence[Turn], *, retry: bool) -> Iterator[Turn]:
    """The turns that have no outcome yet; a case that failed is skipped in later rounds.

    Args:
        folder: is read before and after each turn.
        turns: all turns, in order.
        retry: also yields the turns whose outcome is a failure.
    """
    failed: set[Case] = set()
    for round_, case in turns:
        outcome = folder.read(case, round_)
        if case not in failed and (outcome is None or (retry and outcome.status != "ok")):
            yield round_, case
            outcome = folder.read(case, round_)
        if outcome is not None and outcome.status != "ok":
            failed.add(case)


def make_outcome(
    case: Case, round_: int, endings: Sequence[Ending], *, seconds: float, load: float, others: float
) -> Outcome:
    """The outcome of a case that has just ended, from how it ended on each rank; see Outcome for the rest."""
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
        load_after=round(os.getloadavg()[0], 2),
        others=round(others, 2),
        cores=cores(),
        measurement=from_dict(Measurement, measured) if status == "ok" and measured else None,
    )


def keep(folder: ResultFolder, outcome: Outcome, endings: Sequence[Ending]) -> None:
    """Writes the outcome, and beside it the plan, or for a failed case what its ranks printed."""
    folder.path(outcome.case, outcome.round, ".log").unlink(missing_ok=True)
    if outcome.measurement is not None:
        write_whole(folder.path(outcome.case, outcome.round, ".plan.json"), outcome.measurement.plan)
    else:
        logs = [f"rank {ending.rank}, {ending.status}:\n{ending.log}\n" for ending in endings if ending.log]
        write_whole(folder.path(outcome.case, outcome.round, ".log"), "\n".join(logs))
    # Last, as a case with an outcome counts as done.
    folder.write(outcome)


def format_outcome(outcome: Outcome, global_batch: int) -> str:
    """A line about a case that has just ended."""
    [row] = summarize([outcome], global_batch=global_batch)
    result = f"{outcome.status}: {outcome.reason}"
    if outcome.status == "ok":
        result = f"{row.p50_ms:.1f} ms  {row.samples_per_second / 1000:.1f}k samples/s  {row.peak_mib:.0f} MiB"
    if row.loaded:
        result += f"  warning: other processes kept {row.others:.1f} of {outcome.cores} cores busy"
    return f"{outcome.case.name}  {result}  ({outcome.seconds:.0f} s)"
