"""Path options: what a user may write for a file or a folder, checked before anything starts.

A field of a configuration that holds a path has one of the types below; `config.path_fields` finds them.
"""

import os
import re
import stat
import unicodedata
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import unquote

from stem_torchrec.runtime.errors import UserError, nearest
from stem_torchrec.runtime.file_systems import STORES, check_package, g_pathmgr
from stem_torchrec.runtime.internals.path_handlers import StoreHandler, handler_of


@dataclass(frozen=True)
class PathOption:
    """What a path option takes."""

    kind: Literal["file", "folder"]
    writes: bool = False
    """Whether the command writes there."""
    local: bool = False
    """Whether the command needs a local path."""
    words: tuple[str, ...] = ()
    """Values that are not paths."""
    endings: tuple[str, ...] = ()
    """What may stand behind a path, as `:best`."""


InputFile = Annotated[str, PathOption("file")]
"""A file that a command reads, local or in a store."""
InputFolder = Annotated[str, PathOption("folder")]
"""A folder that a command reads, local or in a store."""
OutputFile = Annotated[str, PathOption("file", writes=True)]
"""A file that a command writes, local or in a store."""
OutputFolder = Annotated[str, PathOption("folder", writes=True)]
"""A folder that a command writes, local or in a store."""
LocalFile = Annotated[str, PathOption("file", local=True)]
"""A local file that a command reads."""
LocalFolder = Annotated[str, PathOption("folder", local=True)]
"""A local folder that a command reads."""
LocalOutput = Annotated[str, PathOption("folder", writes=True, local=True)]
"""A local folder that a command writes."""

_SCHEME = re.compile(r"\s*([A-Za-z][A-Za-z0-9+.-]*):(/*)")
_KNOWN = ("s3", "gs", "abfs", "hdfs")
"""The usual schemes of stores, for errors."""
_SYSTEM_FOLDERS = ("/dev", "/proc", "/sys")
_SHARED_MEMORY = ("/dev/shm",)
_LONGEST_SUFFIX = 16
"""Bytes that names beside a path add to its own, as `.new.` does."""
_LONGEST_FILE = 100
"""Bytes that the names in a folder add to its path, as `/checkpoints/step-000000120/__0_0.distcp` does."""


def checked_path(text: str, option: PathOption) -> str:
    """The path that a user wrote, as the program takes it: a local path, or a URL of iopath.

    `~` becomes the home folder and `file:///runs` becomes /runs.

    Raises UserError for a path that cannot be meant or used: a scheme without a file system, or whose package is not
    installed; a file for a folder, and the other way round; a device; a name that is too long.

    Example::

        checked_path("~/runs/a", PathOption("folder", writes=True))  # "/home/me/runs/a"
        checked_path("s4://bucket/a", PathOption("folder"))          # UserError: s4://bucket/a cannot be opened: ...
    """
    if not text.strip():
        raise UserError(f"{text!r} is empty; give a path.")
    for ending in option.endings:
        if text.endswith(ending):
            return checked_path(text.removesuffix(ending), replace(option, endings=())) + ending
    _check_characters(text)
    match = _SCHEME.match(text)
    scheme = match[1].lower() if match else ""
    if scheme == "file":
        return _checked_local(_path_of_file_url(text.strip()), option)
    if "://" in text or (match and (match[2] or scheme in STORES)):
        if option.local:
            raise UserError(f"{text} is not a local {option.kind}, and this command needs one.")
        return _checked_url(text.strip(), scheme, option)
    return _checked_local(text, option)


