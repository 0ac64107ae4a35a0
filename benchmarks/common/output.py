"""Result files of a benchmark: the folder, and files that are never seen half written."""

from pathlib import Path

from stem_torchrec.runtime.errors import UserError
from stem_torchrec.runtime.folder_lock import FolderLock

_LOCK = FolderLock(take_over=None)
"""Of the folders that this process writes results to."""


def make_folder(out: str) -> Path:
    """Makes the folder of the results, which this process owns until it ends.

    Raises UserError if that fails, or another process owns it.
    """
    folder = Path(out)
    try:
        _LOCK.take(out, other="--out")
    except OSError as error:
        raise UserError(f"the results cannot be written to {out} ({error.strerror}); give another --out.") from error
    return folder


def write_whole(path: Path, text: str) -> None:
    """Writes under another name first, so that a reader gets either the old file or the complete new one."""
    _LOCK.confirm()
    new = path.with_name(path.name + ".new")
    new.write_text(text)
    new.rename(path)
