"""The options of `stem-prepare`."""

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro
from annotated_types import Interval

from stem_torchrec.runtime.path_options import LocalFile, LocalFolder, LocalOutput

Engines = Literal["duckdb", "spark"]


@dataclass(frozen=True)
class PrepareOptions:
    """What to prepare and where."""

    spec: Annotated[str, tyro.conf.Positional] = ""
    """A YAML file, or the name of a spec that is installed, such as kuairand_pure; or a raw file, a folder or a pattern
    of some (CSV, JSON lines or Parquet), of which a spec is guessed."""
    files: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """More raw files, parts of the same log."""
    label: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """Of raw files, a label: NAME="EXPRESSION", as in income="income = '>50K'", or the name of a column of 0 and 1; may
    be given several times."""
    drop: tuple[str, ...] = ()
    """Of raw files, columns that are no features."""
    columns: str = ""
    """Of raw CSV without a header, the names of all columns, with commas between them."""
    header_from: LocalFile = ""
    """Of raw CSV without a header, a file whose first line has the names."""
    guess_only: bool = False
    """Of raw files, writes the spec to spec.yaml in `out`, to be edited, and ends."""
    out: LocalOutput = ""
    """Folder of the log; it appears when it is complete."""
    set: tuple[str, ...] = ()
    """NAME=TEXT for variables of the spec, and split.time.gap=3600 for its fields."""
    vocabularies: LocalFolder = ""
    """A log, or a run of one, whose ids, edges, means and deviations this log takes over."""
    grow: bool = False
    """Gives new values of train ids behind those of --vocabularies, and fits features that it lacks."""
    engine: Engines = "duckdb"
    """duckdb runs in this process, out of core; spark in the session of spark-submit or SPARK_REMOTE, else on this
    machine."""
    memory: Annotated[float, Interval(ge=0.25, le=10_000)] = 1.2
    """GiB that DuckDB may take; it spills to the disk of --out. The process takes about 0.3 GiB more. The heap of a
    Spark on this machine, of at least 1 GiB."""
    threads: Annotated[int, Interval(ge=1, le=1024)] | None = None
    """Threads of DuckDB, or of a Spark on this machine; by default all processors."""
    report: bool = True
    """Writes report.html and report.md, and looks for leaks: a few queries for each feature."""
    overwrite: bool = False
    """Replaces an existing log in `out`, and nothing but a log."""
    take_over: bool = False
    """Takes `out` from another process that prepares the same log."""
