"""deltas.md from the rows that were measured."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from tabulate import tabulate

from common.load import cores, is_loaded
from common.machine import describe_run
from common.output import write_whole

_MINUTE = 60
_LOADED = (
    "Other processes kept cores busy: pauses are longer than they would be alone, and small differences say nothing."
)


def write_report(
    folder: Path, sizes: Sequence[Mapping[str, Any]], pairs: Sequence[Mapping[str, Any]], groups: Sequence[str]
) -> None:
    """Writes deltas.md.

    Args:
        folder: of the results.
        sizes: a row for each delta of each precision and format.
        pairs: a row for each run with and without deltas, which take turns.
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
    text += ["## Time", "", *_pairs(pairs), ""]
    changed = [row["paused"] for row in sizes if not row["full"]]
    text += [
        f"A delta of changed rows stops the run for {median(changed):.2f} s (median of {len(changed)}): "
        f"{median(changed) / _MINUTE:.2%} of the time at one a minute.",
        "",
    ]
    write_whole(folder / "deltas.md", "\n".join(text))
    print(f"report: {folder / 'deltas.md'}")


def _pairs(pairs: Sequence[Mapping[str, Any]]) -> list[str]:
    lines, shares, steps = [], [], []
    for shipped, alone in zip(pairs[::2], pairs[1::2], strict=True):
        shares.append(shipped["seconds"] / alone["seconds"] - 1)
        steps.append(shipped["step_ms"] / alone["step_ms"] - 1)
        lines.append(
            [
                f"{shipped['seconds']:.1f}", f"{alone['seconds']:.1f}", shipped["deltas"], f"{shipped['paused']:.2f}",
                f"{shipped['paused'] / shipped['seconds']:.2%}", f"{steps[-1]:+.2%}", f"{shares[-1]:+.2%}",
                f"{shipped['others']:.1f} / {alone['others']:.1f}",
            ]
        )  # fmt: skip
    names = ["seconds with", "without", "deltas", "paused s", "share of pauses", "longer steps", "more time in all"]
    names.append("cores busy with others")
    loaded = any(is_loaded(row["others"], cores()) for row in pairs)
    return [
        *([_LOADED, ""] if loaded else []),
        tabulate(lines, names, "github", disable_numparse=True),
        "",
        f"Median: {median(shares):+.2%} of time in all with a delta every {pairs[0]['minutes'] * _MINUTE:g} seconds; "
        f"steps between the pauses, in which ids are recorded and the deltas are written, take {median(steps):+.2%}.",
    ]
