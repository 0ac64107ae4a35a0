"""deltas.md from the rows that were measured."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from tabulate import tabulate

from common.load import cores, is_loaded
from common.machine import describe_run
from common.output import write_whole

_LOADED = (
    "Other processes kept cores busy: seconds are longer than they would be alone, and their small differences say "
    "nothing. CPU seconds are those of the run alone."
)


def write_report(
    folder: Path, sizes: Sequence[Mapping[str, Any]], blocks: Sequence[Mapping[str, Any]], groups: Sequence[str]
) -> None:
    """Writes deltas.md.

    Args:
        folder: of the results.
        sizes: a row for each delta of each precision and format.
        blocks: a row for each block of steps; those that ship take turns with those that do not.
        groups: whose tables are compared.
    """
    lines = []
    for row in sizes:
        shares = [f"{row[f'share_{group}']:.1%}" for group in groups]
        kind = "all rows" if row["full"] else "changed rows"
        lines.append(
            [row["precision"], row["format"], row["number"], kind, f"{row['mb']:.1f}", *shares,
             f"{row['paused']:.2f}", f"{row['written']:.1f}"]
        )  # fmt: skip
    names = ["precision", "format", "delta", "has", "MB", *(f"rows of {group}" for group in groups)]
    text = ["# What deltas cost", "", *(f"- {name}: {value}" for name, value in describe_run("deltas.py").items()), ""]
    text += ["## Sizes", "", tabulate(lines, [*names, "paused s", "written s"], "github", disable_numparse=True), ""]
    text += ["## Time", "", *_cost(blocks), "", *_blocks(blocks), ""]
    write_whole(folder / "deltas.md", "\n".join(text))
    print(f"report: {folder / 'deltas.md'}")


def _cost(blocks: Sequence[Mapping[str, Any]]) -> list[str]:
    """What one delta after another costs, and what the first one does."""
    alone, shipping = ([row for row in blocks if row["kind"] == kind] for kind in ("alone", "shipping"))
    lines = []
    for name, unit in (("seconds", "seconds"), ("cpu", "CPU seconds of all ranks")):
        # A machine that gets slower or faster does so on both sides of a block.
        beside = [(before[name] + after[name]) / 2 for before, after in pairwise(alone)]
        ratios = [row[name] / without - 1 for row, without in zip(shipping, beside, strict=True)]
        lines.append(
            [unit, f"{median(ratios):+.2%}", f"{min(ratios):+.2%} to {max(ratios):+.2%}",
             f"{blocks[0][name] - alone[0][name]:.1f}"]
        )  # fmt: skip
    names = ["in", f"a delta every {median(row['seconds'] for row in shipping):.0f} s", "from block to block"]
    known = [row["recording_ms"] / 1000 * row["steps"] + row["paused"] for row in shipping]
    share = median(seconds / row["seconds"] for seconds, row in zip(known, shipping, strict=True))
    recording = median(row["recording_ms"] for row in shipping)
    loaded = any(is_loaded(row["others"], cores()) for row in blocks)
    return [
        *([_LOADED, ""] if loaded else []),
        tabulate(lines, [*names, "the first delta, once"], "github", disable_numparse=True),
        "",
        f"Recording ids takes {recording:.3f} ms of a step; with the pauses it is "
        f"{share:.2%} of the time. The rest of a delta is written beside the steps. The median step has "
        f"{median(row['step_ms'] for row in shipping):.2f} ms where ids are recorded, and "
        f"{median(row['step_ms'] for row in alone):.2f} where they are not.",
    ]


def _blocks(blocks: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = [
        [
            row["kind"], row["steps"], f"{row['seconds']:.2f}", f"{row['cpu']:.2f}", f"{row['step_ms']:.2f}",
            f"{row['recording_ms']:.3f}", f"{row['paused']:.2f}", "" if row["mb"] is None else f"{row['mb']:.1f}",
            f"{row['others']:.1f}",
        ]
        for row in blocks
    ]  # fmt: skip
    names = ["block", "steps", "seconds", "CPU seconds", "median step ms", "recording ms a step", "paused s", "MB"]
    return [tabulate(lines, [*names, "cores busy with others"], "github", disable_numparse=True)]
