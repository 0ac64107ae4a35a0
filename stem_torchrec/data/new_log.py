"""The folder of a log that is being made: it appears under its name when it is complete, in the place of a log only."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from stem_torchrec.data.schema import SCHEMA_FILE, load_schema
from stem_torchrec.runtime.errors import UnwritableError, UserError
from stem_torchrec.runtime.folder_lock import FolderLock
from stem_torchrec.runtime.whole_file import naming_file

SPLITS = ("train", "valid", "test")
VOCABULARY = "vocabulary"
"""Folder of the values behind the ids."""
WAITING = "waiting"
"""Folder of the values that have no id yet, with how often they occurred."""
TRANSFORMS_FILE = "transforms.json"
"""From raw columns to those of the log."""
TRANSFORMS_FORMAT = 1
"""Format version of transforms.json."""
WORK = "work"
"""Folder beside the new log for what is needed only while it is made."""
FILES = ("spec.yaml", TRANSFORMS_FILE, "report.html", "report.md")
"""Files of a log beside schema.json."""


@contextmanager
def new_log(out: Path, *, overwrite: bool, take_over: bool = False, work: str | None = None) -> Iterator[Path]:
    """A path at which to make the folder of a log; it is renamed to `out` when the block has ended.

    One process at a time makes a log. What a killed one leaves in `.NAME.new` beside it, the next one removes, or goes
    on with if both do the same work.

    Args:
        out: absent or empty, or a log to replace.
        overwrite: whether to replace a log.
        take_over: takes the folder from another process that makes the same log.
        work: tells the work of one process from that of another; None for work that cannot go on.

    Raises UserError as `check_out` does, and where another process makes the same log.
    """
    check_out(out, overwrite=overwrite)
    unfinished = out.with_name(f".{out.name}.new")
    new, old = unfinished / "new", unfinished / "old"
    with naming_file(out), FolderLock(take_over=take_over) as lock:
        lock.take(str(unfinished), other="--out")
        begun = unfinished / "work.txt"
        goes_on = work is not None and begun.is_file() and begun.read_text() == work
        for left in (old, *(() if goes_on else (new, unfinished / WORK))):
            shutil.rmtree(left, ignore_errors=True)
        if work is not None:
            begun.write_text(work)
        keeps = False
        try:
            yield new
            lock.confirm()
            # Other files may have come meanwhile.
            check_out(out, overwrite=overwrite)
            if out.exists():
                out.rename(old)
            new.rename(out)
        except (UnwritableError, OSError, KeyboardInterrupt, RuntimeError):
            # RuntimeError: what DuckDB raises for a query that a signal interrupts.
            keeps = work is not None
            # What another process has taken over looks like a disk that fails.
            lock.confirm()
            raise
        finally:
            with suppress(UserError):
                lock.confirm()
                if not keeps:
                    shutil.rmtree(unfinished)


def check_out(out: Path, *, overwrite: bool) -> None:
    """Raises UserError unless `out` is absent or empty, or with `overwrite` holds a log and nothing else."""
    around = {place for own in (Path.home(), Path.cwd()) for place in (own, *own.parents)}
    if out.resolve() in around:
        raise UserError(f"--out {out} is {out.resolve()}, which is more than a log; give a folder of its own.")
    if not out.is_dir():
        if out.is_symlink() or out.exists():
            raise UserError(f"--out {out} is not a folder; give another.")
        return
    content = {path.name: path for path in out.iterdir()}
    # A spec alone is one that stem-prepare has guessed and that the log will have as well.
    if not content or set(content) == {"spec.yaml"}:
        return
    foreign = [f"{out / name}" for name, path in sorted(content.items()) if not _is_of_log(path)]
    if foreign:
        raise UserError(f"--out {out} is not replaced, as {foreign[0]} does not belong to a log; give another folder.")
    if SCHEMA_FILE not in content:
        raise UserError(f"--out {out} is not replaced, as it has no {SCHEMA_FILE} and may be no log; give another.")
    if not overwrite:
        raise UserError(f"--out {out} has a log already; --overwrite replaces it.")


def _is_of_log(path: Path) -> bool:
    """Whether it is what a script in datasets/ writes: schema.json, or a folder of Parquet files."""
    if path.is_symlink():
        return False
    if path.name == SCHEMA_FILE:
        with suppress(UserError):
            return path.is_file() and bool(load_schema(str(path.parent)))
    if path.name in FILES:
        return path.is_file()
    return (
        path.is_dir()
        and path.name in (*SPLITS, VOCABULARY, WAITING)
        and all(file.suffix == ".parquet" and file.is_file() and not file.is_symlink() for file in path.iterdir())
    )
