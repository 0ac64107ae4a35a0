"""How fast a bundle of large tables starts, and how processes share its pages."""

import json
import os
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

from annotated_types import Interval
from tabulate import tabulate

from stem_torchrec.config import parse_arguments
from stem_torchrec.runtime.errors import UserError
from stem_torchrec.runtime.path_options import InputFolder, LocalOutput
from stem_torchrec.serving.manifest import TABLES_FILE, read_manifest

from common.machine import describe_run
from common.output import check_out, make_folder, write_whole
from common.processes import module_command, module_path
from studies.sparse_tables import grow_tables

_NOTE = """A copy of the bundle got {rows:,} rows in each of the {tables} tables of `{feature}`, of zeros in holes of
the file, so that no disk is read: what a cold disk takes for a page is not measured. Each process scores the same
{ids:,} rows of random ids, and stays. Start is from the start of Python to the first probability, loading is
`load_bundle` and that row alone, and scoring is that of all rows. RSS and PSS are those of the mapping of
tables.safetensors, as they are in the last process when that many have scored: PSS counts a page that n processes have
as an n-th, and private are pages that no other has. The sums of the probabilities differ by {difference:g} at most."""


@dataclass(frozen=True)
class TablesConfig:
    """Which bundle to make large, and how many processes open it."""

    bundle: InputFolder = ""
    """A bundle of ids with fp32 tables: of a run on a log without transforms.json, as the synthetic one."""
    out: LocalOutput = ""
    """Folder for large_tables.md; the large bundle is in it meanwhile, and takes no room."""
    gb: Annotated[float, Interval(gt=0, le=10**5)] = 20
    """GB of tables."""
    processes: Annotated[int, Interval(ge=1, le=64)] = 3
    """Processes that open it, one after another."""
    rows: Annotated[int, Interval(ge=1, le=10**7)] = 20_000
    """Rows that each scores; each touches a page of 4 KB in each large table."""


def read_command_line(args: Sequence[str] | None = None, *, description: str | None = None) -> TablesConfig:
    """What to measure; raises UserError for values that make no sense.

    Args:
        args: the command line, that of this process if None.
        description: what `--help` shows above the options.
    """
    config = parse_arguments(TablesConfig(), args, description=description or "")
    check_out(config.out)
    if not config.bundle:
        raise UserError("--bundle is missing; give a bundle of a run on a log of ids.")
    return config


def measure(config: TablesConfig) -> list[dict[str, Any]]:
    """Makes the large bundle, starts the processes and writes the report; returns what each measured."""
    manifest = read_manifest(Path(config.bundle))
    if manifest.raw or manifest.precision != "fp32":
        raise UserError(f"--bundle {config.bundle} has transforms or no fp32 tables; give one of ids in fp32.")
    folder = make_folder(config.out)
    feature = max(manifest.tables, key=lambda table: table.rows).feature
    large = [table for table in manifest.tables if table.feature == feature]
    rows = round(config.gb * 1e9 / (4 * sum(table.columns for table in large)))
    with TemporaryDirectory(dir=folder, prefix="bundle-") as copy:
        shutil.copytree(config.bundle, copy, dirs_exist_ok=True)
        grow_tables(Path(copy), feature, rows)
        size = (Path(copy) / TABLES_FILE).stat().st_size
        measured = _ask_all(copy, config)
    sums = [each["sum"] for each in measured]
    about = {
        **{"rows": rows, "tables": len(large), "feature": feature, "ids": config.rows},
        "difference": max(sums) - min(sums),
    }
    _write(folder / "large_tables.md", measured, size, about)
    print(f"report: {folder / 'large_tables.md'}")
    return measured


def _ask_all(bundle: str, config: TablesConfig) -> list[dict[str, Any]]:
    """Starts the processes one after another; after each, asks the last one for its memory."""
    measured = []
    with ExitStack() as stack:
        for number in range(1, config.processes + 1):
            start = time.perf_counter()
            process = stack.enter_context(
                subprocess.Popen(
                    module_command("studies.table_reader", bundle, str(config.rows)),
                    env=os.environ | module_path(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                )
            )  # fmt: skip
            # Before the process is waited for, its input ends.
            assert process.stdin is not None
            stack.callback(process.stdin.close)
            first = _answer(process)
            seconds = time.perf_counter() - start - first["rows_s"]
            process.stdin.write("memory\n")
            process.stdin.flush()
            measured.append({"processes": number, "start_s": seconds, **first, **_answer(process)})
            print("  ".join(f"{name} {value:.6g}" for name, value in measured[-1].items()), flush=True)
    return measured


def _answer(process: "subprocess.Popen[str]") -> dict[str, float]:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise UserError(f"a process that opens the bundle has ended with status {process.wait()}; its error is above.")
    answer: dict[str, float] = json.loads(line)
    return answer


def _write(path: Path, measured: Sequence[Mapping[str, Any]], size: int, about: Mapping[str, Any]) -> None:
    head = describe_run("large_tables.py", tables=f"{size / 1e9:.1f} GB")
    names = {
        "processes": "processes", "start_s": "start s", "load_s": "loading s", "rows_s": "scoring s",
        "rss_mb": "RSS MB", "pss_mb": "PSS MB", "private_mb": "private MB", "process_mb": "whole process MB",
    }  # fmt: skip
    lines = [[each[name] for name in names] for each in measured]
    formats = ("", ".1f", ".2f", ".2f", ".1f", ".1f", ".1f", ".0f")
    table = tabulate(lines, list(names.values()), "github", floatfmt=formats)
    note = _NOTE.format(**about)
    text = ["# Large tables", "", *(f"- {name}: {value}" for name, value in head.items()), "", table, "", note, ""]
    write_whole(path, "\n".join(text))
