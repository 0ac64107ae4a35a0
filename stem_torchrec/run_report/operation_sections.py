"""The sections on how a run went: speed, plan and memory, starts and faults, lineage."""

import html
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from stem_torchrec.config.files import dump_config
from stem_torchrec.config.serialization import to_dict
from stem_torchrec.data.footers import LAYOUT
from stem_torchrec.run_report.charts import Line, by_rank, over_steps
from stem_torchrec.run_report.run_record import RunRecord
from stem_torchrec.runtime.report_file import Report, escape
from stem_torchrec.sharding.plan_file import StoredTable
from stem_torchrec.training.optimizers import states_of_tables

_MIB = 2**20
_BYTES = 4
_MOST_RANKS = 64
"""Ranks that a table lists."""
_PEAKS = {"host_mib": "peak MiB of host", "gpu_mib": "peak MiB of GPU"}
_COUNTS = {
    "count/skipped_batches": "batches skipped, loss not finite",
    "count/skipped_rows": "bad rows skipped in the epoch",
    "count/failed_checkpoints": "checkpoints not written",
    "count/failed_best_weights": "best weights not written",
}


def speed(report: Report, runs: Sequence[RunRecord]) -> None:
    """Adds samples a second and the time of a step, over steps and as a table."""
    report.text(
        "## Speed",
        "Of all ranks together, between two lines of the log, without evaluations and pauses for checkpoints. The "
        "first steps after a start are slower than the rest.",
    )
    rows = []
    for run in runs:
        samples, ms = run.series("train/samples_per_second").values, run.series("train/step_ms").values
        if len(ms):
            rows.append(
                {
                    "run": run.name, "ranks": _ranks(run), "rows per rank and step": f"{run.config.data.batch_size:,}",
                    "samples/s, median": f"{np.median(samples):,.0f}", "step ms, median": f"{np.median(ms):,.1f}",
                    "step ms, P90": f"{np.quantile(ms, 0.9):,.1f}", "lines of the log": f"{len(ms):,}",
                }
            )  # fmt: skip
    if not rows:
        report.text("No run has logged its speed.")
        return
    report.table(rows)
    for name, title in {"samples_per_second": "samples/s", "step_ms": "step ms"}.items():
        lines = [Line(i, series) for i, run in enumerate(runs) if len((series := run.series(f"train/{name}")).steps)]
        report.plot(name, over_steps(lines, title), title)


def plans(report: Report, runs: Sequence[RunRecord]) -> None:
    """Adds how tables are sharded, the memory of each rank that follows from the plan, and what it has taken."""
    report.text(
        "## Plan and memory",
        "MiB of tables follow from plan.json: fp32 weights and the numbers that their optimizer keeps, each shard "
        "counted as an equal part of its table. Peaks are measured, up to the last evaluation: what a rank's process "
        "has taken of its host, and PyTorch of its GPU, dense weights, gradients and activations included.",
    )
    known = [(i, run) for i, run in enumerate(runs) if run.plan and run.world_size]
    if not known:
        report.text("No run folder has a plan.")
        return
    logged = {name: title for name, title in _PEAKS.items() if any(_peaks(run, name) for _, run in known)}
    kinds: list[dict[str, str]] = []
    totals: list[dict[str, str]] = []
    loads: list[dict[str, str]] = []
    for i, run in known:
        weights, states = memory_by_rank(run)
        sums = [weight + state for weight, state in zip(weights, states, strict=True)]
        peaks = {title: _peaks(run, name) for name, title in logged.items()}
        totals.append(
            {
                "run": run.name, "ranks": f"{len(sums)}", "MiB of tables": _mib(sum(sums)),
                "on the fullest rank": _mib(max(sums)), "on the emptiest": _mib(min(sums)),
            }
            | {f"{title}, largest": _mib(max(of_ranks)) if of_ranks else "-" for title, of_ranks in peaks.items()}
        )  # fmt: skip
        for kind in dict.fromkeys((table.sharding_type, table.compute_kernel) for table in run.plan.values()):
            tables = [table for table in run.plan.values() if (table.sharding_type, table.compute_kernel) == kind]
            mib = sum(table.rows * table.dim for table in tables) * _BYTES / _MIB
            kinds.append(
                {
                    "run": run.name, "sharding": kind[0], "kernel": kind[1], "tables": f"{len(tables):,}",
                    "rows": f"{sum(table.rows for table in tables):,}", "MiB of weights": _mib(mib),
                }
            )  # fmt: skip
        for rank in range(min(len(weights), _MOST_RANKS)):
            shards = sum(_ranks_of(table, len(weights)).count(rank) for table in run.plan.values())
            loads.append(
                {
                    "run": run.name, "rank": f"{rank}", "shards": f"{shards:,}",
                    "MiB of weights": _mib(weights[rank]), "MiB of optimizer states": _mib(states[rank]),
                    "MiB of tables": _mib(sums[rank]),
                }
                | {title: _mib(of_ranks[rank]) if of_ranks else "-" for title, of_ranks in peaks.items()}
            )  # fmt: skip
        if len(weights) > 1:
            report.plot(f"ranks_{i}", by_rank(weights, states, i), f"tables by rank, {run.name}")
    report.table(totals)
    if not logged:
        report.text("No peaks: an earlier version trained these runs, or they have made no evaluation yet.")
    report.table(kinds, text_columns=3)
    if len(loads) > len(known):
        report.folded_table("Rank by rank", loads)
    if cut := [run.name for _, run in known if (run.world_size or 0) > _MOST_RANKS]:
        report.text(f"The table has the first {_MOST_RANKS} ranks of {escape(', '.join(cut))}.")


