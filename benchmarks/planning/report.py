"""The report of a plan on paper: report.md, which a reader can check by hand."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tabulate import tabulate

from stem_torchrec.config import TrainConfig
from stem_torchrec.sharding.topology import Bandwidths

from common.machine import count_hosts
from common.table_list import TableSpec
from planning.advice import CLOSE, FULL, HALF_FULL, UNEVEN, Advice, Candidate
from planning.by_hand import dense_by_hand, memory_by_hand, wire_by_hand
from planning.calibrate import Calibration
from planning.columns import GROWTH, NUMBERS, STRATEGY, format_results
from planning.config import PlanConfig
from planning.step import Result
from planning.strategies import Planned

_HOW_TO_READ = """\
- **memory** is what the planner counts: tables, optimizer state, and buffers of ids and embeddings. On a GPU it keeps
  15 % free for the dense part, activations and the pipeline's batches. **host** is for the tables in UVM and their
  state. fused_uvm_caching also keeps a fifth of its rows on the GPU. **fullest** is the used share of the memory for
  tables, on the rank where it is highest.{counted}
- **step** is the sum of four estimates, for the busiest rank, as if nothing overlapped:
  **ids**, the bytes that it receives over the slowest link's bandwidth;
  **tables**, TorchRec's estimate of lookup and exchange of embeddings, forward and backward;
  **dense**, three matrix products with each weight of experts, gates and towers over the operations per second;
  **all-reduce**, the bytes that a ring sends for the gradients of these weights over the slowest link's bandwidth.
  A step in training overlaps ids and all-reduce with other work. The sum leaves out reading and copying batches, what
  the dense part does beside matrix products, its optimizer, waiting for other ranks, and what an operation costs before
  its first byte. Trust its order of the strategies, not its milliseconds.
- **samples/s**: rows of all ranks over the step. **cost**: of 10^9 samples, ranks times hours times `--price`.
- **imbalance** is the busiest rank over the mean; 1 is even.
- **Advice**: of the strategies whose step is up to {close:g} times the shortest, those come last whose fullest rank
  uses more than {full:.0%} of its memory, or more than {half:.0%} of it and {uneven:g} times the mean of the ranks; of
  the others the shortest step wins. Numbers of hosts are compared in the same way: the shortest step takes the fewest
  rank hours per sample.
- **auto** mixes types. It is searched along TorchRec's greedy path, for each type alone, for those that cut no columns
  and for all, at a bounded number of places, and for at most {seconds:g} s per plan.
