"""Writes raw rows of synthetic days, in which users and items change and go, and prints how well each can be predicted.

python datasets/synthetic_days.py --out raw/days --days 20
stem-prepare raw/days/spec.yaml --set "where=day = 1" --out data/1
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import tyro
from tabulate import tabulate

from stem_torchrec.config import DaysConfig
from stem_torchrec.config.command_line import parse_arguments
from stem_torchrec.data.synthetic_days import write_days
from stem_torchrec.runtime.command import run_main
from stem_torchrec.runtime.path_options import LocalOutput


@dataclass(frozen=True, kw_only=True)
class Options(DaysConfig):
    """Where to write, and what to draw."""

    out: LocalOutput
    """Folder to write: a Parquet file for each day, facts.json, and a spec.yaml for stem-prepare."""


def main() -> None:
    """Writes the rows that the command line describes and prints what is known of them."""
    options = parse_arguments(Options(out=tyro.MISSING), description=__doc__ or "")
    config = DaysConfig(**{field.name: getattr(options, field.name) for field in fields(DaysConfig)})
    print(summary(write_days(config, options.out)))


def summary(days: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns a table with a line for each day; for each task the best reachable AUC, and that of yesterday's truth."""
    tasks = list(dict.fromkeys(task for facts in days.values() for task in facts["best_auc"]))
    lines = [
        [day, facts["rows"], facts["new_users"], facts["new_items"]]
        + [facts[kind].get(task) for task in tasks for kind in ("best_auc", "stale_auc")]
        for day, facts in days.items()
    ]
    headers = ["day", "rows", "rows of new users", "of new items"]
    headers += [name for task in tasks for name in (f"best AUC, {task}", f"yesterday's best, {task}")]
    return tabulate(lines, headers, floatfmt=("", "", ".2%", ".2%", *[".4f"] * (2 * len(tasks))))


if __name__ == "__main__":
    run_main(main)
