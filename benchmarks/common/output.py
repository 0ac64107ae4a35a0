"""Result files of a benchmark: the folder, and files that are never seen half written."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from matplotlib.figure import Figure

from stem_torchrec.config.json_text import parse_json
from stem_torchrec.runtime.errors import UserError
from stem_torchrec.runtime.folder_lock import FolderLock
from stem_torchrec.runtime.paths import check_writable
from stem_torchrec.runtime.whole_file import whole_file
from stem_torchrec.training.recorded_options import AsOfNow, check_recorded

_LOCK = FolderLock(take_over=None)
"""Of the folders that this process writes results to."""


def check_out(out: str) -> None:
    """Raises UserError if the command line does not say where the results go."""
    if not out:
        raise UserError("say where the results go: --out DIR.")


def make_folder(out: str) -> Path:
    """Makes the folder of the results, before they are measured; this process owns it until it ends.

    Raises UserError for a folder that holds a run or a log, or is in use, and OSError where files cannot be written.
    """
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / "schema.json").exists():
        raise UserError(f"--out {out} holds a run or a log; give another folder.")
    _LOCK.take(out, other="--out")
    check_writable(folder)
    return folder


def record_identity(
    path: Path, identity: Mapping[str, Any], head: Mapping[str, Any], *, kind: str, as_of_now: AsOfNow = dict
) -> dict[str, Any]:
    """Writes what the results beside `path` belong to, or checks that they belong to the same; returns the first head.

    Args:
        path: of the file.
        identity: in values that JSON can represent.
        head: is for the reader of a report; it may differ when the work is resumed, and the first one is kept.
        kind: what it is, such as sweep.
        as_of_now: completes the identity of an earlier version; see `check_recorded`.

    Raises UserError if the file has another identity or is not such a file.
    """
    wanted = json.loads(json.dumps(identity))
    if not path.exists():
        write_whole(path, json.dumps({kind: wanted, "head": head}, indent=1))
    try:
        content = parse_json(path.read_text())
        existing, kept_head = content[kind], content["head"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} does not describe a {kind} ({error!r}); give another --out.") from error
    refusal, fix = f"{path.parent} holds another {kind}", "give another --out, or the same command"
    check_recorded(path, existing, wanted, refusal=refusal, fix=fix, as_of_now=as_of_now)
    return kept_head


def write_whole(path: Path, text: str) -> None:
    """Writes text; a reader gets either the old file or the complete new one."""
    with _result_file(path) as new:
        new.write_text(text)


def write_table(path: Path, table: pa.Table) -> None:
    """Writes a Parquet file, as `write_whole` does."""
    with _result_file(path) as new:
        pq.write_table(table, new)


def write_figure(path: Path, figure: Figure) -> None:
    """Writes a plot, as `write_whole` does."""
    with _result_file(path) as new:
        figure.savefig(new, dpi=120)


@contextmanager
def _result_file(path: Path) -> Iterator[Path]:
    """What to write instead of `path`, see `whole_file`; raises UserError if another process took a folder over."""
    _LOCK.confirm()
    with whole_file(path) as new:
        yield new
