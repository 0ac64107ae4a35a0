"""Writes a synthetic multi-task log and prints the best AUC that a model can reach on it.

python datasets/synthetic.py --out data/synthetic --conflict 0.8
"""

from dataclasses import dataclass, fields

import tyro
from tabulate import tabulate

from stem_torchrec.config import SyntheticConfig
from stem_torchrec.config.command_line import parse_arguments
from stem_torchrec.data.schema import Schema
from stem_torchrec.data.synthetic import generate
from stem_torchrec.runtime.command import run_main
from stem_torchrec.runtime.path_options import LocalOutput


@dataclass(frozen=True, kw_only=True)
class Options(SyntheticConfig):
    """Where to write, and what to draw."""

    out: LocalOutput
    """Folder to write; it appears once it is complete."""
    overwrite: bool = False
    """Replaces an existing log in `out`, and nothing but a log."""
    take_over: bool = False
    """Takes `out` from another process that makes the same log."""


def main() -> None:
    """Writes the log that the command line describes and prints its sizes."""
    options = parse_arguments(Options(out=tyro.MISSING), description=__doc__ or "")
    config = SyntheticConfig(**{field.name: getattr(options, field.name) for field in fields(SyntheticConfig)})
    print(summary(generate(config, options.out, options.overwrite, take_over=options.take_over)))


def summary(schema: Schema) -> str:
    """Returns a table with a line for each split and task."""
    lines = []
    for name, split in schema.splits.items():
        fact = "best_auc" if name == "valid" else f"best_auc_{name}"
        for task, count in split.labels.items():
            labels, best = split.rows - count.missing, (schema.facts or {}).get(f"{fact}/{task}")
            lines.append((name, split.rows, task, count.positives / max(labels, 1), count.missing / split.rows, best))
    headers = ("split", "rows", "task", "positive", "missing", "best reachable AUC")
    return tabulate(lines, headers, floatfmt=("", "", "", ".2%", ".2%", ".4f"))


if __name__ == "__main__":
    run_main(main)
