"""Plans every strategy, then how the one to take grows, and writes the report after each plan."""

import time
from collections.abc import Sequence

from stem_torchrec.config import TrainConfig
from stem_torchrec.runtime.progress import TimeLeft, log_rank0
from stem_torchrec.sharding.plan_file import plan_to_json
from stem_torchrec.sharding.topology import Bandwidths

from common.machine import command_line, count_hosts, describe_machine, git_revision
from common.output import write_table, write_whole
from common.table_list import TableSpec
from planning.advice import Candidate, advise, cheapest
from planning.calibrate import calibrate
from planning.config import PlanConfig
from planning.plans import PLANS, PlanFolder
from planning.report import Report, format_advice, format_report
from planning.report_table import to_table
from planning.step import Result, Step, estimate_step
from planning.strategies import Planned, Strategy, grow, list_strategies, plan_strategy

REPORT, TABLE, GROWTH, PLAN = "report.md", "report.parquet", "growth.png", "plan.json"


def run_plan(config: PlanConfig, tables: list[TableSpec], train: TrainConfig) -> Report:
    """Plans every strategy on every number of hosts, then more tasks and rows with the best layout and optimizer.

    Args:
        config: the cluster and what to compare.
        tables: the features.
        train: the model, for the estimate of a step.

    Raises UserError if the folder cannot be written or is of another search, or the calibration cannot be used.
    """
    search = _Search(config, tables, train)
    for nodes in config.nodes:
        for strategy in list_strategies(config):
            search.results.append(search.plan(strategy, nodes=nodes))
            search.write()
    best = search.report().advice
    if best is not None:
        # auto, because other types fit at other sizes.
        taken = best.best.planned
        growing = Strategy("auto", taken.strategy.layout, taken.strategy.optimizer)
        for tasks in sorted(set(config.grow_tasks)):
            search.by_tasks.append(search.plan(growing, nodes=taken.nodes, tasks=tasks))
            search.write()
        for factor in sorted(set(config.grow_rows)):
            search.by_rows.append(search.plan(growing, nodes=taken.nodes, factor=factor))
            search.write()
    report = search.finish()
    log_rank0(f"\n{format_advice(report)}\n{config.out}/{REPORT} has the reasons ({search.seconds:.0f} s).")
    return report


