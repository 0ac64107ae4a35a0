"""Scores the rows of a file with a bundle, batch by batch, in memory that does not grow with the file."""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, BinaryIO, Literal

import pyarrow as pa
from annotated_types import Interval

from stem_torchrec.config.path_fields import with_paths
from stem_torchrec.runtime.errors import UserError
from stem_torchrec.runtime.path_options import LocalFolder, PathOption
from stem_torchrec.runtime.store_path import path_of
from stem_torchrec.serving.batch_scores import BatchScores
from stem_torchrec.serving.bundle import ROWS_AT_ONCE, Bundle, load_bundle
from stem_torchrec.serving.csv_batches import Dialect, csv_batches
from stem_torchrec.serving.manifest import MANIFEST_FILE
from stem_torchrec.serving.row_files import (
    STANDARD_STREAM,
    Format,
    RowBatch,
    format_of,
    json_batches,
    naming_input,
    open_input,
    packing_of,
    parquet_batches,
)
from stem_torchrec.serving.score_outputs import ReaderGoneError, open_output

_Input = Annotated[str, PathOption("file", words=(STANDARD_STREAM,))]
_Output = Annotated[str, PathOption("file", writes=True, words=(STANDARD_STREAM,))]


@dataclass(frozen=True)
class ScoreConfig:
    """What to score, and where the predictions go."""

    bundle: LocalFolder = ""
    """The folder that stem-export wrote."""
    input: _Input = ""
    """Parquet, CSV or JSON lines, told by the end of the name, CSV and JSON lines also with .gz, .zst, .bz2 or .xz
    behind it; - for standard input, as JSON lines unless --input-format says otherwise."""
    output: _Output = ""
    """Parquet, CSV or JSON lines with a column for each task: probabilities, or expected numbers or levels of
    labels that are some; - for standard output, as JSON lines unless --output-format says otherwise."""
    keep: tuple[str, ...] = ()
    """Columns of the input that the output has as well, in front of the predictions."""
    on_bad_row: Literal["fail", "null"] = "fail"
    """What a row with a wrong value does: ends the command, without an output, or gets null predictions."""
    input_format: Format | None = None
    """Of the input, where its name does not tell."""
    output_format: Format | None = None
    """Of the output, where its name does not tell."""
    batch_rows: Annotated[int, Interval(ge=1, le=2**20)] = ROWS_AT_ONCE
    """Rows that are read, scored and written at a time."""
    delimiter: str = ""
    """Between the cells of a CSV; by default a comma, or a tab in a .tsv."""
    columns: str = ""
    """Of a CSV without a header, the names of all columns, with commas between them."""
    nulls: tuple[str, ...] = ("",)
    """Cells of a CSV that mean that there is no value, as nulls of a source in a spec."""
    trim: bool = False
    """Removes blanks around the cells of a CSV."""
    overwrite: bool = False
    """Replaces an existing output."""


def score_file(config: ScoreConfig, bundle: Bundle | None = None) -> None:
    """Writes the predictions of each row of `config.input` to `config.output`, in the order of the rows.

    Args:
        config: the options.
        bundle: that is loaded already; by default the one in `config.bundle`.

    Raises UserError for options that do not fit, for a bundle or file that is damaged, and for a column that is missing
    or of another type; DataError for a row with a wrong value; OSError where a file cannot be read or written. Then a
    file is not written, and standard output has the batches before.
    """
    if not ((config.bundle or bundle) and config.input and config.output):
        raise UserError(
            "--bundle, --input or --output is missing; give --bundle BUNDLE --input FILE --output FILE, or - for a "
            "standard stream."
        )
    config = with_paths(config)
    input_format = format_of(config.input, config.input_format, "--input")
    output_format = format_of(config.output, config.output_format, "--output")
    dialect = _dialect(config, input_format)
    _check_output(config)
    started = time.perf_counter()
    bundle = bundle or load_bundle(config.bundle)
    for name in config.keep:
        if name in bundle.tasks:
            raise UserError(f"--keep {name} is a task of the bundle, whose column has this name; leave it out.")
    scores = BatchScores(bundle, _shown(config.input), nulls=config.on_bad_row == "null")
    rows, absent = 0, {*bundle.input_columns, *config.keep}
    # The reader has gone: nobody waits for the rows behind.
    with (
        suppress(ReaderGoneError),
        open_output(config.output, output_format) as output,
        open_input(config.input, input_format) as file,
    ):
        columns = list(dict.fromkeys([*bundle.input_columns, *config.keep]))
        batches = _batches(file, config, input_format, columns=columns, dialect=dialect)
        for batch in naming_input(config.input, batches):
            scored = scores(batch)
            kept = {name: _kept(name, batch) for name in config.keep}
            output.write(pa.table({**kept, **{task: scored[task] for task in bundle.tasks}}))
            rows += batch.rows
            absent &= batch.absent
        if not rows:
            output.write(_no_rows(bundle, config.keep))
    _print_summary(scores, rows, sorted(absent), time.perf_counter() - started)


