"""The columns of the report's tables: what a strategy is, and the numbers of its plan and step."""

from collections.abc import Callable, Mapping, Sequence

from tabulate import tabulate

from stem_torchrec.sharding.plan import imbalance

from planning.step import Result, Step
from planning.strategies import Planned

Column = Callable[[Planned, Step | None], str]
"""A cell from a plan and the estimate of its step."""


def _gib(value: str) -> Column:
    return lambda each, _: "" if each.plan is None else f"{each.peak(value) / 1024:,.2f}"


def _even(value: str) -> Column:
    return lambda each, _: "" if each.plan is None else f"{imbalance(each.plan.per_rank(value)):.2f}"


def _part(value: str) -> Column:
    return lambda _, step: "" if step is None else f"{getattr(step, value):.3f}"


STRATEGY: dict[str, Column] = {
    "hosts": lambda each, _: str(each.nodes),
    "type": lambda each, _: each.strategy.type,
    "layout": lambda each, _: each.strategy.layout,
    "optimizer": lambda each, _: each.strategy.optimizer,
    "fits": lambda each, _: "no" if each.plan is None else "spills" if each.uvm_tables else "yes",
}
GROWTH: dict[str, Column] = {
    "T": lambda each, _: str(each.tasks),
    "rows of a group": lambda each, _: f"{each.rows:,}",
    "fits": STRATEGY["fits"],
    "types": lambda each, _: each.types,
}
NUMBERS: dict[str, Column] = {
    "weights GiB": _gib("weights"),
    "GPU GiB": _gib("memory"),
    "host GiB": _gib("host_memory"),
    "fullest": lambda _, step: "" if step is None else f"{step.fill:.0%}",
    "UVM tables": lambda each, _: "" if each.plan is None else str(each.uvm_tables),
    "ids": _part("ids"),
    "tables": _part("tables"),
    "dense": _part("dense"),
    "all-reduce": _part("all_reduce"),
    "step ms": _part("ms"),
    "samples/s": lambda _, step: "" if step is None else f"{step.samples_per_second:,.0f}",
    "cost": lambda _, step: "" if step is None or step.cost is None else f"{step.cost:,.4g}",
    "imbalance of weights": _even("weights"),
    "of tables ms": _even("estimate"),
    "planned in s": lambda each, _: f"{each.seconds:.1f}",
}


def format_results(results: Sequence[Result], columns: Mapping[str, Column]) -> str:
    """A row for each result, as a Markdown table; without the cost if no price is known."""
    cells = {name: [value(*each) for each in results] for name, value in columns.items()}
    shown = {name: values for name, values in cells.items() if name != "cost" or any(values)}
    aligned = ["left" if name in {*STRATEGY, "types"} else "right" for name in shown]
    return tabulate(shown, list(shown), tablefmt="github", disable_numparse=True, colalign=aligned)
