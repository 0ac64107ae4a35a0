"""Result files of a benchmark: the folder, and files that are never seen half written."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from matplotlib.figure import Figure

from stem_torchrec.runtime.errors import UserError
from stem_torchrec.runtime.whole_file import naming_file, whole_file

_PROBE_BYTES = 4096


def make_folder(out: str) -> Path:
    """Makes the folder of the results, before they are measured.

    Raises UserError for a folder that holds a run or a log, and OSError where files cannot be written to it.
    """
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / "schema.json").exists():
        raise UserError(f"--out {out} holds a run or a log; give another folder.")
    probe = folder / ".writable"
    try:
        with naming_file(folder):
            # A full disk has room for an empty file.
            probe.write_bytes(bytes(_PROBE_BYTES))
    finally:
        probe.unlink(missing_ok=True)
    return folder


def write_whole(path: Path, text: str) -> None:
    """Writes text; a reader gets either the old file or the complete new one."""
    with whole_file(path) as new:
        new.write_text(text)


def write_table(path: Path, table: pa.Table) -> None:
    """Writes a Parquet file, as `write_whole` does."""
    with whole_file(path) as new:
        pq.write_table(table, new)


def write_figure(path: Path, figure: Figure) -> None:
    """Writes a plot, as `write_whole` does."""
    with whole_file(path) as new:
        figure.savefig(new, dpi=120)
