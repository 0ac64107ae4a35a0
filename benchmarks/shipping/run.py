"""What is measured: deltas of each precision and format, and blocks of steps with and without deltas."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import pyarrow as pa
from annotated_types import Interval

from stem_torchrec.config import parse_known_arguments
from stem_torchrec.runtime.path_options import LocalOutput

from common.output import check_out, make_folder, write_table
from shipping.blocks import measure_blocks
from shipping.report import write_report
from shipping.shipped import ShippedRun, megabytes, share_of_rows, shipped_run

LINE = [
    *("--recipe", "synthetic", "--train.epochs", "1000", "--train.eval-every", "1000000", "--train.log-every", "10"),
    *("--data.synthetic.users", "2800000", "--data.synthetic.items", "2800000", "--checkpoint.minutes", "None"),
    *("--data.synthetic.zipf-exponent", "1.0", "--data.synthetic.missing", "0.0", "0.7"),
]
"""Options of the runs: 1 GiB of tables, ids by Zipf's law, and 70 % of the labels of `like` missing. Options of the
command line come after them."""
KINDS = (("fp32", "safetensors"), ("fp32", "parquet"), ("fp16", "safetensors"), ("int8", "safetensors"))
"""Precisions and formats whose sizes are measured."""
GROUPS = ("finish", "like", "shared")


@dataclass(frozen=True)
class DeltasConfig:
    """What to measure; options of train.py are taken as well and override this benchmark's own for the run."""

    out: LocalOutput = ""
    """Folder for the runs, deltas.md, deltas.parquet and blocks.parquet."""
    ranks: Annotated[int, Interval(ge=1, le=1024)] = 2
    """Ranks of the runs."""
    minutes: Annotated[float, Interval(gt=0, le=1e6)] = 1.0
    """Minutes between two deltas, of a block that ships and of one that does not."""
    rounds: Annotated[int, Interval(ge=1, le=10**6)] = 3
    """Blocks that ship changed rows, each between two that ship nothing; a block with the first delta comes before."""
    size_steps: Annotated[int, Interval(ge=30, le=10**9)] = 300
    """Steps of a run that measures sizes, which ships after each third of them."""


def read_command_line(
    args: Sequence[str] | None = None, *, description: str | None = None
) -> tuple[DeltasConfig, list[str]]:
    """What to measure, and the options of train.py; raises UserError for values that make no sense.

    Args:
        args: the command line, that of this process if None.
        description: what `--help` shows above the options.
    """
    config, rest = parse_known_arguments(DeltasConfig(), args, description=description or "")
    check_out(config.out)
    return config, rest


def measure_deltas(config: DeltasConfig, options: Sequence[str]) -> None:
    """Measures sizes, then blocks, and writes the report.

    Args:
        config: how long and how often to run.
        options: of train.py, after LINE.

    Raises UserError if a run fails.
    """
    folder = make_folder(config.out).resolve()
    third = config.size_steps // 30 * 10
    sizes: list[dict[str, Any]] = []
    for precision, row_format in KINDS:
        delta = ["--delta.precision", precision, "--delta.format", row_format, "--delta.steps", str(third)]
        run = shipped_run(folder / "run", [*LINE, *delta, *options], ranks=config.ranks, steps=3 * third, warm=10)
        sizes += [{"precision": precision, "format": row_format, **row} for row in rows_of(run)]
        print(sizes[-1], flush=True)
    blocks = measure_blocks(
        folder / "run", [*LINE, *options], ranks=config.ranks, seconds=60 * config.minutes, rounds=config.rounds
    )
    write_table(folder / "deltas.parquet", pa.Table.from_pylist(sizes))
    write_table(folder / "blocks.parquet", pa.Table.from_pylist(blocks))
    write_report(folder, sizes, blocks, GROUPS)


def rows_of(run: ShippedRun) -> list[dict[str, Any]]:
    """A row for each delta of a run."""
    return [
        {
            "number": manifest.number,
            "full": manifest.full,
            "mb": megabytes(manifest),
            "paused": run.pauses[manifest.step],
            "written": run.written[manifest.number],
            **{f"share_{group}": share_of_rows(manifest, group) for group in GROUPS},
        }
        for manifest in run.deltas
    ]
