"""The section on the plan of a run: how its tables are sharded, and the memory of its ranks."""

from collections.abc import Sequence

from stem_torchrec.run_report.charts import by_rank
from stem_torchrec.run_report.run_record import RunRecord
from stem_torchrec.runtime.report_file import Report, escape
from stem_torchrec.sharding.plan_file import StoredTable
from stem_torchrec.training.sparse_optimizers import states_of_tables

_MIB = 2**20
_BYTES = 4
_MOST_RANKS = 64
"""Ranks that a table lists."""
_PEAKS = {"host_mib": "peak MiB of host", "gpu_mib": "peak MiB of GPU"}


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
