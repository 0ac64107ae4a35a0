"""serving.md: the times of each side, and what it takes to start, to hold and to store it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from tabulate import tabulate

from common.output import write_whole

_NOTE = """P50 and P99 are of the calls of a turn, rows/s is that of its calls one after another; the medians of the
turns count. The first table begins with ids and offsets in memory, as each side takes them: the model alone. The second
begins with an Arrow table of raw columns, and has the transforms of the log as well; TorchRec's modules have none.

TorchRec is the run's model with its EmbeddingBagCollection, in eager mode; int8 is what TorchRec's
`quantize_embeddings` makes of it. Start is from the start of Python to the first probability, memory what the process
then has in memory after its turns (RSS), disk the files that it reads. AUC is that of all rows of the split."""


def write_report(
    path: Path, head: Mapping[str, str], times: Sequence[Mapping[str, Any]], totals: Sequence[Mapping[str, Any]]
) -> None:
    """Writes the report.

    Args:
        path: of the file.
        head: what `common.machine.describe_run` returns.
        times: of each turn.
        totals: of each side.
    """
    text = ["# Scoring rows", "", *(f"- {name}: {value}" for name, value in head.items()), "", _NOTE, ""]
    for raw, title in ((False, "From ids to probabilities"), (True, "From raw rows to probabilities")):
        turns: dict[tuple[int, str], list[Mapping[str, Any]]] = {}
        for turn in times:
            if turn["raw"] == raw:
                turns.setdefault((turn["rows"], turn["side"]), []).append(turn)
        order = [each["side"] for each in totals]
        lines = [
            [rows, side, *(median(turn[name] for turn in of_case) for name in ("p50_ms", "p99_ms", "rows_per_second"))]
            for (rows, side), of_case in sorted(turns.items(), key=lambda each: (each[0][0], order.index(each[0][1])))
        ]
        if lines:
            names = ["rows", "side", "P50 ms", "P99 ms", "rows/s"]
            text += [f"## {title}", "", tabulate(lines, names, "github", floatfmt=("", "", ".2f", ".2f", ",.0f")), ""]
    names = ["side", "start s", "memory MB", "disk MB", *(name for name in totals[0] if name.startswith("auc/"))]
    lines = [list(each.values()) for each in totals]
    formats = ("", ".1f", ".0f", ".1f", *[".5f"] * (len(names) - 4))
    text += ["## Start, memory, size and AUC", "", tabulate(lines, names, "github", floatfmt=formats), ""]
    write_whole(path, "\n".join(text))