- Bandwidths from a data sheet give a step that is too short; `--calibrate` takes measured ones.
"""


@dataclass(frozen=True)
class Report:
    """Everything that a report is written from."""

    config: PlanConfig
    train: TrainConfig
    head: Mapping[str, str]
    tables: Sequence[TableSpec]
    bandwidths: Bandwidths
    results: Sequence[Result]
    """Of all strategies and numbers of hosts planned so far."""
    by_hosts: Sequence[Advice]
    """The advice for each number of hosts for which a plan fits."""
    advice: Advice | None
    """The advice for the number of hosts to take."""
    by_tasks: Sequence[Result]
    by_rows: Sequence[Result]
    calibration: Calibration | None
    left: int = 0
    """Plans that are still to be made."""

    @property
    def planned(self) -> list[Planned]:
        """The plans of all strategies so far."""
        return [planned for planned, _ in self.results]


def format_report(report: Report) -> str:
    """The report as Markdown."""
    config, advice = report.config, report.advice
    best = None if advice is None else advice.best.planned
    lines = ["# Sharding plan on paper", "", *(f"- {name}: {value}" for name, value in report.head.items())]
    lines += [f"- not finished: {report.left} plans are missing; the same command continues"] * bool(report.left)
    lines += ["", f"**{format_advice(report)}**", ""]
    if len(config.nodes) > 1:
        lines += ["## By number of hosts", "", _by_hosts(report), ""]
    lines += [
        "## Strategies",
        "",
        format_results(report.results, STRATEGY | NUMBERS),
        "",
        dense_by_hand(config, report.tables, report.train),
        "",
    ]
    lines += [*_refused(report.planned), ""]
    if otherwise := [each.strategy.name for each in report.planned if each.cut_rows]:
        lines += [
            "Not recommended, as the optimizer's number per row would be kept once per column shard: "
            f"{', '.join(dict.fromkeys(otherwise))}.",
            "",
        ]
    for optimizer in config.optimizers:
        lines += [f"## Memory by hand, {optimizer}", "", *memory_by_hand(config, report.tables, best, optimizer), ""]
    wire = wire_by_hand(config, report.tables, report.planned, report.bandwidths)
    lines += ["## Bytes on the wire by hand", "", *wire, ""]
    if report.calibration is not None:
        lines += ["## Calibration", "", *_calibration(report.calibration), ""]
    for title, grown in (("tasks", report.by_tasks), ("rows", report.by_rows)):
        if grown:
            name = f"{grown[0][0].strategy.name} on {count_hosts(grown[0][0].nodes)}"
            lines += [f"## Growth with {title}, {name}", "", format_results(grown, GROWTH | NUMBERS), ""]
            lines += [f"- T={each.tasks}, {each.rows:,} rows: {each.reason}" for each, _ in grown if not each.plan]
            lines += [""]
    if report.by_tasks or report.by_rows:
        lines += ["![growth](growth.png)", ""]
    uncounted = [name for name in config.optimizers if name in ("lamb", "partial_rowwise_adam")]
    counted = f" For {' and '.join(uncounted)} it counts less state than below, only as much as the weights."
    numbers = {"close": CLOSE, "full": FULL, "half": HALF_FULL, "uneven": UNEVEN, "seconds": config.seconds}
    return "\n".join(
        [*lines, "## How to read this", "", _HOW_TO_READ.format(counted=counted if uncounted else "", **numbers)]
    )


def _refused(planned: Sequence[Planned]) -> list[str]:
    """The strategies without a plan, those with the same reason together."""
    names: dict[str, list[str]] = {}
    for each in planned:
        if each.plan is None:
            names.setdefault(each.reason, []).append(f"{each.strategy.name} on {count_hosts(each.nodes)}")
    return [f"- {', '.join(of_reason)}: {reason}" for reason, of_reason in names.items()]


def format_advice(report: Report) -> str:
    """The strategy to take, with its numbers and the options that use it, and the runner-up with the reason."""
    if report.advice is None:
        return (
            "No strategy fits; the report has the reasons. Add ranks or memory, or choose optimizers with less state."
        )
    best, second = report.advice.best, report.advice.runner_up
    planned, strategy = best.planned, best.planned.strategy
    hosts = f" on {count_hosts(planned.nodes)}" if len(report.config.nodes) > 1 else ""
    spilled = f", {planned.uvm_tables} tables in host memory" if planned.uvm_tables else ""
    cost = f", {best.step.cost:,.4g} for 10^9 samples" if best.step.cost is not None else ""
    warning = f" Beware: {best.crowded}." if best.crowded else ""
    runner_up = ""
    if second is not None:
        runner_up = f" Runner-up: {second.planned.strategy.name}, {_describe(second)}; {report.advice.reason}."
    options = ("--sharding.plan", f"{report.config.out}/plan.json", "--model.layout", strategy.layout)
    return (
        f"Take {strategy.name}{hosts}: {_describe(best)}{cost}{spilled} ({planned.types}): {shlex.join(options)} "
        f"--sparse.name {strategy.optimizer}.{warning}{runner_up}"
    )


def _describe(candidate: Candidate) -> str:
    step = candidate.step
    return (
        f"estimated {step.ms:.2f} ms a step, {step.samples_per_second:,.0f} samples/s, its fullest rank "
        f"{step.fill:.0%} full, imbalance {candidate.imbalance:.2f}"
    )


def _by_hosts(report: Report) -> str:
    """The strategy to take for each number of hosts."""
    advised = {advice.best.planned.nodes: advice for advice in report.by_hosts}
    rows = []
    for nodes in report.config.nodes:
        row = [str(nodes), str(nodes * report.config.ranks_per_node)]
        if nodes in advised:
            best, second = advised[nodes].best, advised[nodes].runner_up
            step = best.step
            cost = "" if step.cost is None else f"{step.cost:,.4g}"
            numbers = f"{step.ms:.2f}", f"{step.samples_per_second:,.0f}", cost, f"{step.fill:.0%}"
            row += [best.planned.strategy.name, *numbers, second.planned.strategy.name if second else ""]
        else:
            row += ["none fits so far" if report.left else "none fits", *[""] * 5]
        rows.append(row)
    headers = ["hosts", "ranks", "strategy", "step ms", "samples/s", "cost", "fullest", "runner-up"]
    return tabulate(rows, headers, tablefmt="github", disable_numparse=True)


def _calibration(calibration: Calibration) -> list[str]:
    options = " ".join(
        f"--{name.replace('_', '-')} {getattr(calibration.bandwidths, name):.4g}" for name in calibration.changed
    )
    ratios = [
        ["before", *(f"{ratio:.3f}" for ratio in calibration.before)],
        ["after", *(f"{ratio:.3f}" for ratio in calibration.after)],
    ]
    factors = "one factor for both, as the cases cannot separate them" if calibration.together else "a factor for each"
    return [
        f"Fitted to {calibration.cases} measured cases of {calibration.folder}, with {factors}: `{options}` gives the "
        "same bandwidths. The others are as given, as the sweep does not determine them.",
        "",
        tabulate(ratios, ["estimate over measured", "minimum", "median", "maximum"], tablefmt="github"),
        "",
        *(f"- not used: {name}, {reason}" for name, reason in calibration.unused.items()),
    ]
