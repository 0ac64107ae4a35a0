"""The folder of a bundle while it is written: complete, it appears under its name or takes the place of another."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stem_torchrec.runtime.errors import UserError
from stem_torchrec.runtime.folder_lock import FolderLock
from stem_torchrec.runtime.owner_file import OWNER_FILE, read_owner
from stem_torchrec.runtime.paths import exchange, remove_tree
from stem_torchrec.runtime.whole_file import naming_file


@contextmanager
def new_folder(out: Path, *, take_over: bool) -> Iterator[Path]:
    """A folder to write to, which is renamed to `out` at the end of the block, or removed by an error.

    One process at a time writes it. What a process that was killed has left is removed.

    Raises UserError if `out` exists, or another process writes it, and OSError if it cannot be written.
    """
    unfinished = out.with_name(f"{out.name}.new")
    with naming_file(out), FolderLock(take_over=take_over) as lock:
        lock.check(str(unfinished), other="--out")
        if read_owner(str(unfinished)) is not None:
            remove_tree(unfinished)
        for each in (out, unfinished):
            if each.exists():
                raise UserError(f"{each} exists already; give another --out, or delete it.")
        lock.take(str(unfinished), other="--out")
        try:
            yield unfinished
            lock.confirm()
            lock.release()
            unfinished.rename(out)
        except BaseException:
            if not lock.lost:
                remove_tree(unfinished)
            raise


@contextmanager
def exchanged_folder(folder: Path, *, take_over: bool) -> Iterator[Path]:
    """A folder to write to, which takes the place of `folder` at the end of the block, or is removed by an error.

    A reader finds one or the other, whole. What a process that was killed has left is removed.

    Raises UserError if another process writes it, and OSError if it cannot be written.
    """
    unfinished = folder.with_name(f"{folder.name}.new")
    with naming_file(folder), FolderLock(take_over=take_over) as lock:
        lock.take(str(unfinished), other="--to")
        for path in unfinished.iterdir():
            if path.is_dir():
                remove_tree(path)
            elif not path.name.startswith(Path(OWNER_FILE).stem):
                path.unlink()
        try:
            yield unfinished
            lock.confirm()
            lock.release()
            exchange(folder, unfinished)
        finally:
            if not lock.lost:
                remove_tree(unfinished)
