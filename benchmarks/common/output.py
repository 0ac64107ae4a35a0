"""Result files of a benchmark: the folder, and files that are never seen half written."""

from pathlib import Path

from stem_torchrec.runtime.errors import UserError


def make_folder(out: str) -> Path:
    """Makes the folder of the results; raises UserError if that fails."""
    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"the results cannot be written to {out} ({error.strerror}); give another --out.") from error
    return folder


def write_whole(path: Path, text: str) -> None:
    """Writes under another name first, so that a reader gets either the old file or the complete new one."""
    new = path.with_name(path.name + ".new")
    new.write_text(text)
    new.rename(path)