def _checked_url(text: str, scheme: str, option: PathOption) -> str:
    handler = handler_of(g_pathmgr, text)
    if handler is not None and not isinstance(handler, StoreHandler):
        return text.rstrip("/")
    if not scheme:
        raise UserError(f"{text} is neither a local path nor a URL; write a path without `://`.")
    if scheme not in STORES:
        raise UserError(
            f"{text} cannot be opened: no file system is known for {scheme}://, only for local paths, file://, "
            f"{', '.join(f'{known}://' for known in _KNOWN)}{nearest(scheme, _KNOWN) or '.'}"
        )
    place = re.sub("^[^:]*:", "", text)
    bucket, *parts = place.removeprefix("//").rstrip("/").split("/")
    if not place.startswith("//") or (not bucket and scheme != "hdfs") or {"", ".", ".."} & set(parts):
        raise UserError(f"{text} is not a URL of a store; write {scheme}://BUCKET/KEY, without empty parts and dots.")
    url = "/".join([f"{scheme}://{bucket}", *parts])
    check_package(url)
    if option.kind == "file" and (not parts or place.endswith("/")):
        raise UserError(f"{text} is a folder; give a file.")
    return url


def _path_of_file_url(text: str) -> str:
    """RFC 8089, as `Path.as_uri` writes it."""
    rest = text.partition(":")[2]
    path = re.sub(r"^//(localhost)?(?=/)", "", rest, flags=re.IGNORECASE)
    if not path.startswith("/") or path.startswith("//"):
        raise UserError(f"{text} is not a URL of a local file; write file:///FOLDER/NAME.")
    path = unquote(path)
    _check_characters(path)
    return path


def _check_characters(text: str) -> None:
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in text):
        raise UserError(f"{text!r} has a character that does not print or is not UTF-8; give another path.")


def _checked_local(text: str, option: PathOption) -> str:
    path = os.path.expanduser(text)
    if path.startswith("~"):
        raise UserError(f"{text} cannot be found: there is no home folder for {path.partition('/')[0]}; write it out.")
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        mode = None
    except OSError as error:
        raise UserError(f"{_shortened(text)} cannot be used ({error.strerror}); give another path.") from error
    if mode is None:
        _check_length(text, path)
    elif option.kind == "folder" and not stat.S_ISDIR(mode):
        raise UserError(f"{text} is not a folder; give a folder.")
    elif option.kind == "file" and not stat.S_ISREG(mode):
        other = "a folder" if stat.S_ISDIR(mode) else "a device, FIFO or socket"
        raise UserError(f"{text} is {other}; give a regular file.")
    if option.writes:
        _check_place(text, path, option)
    return path


def _check_length(text: str, path: str) -> None:
    for longer in (path.rstrip("/") + "x" * _LONGEST_SUFFIX, f"{path}/{'x' * _LONGEST_FILE}"):
        try:
            os.lstat(longer)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise UserError(f"{_shortened(text)} cannot be used ({error.strerror}); give a shorter path.") from error


def _check_place(text: str, path: str, option: PathOption) -> None:
    """Raises UserError for folders of the system, and for the folder that a user is in."""
    places = {os.path.abspath(path), os.path.realpath(path)}
    if any(_is_below(place, _SYSTEM_FOLDERS) and not _is_below(place, _SHARED_MEMORY) for place in places):
        raise UserError(f"{text} is in a folder of the system, not on a disk; give another path.")
    if option.kind == "file" and path.endswith("/"):
        raise UserError(f"{text} ends as a folder does; give a file.")
    if option.kind == "folder" and any(_is_below(os.getcwd(), (place,)) for place in places):
        raise UserError(f"{text} is the folder that you are in, or holds it; give a folder of its own.")
    for place in map(Path, places):
        for folder in (place, *place.parents):
            if _is_split(folder):
                raise UserError(f"{text} is in {folder.name}/ of the log {folder.parent}; give a path outside of it.")


def _is_split(folder: Path) -> bool:
    """Whether a folder holds the rows of a log, beside its schema.json; that of a run is beside a config.yaml."""
    is_log = (folder.parent / "schema.json").is_file() and not (folder.parent / "config.yaml").exists()
    return is_log and any(folder.rglob("*.parquet"))


def _is_below(path: str, folders: tuple[str, ...]) -> bool:
    return any(os.path.commonpath([path, folder]) == folder for folder in folders)


def _shortened(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:60]}... ({len(text)} characters)"
