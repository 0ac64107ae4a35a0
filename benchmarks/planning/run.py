"""Plans every strategy, then how the recommended one grows, and writes the report."""

import time
from pathlib import Path

from stem_torchrec.runtime.progress import log_rank0
from stem_torchrec.sharding.plan_file import plan_to_json
from stem_torchrec.sharding.topology import Bandwidths

from common.machine import command_line, describe_machine, format_hosts, git_revision
from common.output import make_folder, write_table, write_whole
from common.table_list import TableSpec
from planning.calibrate import calibrate
from planning.config import PlanConfig
from planning.report import Report, advice, format_report, to_table
from planning.strategies import Planned, Strategy, grow, list_strategies, plan_strategy, recommend

REPORT, TABLE, GROWTH, PLAN = "report.md", "report.parquet", "growth.png", "plan.json"


def run_plan(config: PlanConfig, tables: list[TableSpec]) -> Report:
    """Plans every strategy, then more tasks and rows with the best layout and optimizer, and writes the report.

    Args:
        config: the cluster and what to compare.
        tables: the features.

    Raises UserError if the folder cannot be written or the calibration cannot be used.
    """
    started = time.monotonic()
    folder = make_folder(config.out)
    bandwidths = config.bandwidths
    calibration = calibrate(config.calibrate, bandwidths, device=config.device) if config.calibrate else None
    if calibration is not None:
        bandwidths = calibration.bandwidths
    planned = []
    for strategy in list_strategies(config):
        planned.append(plan_strategy(strategy, tables, config, bandwidths))
        log_rank0(format_planned(planned[-1]))
    best = recommend(planned)
    by_tasks, by_rows = [], []
    if best is not None:
        # auto, because other types fit at other sizes.
        growing = Strategy("auto", best.strategy.layout, best.strategy.optimizer)
        for tasks in sorted(set(config.grow_tasks)):
            by_tasks.append(plan_strategy(growing, tables, config, bandwidths, tasks=tasks))
            log_rank0(f"T={tasks}: {format_planned(by_tasks[-1])}")
        for factor in sorted(set(config.grow_rows)):
            by_rows.append(plan_strategy(growing, grow(tables, factor), config, bandwidths))
            log_rank0(f"{by_rows[-1].rows:,} rows: {format_planned(by_rows[-1])}")
    head = describe(config, tables, bandwidths)
    report = Report(config, head, tables, bandwidths, planned, best, by_tasks, by_rows, calibration)
    write(report, folder)
    log_rank0(f"\n{advice(report)}\n{config.out}/{REPORT} has the reasons ({time.monotonic() - started:.0f} s).")
    return report


def write(report: Report, folder: Path) -> None:
    """Writes the report, its table, the plot, and the recommended plan if there is one."""
    # Imported late, as that takes a second.
    from planning.plots import write_growth

    write_whole(folder / REPORT, format_report(report))
    write_table(folder / TABLE, to_table(report))
    write_growth(report.by_tasks, report.by_rows, folder / GROWTH)
    if report.best is not None and report.best.plan is not None:
        write_whole(folder / PLAN, plan_to_json(report.best.plan))
    else:
        (folder / PLAN).unlink(missing_ok=True)


def describe(config: PlanConfig, tables: list[TableSpec], bandwidths: Bandwidths) -> dict[str, str]:
    """The head of the report: everything that a reader needs to make the same plan again."""
    machine = describe_machine()
    ranks = format_hosts(config.nodes, config.ranks_per_node)
    memory = f"{config.hbm_gb:g} GiB of GPU and " if config.device == "cuda" else ""
    figures = (f"{name} {value:.4g}" for name, value in vars(bandwidths).items() if value is not None)
    return {
        "command": command_line("plan.py"),
        "planned for": f"{ranks} on {config.device}, with {memory}{config.host_gb:g} GiB of host memory each",
        "bandwidths": f"{', '.join(figures)} GB/s per rank",
        "tables": f"{len(tables)} features of {config.tables}, T = {config.tasks} tasks",
        "batch": f"{config.batch_size} rows per rank",
        "planned on": machine["machine"],
        "versions": machine["versions"],
        "revision": git_revision() or "unknown",
        "date": machine["started"],
    }


def format_planned(planned: Planned) -> str:
    """A line about a plan that has just been made."""
    if planned.plan is None:
        return f"{planned.strategy.name}  {planned.reason}"
    spilled = f"  {planned.uvm_tables} tables in UVM" if planned.uvm_tables else ""
    device, host = (planned.peak(value) / 1024 for value in ("memory", "host_memory"))
    gib = f"{device:.1f} GiB on the GPU, {host:.1f} on the host"
    return f"{planned.strategy.name}  {gib}  {planned.peak('estimate'):.2f} ms{spilled}  ({planned.seconds:.0f} s)"
