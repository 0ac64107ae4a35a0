"""deltas.md from the rows that were measured."""

from collections.abc import Mapping, Sequence
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
    first, alone, shipping = ([row for row in blocks if row["kind"] == kind] for kind in ("first", "alone", "shipping"))
    lines = []
    for name, unit in (("seconds", "s"), ("cpu", "CPU s of all ranks")):
        without = median(row[name] for row in alone)
        pairs = [with_deltas[name] / before[name] - 1 for before, with_deltas in zip(alone, shipping, strict=True)]
        lines.append(
            [unit, f"{median(row[name] for row in shipping) / without - 1:+.2%}",
             f"{min(pairs):+.2%} to {max(pairs):+.2%}", f"{first[0][name] - without:.1f}"]
        )  # fmt: skip
    steps = median(row["step_ms"] for row in shipping), median(row["step_ms"] for row in alone)
    recording = median(row["recording_ms"] for row in shipping)
    loaded = any(is_loaded(row["others"], cores()) for row in blocks)
    every = f"a delta every {median(row['seconds'] for row in alone):.0f} s"
    return [
        *([_LOADED, ""] if loaded else []),
        tabulate(
            lines, ["in", every, "pairs of blocks", "the first delta, once"], "github", disable_numparse=True
        ),
        "",
        f"Recording ids takes {recording:.3f} ms of a step ({recording / steps[1]:.2%}). The median step has "
        f"{steps[0]:.2f} ms where ids are recorded, and {steps[1]:.2f} where they are not.",
    ]  # fmt: skip


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