def _check_output(config: ScoreConfig) -> None:
    """Raises UserError for an output that would replace a file that it must not."""
    if config.output == STANDARD_STREAM:
        return
    if packing_of(config.output):
        raise UserError(f"--output {config.output} would be packed, which is not done; leave out the last ending.")
    same = (
        config.input == config.output
        if "://" in config.output
        else (os.path.realpath(config.input) == os.path.realpath(config.output))
    )
    if same:
        raise UserError(f"--output {config.output} is the input; give another.")
    path = path_of(config.output)
    # A link of a local path stays, and what it leads to is replaced.
    target = Path(os.path.realpath(path)) if isinstance(path, Path) else path
    # Its vocabulary/ is refused as that of a log is.
    if (target.parent / MANIFEST_FILE).exists():
        raise UserError(f"--output {config.output} is in a bundle; give a file outside of it.")
    if isinstance(path, Path) and not path.parent.is_dir():
        raise UserError(f"--output {config.output} is in a folder that does not exist; make it, or give another.")
    if path.exists() and not config.overwrite:
        raise UserError(f"--output {config.output} exists already; give another, or --overwrite.")


def _dialect(config: ScoreConfig, kind: Format) -> Dialect:
    """The dialect of a CSV; raises UserError for a delimiter of several characters."""
    delimiter = config.delimiter.replace("\\t", "\t") or ("\t" if kind == "tsv" else ",")
    if len(delimiter) != 1 or delimiter in '"\r\n':
        raise UserError(
            f"--delimiter is {config.delimiter!r}, but must be one character, no quote and no end of a line."
        )
    names = tuple(name.strip() for name in config.columns.split(",")) if config.columns else ()
    return Dialect(delimiter, names, config.nulls, config.trim)


def _batches(
    file: BinaryIO, config: ScoreConfig, kind: Format, *, columns: list[str], dialect: Dialect
) -> Iterator[RowBatch]:
    path = _shown(config.input)
    if kind == "parquet":
        return parquet_batches(file, path, columns, config.batch_rows)
    if kind == "jsonl":
        return json_batches(file, path, columns, config.batch_rows)
    return csv_batches(file, path, columns, batch_rows=config.batch_rows, dialect=dialect)


def _shown(path: str) -> str:
    return "standard input" if path == STANDARD_STREAM else path


def _kept(name: str, batch: RowBatch) -> pa.Array:
    """A column as the input has it."""
    values = batch.columns[name]
    if isinstance(values, pa.Array):
        return values
    try:
        return pa.array(values)
    except (pa.ArrowException, OverflowError, UnicodeEncodeError) as error:
        raise UserError(
            f"--keep {name} has values of several types ({batch.place(0)} to {batch.place(batch.rows - 1)}); leave it "
            "out, or give all of them the same type."
        ) from error


def _no_rows(bundle: Bundle, keep: tuple[str, ...]) -> pa.Table:
    """An output without rows has its columns."""
    kept = {name: pa.nulls(0) for name in keep}
    return pa.table({**kept, **{task: pa.nulls(0, pa.float32()) for task in bundle.tasks}})


def _print_summary(scores: BatchScores, rows: int, absent: list[str], seconds: float) -> None:
    """Prints to standard error, as standard output may have the rows."""
    if absent and rows:
        print(f"note: no row has the key {', '.join(absent)}; its value counts as missing", file=sys.stderr)
    if scores.wrong_rows:
        print(
            f"warning: {scores.wrong_rows} of {rows} rows have null predictions; the first is {scores.first_wrong}",
            file=sys.stderr,
        )
    print(f"{rows:,} rows scored in {seconds:.1f} s", file=sys.stderr)
