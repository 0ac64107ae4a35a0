"""The files of an example: a small log with random labels, a finished run, an interrupted one, and changes to them."""

import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from fuzz.case import Case, Edit
from fuzz.logs import SCHEMA, write_parquet

OUTPUTS = ("--output-dir", "--out", "--json", "--predictions", "--checkpoint.folder")
"""Options that name what a command writes."""
DEFAULT_OUTPUTS = ("runs", "data", "plan", "home/.cache", "tmp")
"""What commands may write without such an option, and the caches of libraries."""


def write_log(folder: Path) -> None:
    """A log of 96 rows in two files, with labels that nothing predicts."""
    for path, rows, seed in (("train/a.parquet", 64, 1), ("train/b.parquet", 32, 2), ("valid/a.parquet", 64, 3)):
        write_parquet(folder / path, {"rows": rows, "seed": seed})
    (folder / "schema.json").write_text(json.dumps(SCHEMA, indent=1))


class Workspace:
    """A folder with log/, run/ (trained to its end) and paused/ (interrupted after two of its three steps).

    Args:
        folder: to be made, as a copy of `template` or with a log only.
        template: the folder of another workspace.
    """

    def __init__(self, folder: Path, template: Path | None = None) -> None:
        self.folder = folder
        if template is None:
            write_log(folder / "log")
            for name in ("home", "tmp"):
                (folder / name).mkdir()
        else:
            shutil.copytree(template, folder, symlinks=True)

    def edit(self, edit: Edit) -> None:
        """Changes the workspace; an edit of a file that does not exist changes nothing."""
        path = self.folder / edit["path"]
        match edit["do"]:
            case "write":
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(edit["text"].encode("utf-8", "surrogateescape"))
            case "parquet":
                write_parquet(path, edit)
            case "truncate" if path.is_file():
                os.truncate(path, int(path.stat().st_size * edit["share"]))
            case "flip" if path.is_file() and path.stat().st_size:
                content = bytearray(path.read_bytes())
                content[int((len(content) - 1) * edit["share"])] ^= edit["bits"]
                path.write_bytes(content)
            case "copy" if path.exists() and edit["to"] != edit["path"]:
                target = self.folder / edit["to"]
                _remove(target)
                target.parent.mkdir(parents=True, exist_ok=True)
                if path.is_dir():
                    # An earlier edit may have put a link to its own folder there.
                    shutil.copytree(path, target, symlinks=True)
                else:
                    shutil.copy(path, target)
            case "delete" if path.exists():
                _remove(path)
            case "folder":
                _remove(path)
                path.mkdir(parents=True)
            case "link":
                _remove(path)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.symlink_to(edit["to"])

    def files(self) -> dict[str, tuple[int, int, int]]:
        """Size, time of change and inode of every file."""
        return {
            str(path.relative_to(self.folder)): (stat.st_size, stat.st_mtime_ns, stat.st_ino)
            for path in self.folder.rglob("*")
            if not path.is_dir()
            for stat in [path.lstat()]
        }

    def changed(self, before: Mapping[str, Sequence[int]], case: Case) -> list[str]:
        """The files that are new, gone or other than before, outside of what the case may write."""
        after = self.files()
        outputs = [value for name in OUTPUTS if (value := case.option(name)) is not None]
        outputs += ["whole", "parts"] if case.command == "resume" else []
        allowed = [os.path.normpath(re.sub("^~(?=/|$)", "home", value)) for value in (*DEFAULT_OUTPUTS, *outputs)]
        return [
            name
            for name in sorted(before.keys() | after.keys())
            if before.get(name) != after.get(name)
            and not any(name == path or name.startswith(f"{path}/") or path == "." for path in allowed)
        ]

    def remove(self) -> None:
        """Deletes the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
