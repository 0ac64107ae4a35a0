"""Local files that appear when they are complete, and errors that name them."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from secrets import token_hex


@contextmanager
def naming_file(path: str | Path) -> Iterator[None]:
    """Adds the name of a file to an OSError that has none, as those of open files and of Arrow."""
    try:
        yield
    except OSError as error:
        # One without a number has a message of its own.
        if error.filename is None and error.errno is not None:
            error.filename = str(path)
        raise


@contextmanager
def whole_file(path: Path, *, shared: bool = False) -> Iterator[Path]:
    """The path to write instead of `path`, which replaces it at the end of the block, or is removed by an error.

    Args:
        path: of the file.
        shared: whether several processes may write the file at once. Then each has a new name of its own, which stays
            behind if the process is killed; the last one to end wins. Otherwise, as in a folder that one process owns,
            the name is `.new.NAME`, and what a killed process has left there is replaced.

    Raises FileExistsError where either is a device, a FIFO or a folder.

    Example::

        with whole_file(folder / "report.parquet") as new:
            pq.write_table(table, new)
    """
    # The suffix stays, as writers of figures tell the format by it.
    new = path.with_name(f".new.{token_hex(4)}.{path.name}" if shared else f".new.{path.name}")
    for each in (path, new):
        check_replaceable(each)
    try:
        with naming_file(path):
            yield new
            new.replace(path)
    finally:
        new.unlink(missing_ok=True)


def check_replaceable(path: Path) -> None:
    """Raises FileExistsError for what exists and is not a regular file."""
    if path.exists() and not path.is_file():
        raise FileExistsError(f"{path} is not a regular file")