def _peaks(run: RunRecord, name: str) -> list[float]:
    """The most that each rank has taken in any start of the run; [] where the run has not logged it."""
    peaks = [run.series(f"memory/{name}/rank_{rank}").values for rank in range(run.world_size or 0)]
    return [float(of_rank.max()) for of_rank in peaks] if all(map(len, peaks)) else []


def _mib(mib: float) -> str:
    return f"{mib:,.0f}" if mib >= 100 else f"{mib:.3g}"


def memory_by_rank(run: RunRecord) -> tuple[list[float], list[float]]:
    """MiB of the tables' weights and of their optimizer's states on each rank (W,)."""
    assert run.world_size is not None
    weights, states = ([0.0] * run.world_size for _ in range(2))
    for table in run.plan.values():
        ranks = _ranks_of(table, run.world_size)
        # Each rank has a copy of a data-parallel table, and each other shard is a part of one.
        parts = 1 if table.sharding_type == "data_parallel" else len(ranks)
        kept = states_of_tables([(table.rows, table.dim)], run.config.sparse.name)
        for rank in ranks:
            weights[rank] += table.rows * table.dim * _BYTES / _MIB / parts
            states[rank] += kept * _BYTES / _MIB / parts
    return weights, states


def _ranks_of(table: StoredTable, world_size: int) -> list[int]:
    everywhere = table.sharding_type == "data_parallel" or not table.ranks
    return list(range(world_size)) if everywhere else list(table.ranks)


def faults(report: Report, runs: Sequence[RunRecord]) -> None:
    """Adds the starts of each run, and the counts of what went wrong without ending it."""
    report.text(
        "## Starts and faults",
        "A run that was interrupted, killed or restarted resumes after its newest checkpoint; the steps between that "
        "and its last line are made again. Times are rank 0's, in UTC. A run does not log why it ended or which rank "
        "was lost: its output and the scheduler tell that. A `-` stands for what a run does not log.",
    )
    starts = []
    for run in runs:
        for number, start in enumerate(run.starts):
            before = run.starts[number - 1] if number else None
            pause = "" if before is None else _duration((start.begin - before.end).total_seconds())
            starts.append(
                {
                    "run": run.name, "start": f"{number + 1}", "began": f"{start.begin:%Y-%m-%d %H:%M:%S}",
                    "stood still": pause, "resumed after step": f"{start.after:,}" if start.after else "",
                    "steps made again": f"{max(before.last_step - start.after, 0):,}" if before else "",
                    "last step": f"{start.last_step:,}", "ran": _duration((start.end - start.begin).total_seconds()),
                }
            )  # fmt: skip
    if starts:
        report.table(starts)
    report.table(
        [
            {"run": run.name, "starts": f"{len(run.starts)}" if run.starts else "-"}
            | {title: _count(run.last(name)) for name, title in _COUNTS.items()}
            | {"batches kept in nonfinite/": f"{run.kept_batches}"}
            | {"checkpoints of steps": ", ".join(f"{step:,}" for step in run.checkpoints) or "none"}
            for run in runs
        ]
    )


def lineage(report: Report, runs: Sequence[RunRecord]) -> None:
    """Adds what each run was made of: its log and rows, its options, and in which these differ between the runs."""
    report.text(
        "## Lineage",
        "Rows are told apart by what the footers of the Parquet files say; two runs with the same letters were trained "
        "or validated on the same rows. They are known once a run has ended.",
    )
    report.table(
        [
            {
                "run": run.name, "folder": f"{run.folder}", "log": run.config.data.path or "synthetic",
                "recipe": run.config.recipe or "-", "seed": f"{run.config.seed}", "resume": run.config.resume,
                "rows of train": _rows(run, "train"), "rows of valid": _rows(run, "valid"),
            }
            for run in runs
        ],
        text_columns=4,
    )  # fmt: skip
    options = [_flat(to_dict(run.config)) for run in runs]
    names = list(dict.fromkeys(name for each in options for name in each))
    differing = [name for name in names if len({each.get(name, "") for each in options}) > 1]
    if len(runs) > 1:
        report.text("Options that differ:" if differing else "The runs have the same options.")
    if differing and len(runs) > 1:
        of_run = dict(zip([run.name for run in runs], options, strict=True))
        report.table(
            [{"option": f"--{name}"} | {run: of_run[run].get(name, "") for run in of_run} for name in differing]
        )
    for run in runs:
        text = html.escape(dump_config(run.config).strip(), quote=False)
        report.text(f"<details><summary>config.yaml of {html.escape(run.name)}</summary><pre>{text}</pre></details>")


def _flat(options: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Options by the name that the command line has for them, without those of where a run is written."""
    flat: dict[str, str] = {}
    for name, value in options.items():
        key = prefix + name.replace("_", "-")
        if isinstance(value, dict) and value and not prefix:
            flat |= _flat(value, f"{key}.")
        elif key not in ("output-dir", "take-over"):
            flat[key] = f"{value}"
    return flat


def _rows(run: RunRecord, split: str) -> str:
    of_split = run.schema.splits.get(split)
    digest = run.best.rows.get(split, {}).get(LAYOUT, "") if run.best is not None else ""
    return " ".join([f"{of_split.rows:,}" if of_split else "?", *([f"({digest[:8]})"] if digest else [])])


def _ranks(run: RunRecord) -> str:
    return "-" if run.world_size is None else f"{run.world_size}"


def _count(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"


def _duration(seconds: float) -> str:
    """`48 s`, `12 min`, `3.5 h`."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
