"""Plans on paper, without a GPU: which sharding strategies fit a cluster, their memory and estimated step by rank.

python benchmarks/plan.py --nodes 2 --ranks-per-node 8 --tables benchmarks/tables/short_video.yaml --tasks 8 --out plan
python benchmarks/plan.py --nodes 16 --optimizers rowwise_adagrad adam --calibrate sweep --out plan
"""

import logging
import os
import shlex
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import torch

# As launch/run.py may start it, with the repository's root in place of this folder.
sys.path.append(os.path.dirname(os.path.abspath(__file__)))

from stem_torchrec.cli import run_main
from stem_torchrec.errors import UserError
from stem_torchrec.process import Process
from stem_torchrec.progress import say
from stem_torchrec.sharding.plan import plan_to_json
from stem_torchrec.sharding.topology import Bandwidths

from plan_calibrate import calibrate
from plan_config import PlanConfig, read_options
from plan_report import Report, advice, format_report, to_table
from plan_strategies import Planned, Strategy, grow, list_strategies, plan_strategy, recommend
from sweep_machine import describe_launch, git_revision
from sweep_results import write_whole
from table_list import TableSpec

REPORT, TABLE, GROWTH, PLAN = "report.md", "report.parquet", "growth.png", "plan.json"


def run_plan(config: PlanConfig, tables: list[TableSpec]) -> Report:
    """Plans every strategy, then how the best layout and optimizer grow, and writes the report."""
    folder = open_folder(config.out)
    bandwidths = config.bandwidths
    calibration = calibrate(config.calibrate, bandwidths, device=config.device) if config.calibrate else None
    if calibration is not None:
        bandwidths = calibration.bandwidths
    planned = []
    for strategy in list_strategies(config):
        planned.append(plan_strategy(strategy, tables, config, bandwidths))
        say(format_planned(planned[-1]))
    best = recommend(planned)
    by_tasks, by_rows = [], []
    if best is not None:
        # auto, as what fits changes with the size.
        growing = Strategy("auto", best.strategy.layout, best.strategy.optimizer)
        for tasks in sorted(set(config.grow_tasks)):
            by_tasks.append(plan_strategy(growing, tables, config, bandwidths, tasks=tasks))
            say(f"T={tasks}: {format_planned(by_tasks[-1])}")
        for factor in sorted(set(config.grow_rows)):
            by_rows.append(plan_strategy(growing, grow(tables, factor), config, bandwidths))
            say(f"{by_rows[-1].rows:,} rows: {format_planned(by_rows[-1])}")
    head = describe(config, tables, bandwidths)
    report = Report(config, head, tables, bandwidths, planned, best, by_tasks, by_rows, calibration)
    write(report, folder)
    return report


def open_folder(out: str) -> Path:
    """The folder of the report; raises UserError where it cannot be written."""
    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"the report cannot be written to {out} ({error.strerror}); give another --out.") from error
    return folder


def write(report: Report, folder: Path) -> None:
    """Writes the report, its table, the plot and the recommended plan."""
    # Late, as it takes a second to import.
    from plan_plots import write_growth

    write_whole(folder / REPORT, format_report(report))
    pq.write_table(to_table(report), folder / TABLE)
    write_growth(report.by_tasks, report.by_rows, folder / GROWTH)
    if report.best is not None and report.best.plan is not None:
        write_whole(folder / PLAN, plan_to_json(report.best.plan))
    else:
        (folder / PLAN).unlink(missing_ok=True)


def describe(config: PlanConfig, tables: list[TableSpec], bandwidths: Bandwidths) -> dict[str, str]:
    """What a reader needs to plan the same again."""
    paper = Process(0, config.world_size, config.ranks_per_node, torch.device(config.device))
    launch = describe_launch(paper)
    memory = f"{config.hbm_gb:g} GiB of GPU and " if config.device == "cuda" else ""
    figures = (f"{name} {value:.4g}" for name, value in vars(bandwidths).items() if value is not None)
    return {
        "command": shlex.join(["benchmarks/plan.py", *sys.argv[1:]]),
        "planned for": f"{launch['ranks']} on {config.device}, with {memory}{config.host_gb:g} GiB of host memory each",
        "bandwidths": f"{', '.join(figures)} GB/s per rank",
        "tables": f"{len(tables)} features of {config.tables}, T = {config.tasks} tasks",
        "batch": f"{config.batch_size} rows per rank",
        "planned on": launch["machine"],
        "versions": launch["versions"],
        "revision": git_revision() or "unknown",
        "date": launch["started"],
    }


def format_planned(planned: Planned) -> str:
    """A line for a plan that has just been made."""
    if planned.plan is None:
        return f"{planned.strategy.name}  {planned.reason}"
    spilled = f"  {planned.uvm_tables} tables in UVM" if planned.uvm_tables else ""
    gib = f"{planned.most('memory') / 1024:.1f} GiB on the GPU, {planned.most('host_memory') / 1024:.1f} on the host"
    return f"{planned.strategy.name}  {gib}  {planned.most('estimate'):.2f} ms{spilled}  ({planned.seconds:.0f} s)"


def main() -> None:
    """The command."""

    def run() -> None:
        started = time.monotonic()
        config, tables = read_options()
        # TorchRec tells of every proposal that does not fit.
        logging.disable(logging.WARNING)
        report = run_plan(config, tables)
        say(f"\n{advice(report)}\n{config.out}/{REPORT} has the reasons ({time.monotonic() - started:.0f} s).")

    run_main(run)


if __name__ == "__main__":
    main()