class _Search:
    """The plans of a command, those of earlier commands in the same folder included."""

    def __init__(self, config: PlanConfig, tables: Sequence[TableSpec], train: TrainConfig) -> None:
        self.config, self.tables, self.train = config, tables, train
        bandwidths = config.bandwidths
        self.calibration = calibrate(config.calibrate, bandwidths, device=config.device) if config.calibrate else None
        self.bandwidths = bandwidths if self.calibration is None else self.calibration.bandwidths
        self.head = describe(config, tables, self.bandwidths)
        self.folder = PlanFolder(config, tables, self.bandwidths, self.head)
        self.results: list[Result] = []
        self.by_tasks: list[Result] = []
        self.by_rows: list[Result] = []
        self.total = len(config.nodes) * len(list_strategies(config))
        self.total += len(set(config.grow_tasks)) + len(set(config.grow_rows))
        self._begin, self._left, self._made = time.monotonic(), TimeLeft(self.total), 0
        log_rank0(
            f"{self.total} plans, each searched for at most {config.seconds:g} s after its options are listed, "
            f"{self.total * config.seconds / 60:.1f} min in all; {config.out}/{PLANS} keeps each, and the same command "
            "continues"
        )

    @property
    def seconds(self) -> float:
        """How long this command has planned."""
        return time.monotonic() - self._begin

    @property
    def done(self) -> int:
        """Number of plans so far."""
        return len(self.results) + len(self.by_tasks) + len(self.by_rows)

    def plan(self, strategy: Strategy, *, nodes: int, tasks: int | None = None, factor: float = 1.0) -> Result:
        """Plans a strategy, or reads the plan of an earlier command, and prints a line about it."""
        tasks = self.config.tasks if tasks is None else tasks
        tables = grow(self.tables, factor)
        rows = sum(table.rows for table in tables)
        planned = self.folder.read(strategy, nodes=nodes, tasks=tasks, rows=rows)
        known = planned is not None
        if planned is None:
            planned = plan_strategy(strategy, tables, self.config, self.bandwidths, nodes=nodes, tasks=tasks)
            self.folder.write(planned)
            self._made += 1
        else:
            self._left = TimeLeft(self.total - self.done - 1)
            self._made = 0
        step = estimate_step(planned, tables, self.config, self.train, self.bandwidths)
        place = f"[{self.done + 1}/{self.total}{self._left.after(self._made)}]"
        size = f"{count_hosts(nodes)}, T={tasks}, {rows:,} rows"
        log_rank0(f"{place} {size}  {format_result(planned, step)}{'  (as before)' * known}")
        return planned, step

    def report(self) -> Report:
        """What is known so far."""
        by_hosts = []
        for nodes in self.config.nodes:
            able = [Candidate(planned, step) for planned, step in self.results if step and planned.nodes == nodes]
            by_hosts += [advice] if (advice := advise(able)) else []
        return Report(
            self.config, self.train, self.head, self.tables, self.bandwidths, self.results, by_hosts,
            cheapest(by_hosts), self.by_tasks, self.by_rows, self.calibration, left=self.total - self.done,
        )  # fmt: skip

    def write(self) -> Report:
        """Writes the report of the plans so far, its table, and the plan to take if there is one."""
        report, folder = self.report(), self.folder.folder
        write_whole(folder / REPORT, format_report(report))
        write_table(folder / TABLE, to_table(report))
        if report.advice is not None and report.advice.best.planned.plan is not None:
            write_whole(folder / PLAN, plan_to_json(report.advice.best.planned.plan))
        else:
            (folder / PLAN).unlink(missing_ok=True)
        return report

    def finish(self) -> Report:
        """Writes the report of all plans, with the plot of growth."""
        # Imported late, as that takes a second.
        from planning.plots import write_growth

        # Without a strategy that fits, nothing has grown.
        self.total = self.done
        by_tasks, by_rows = ([planned for planned, _ in results] for results in (self.by_tasks, self.by_rows))
        write_growth(by_tasks, by_rows, self.folder.folder / GROWTH)
        return self.write()


def describe(config: PlanConfig, tables: Sequence[TableSpec], bandwidths: Bandwidths) -> dict[str, str]:
    """The head of the report: everything that a reader needs to make the same plan again."""
    machine = describe_machine()
    memory = f"{config.hbm_gb:g} GiB of GPU and " if config.device == "cuda" else ""
    figures = (f"{name} {value:.4g}" for name, value in vars(bandwidths).items() if value is not None)
    hosts = " or ".join(map(str, config.nodes))
    return {
        "command": command_line("plan.py"),
        "planned for": f"{hosts} x {config.ranks_per_node} (hosts x ranks) on {config.device}, with {memory}"
        f"{config.host_gb:g} GiB of host memory each",
        "bandwidths": f"{', '.join(figures)} GB/s per rank",
        "tables": f"{len(tables)} features of {config.tables}, T = {config.tasks} tasks",
        "batch": f"{config.batch_size} rows per rank",
        "planned on": machine["machine"],
        "versions": machine["versions"],
        "revision": git_revision() or "unknown",
        "date": machine["started"],
    }


def format_result(planned: Planned, step: Step | None) -> str:
    """A line about a plan that has just been made."""
    if step is None:
        return f"{planned.strategy.name}  {planned.reason}"
    spilled = f"  {planned.uvm_tables} tables in UVM" if planned.uvm_tables else ""
    device, host = (planned.peak(value) / 1024 for value in ("memory", "host_memory"))
    gib = f"{device:.1f} GiB on the GPU, {host:.1f} on the host"
    return f"{planned.strategy.name}  {gib}  {step.ms:.2f} ms a step{spilled}  ({planned.seconds:.0f} s)"
