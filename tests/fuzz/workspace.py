"""The files of an example: a small log with random labels, runs that have ended or not, a bundle, a copy made of
deltas, and their changes."""

import json
import os
import shutil
from pathlib import Path

from fuzz.case import Edit
from fuzz.logs import SCHEMA, write_parquet
from kuairand_files import write_raw

TABLES = "- {name: uid, rows: 100, dim: 8}\n- {name: tags, rows: 50, dim: 8, pooling: 3, zipf: 1.2}\n"
"""The list of tables.yaml."""


def write_log(folder: Path) -> None:
    """A log of 96 training rows in two files, and two other splits, with labels that nothing predicts."""
    for seed, (path, rows) in enumerate({"train/a": 64, "train/b": 32, "valid/a": 64, "test/a": 64}.items(), start=1):
        write_parquet(folder / f"{path}.parquet", {"rows": rows, "seed": seed})
    (folder / "schema.json").write_text(json.dumps(SCHEMA, indent=1))


class Workspace:
    """A folder with log/, run/ (trained to its end), its bundle/ and copy/, paused/, raw/ (KuaiRand in small) and
    tables.yaml.

    Args:
        folder: to be made, as a copy of `template` or with a log only.
        template: the folder of another workspace; without it, runs, bundle and copy are left to the caller.
    """

    def __init__(self, folder: Path, template: Path | None = None) -> None:
        self.folder = folder
        if template is None:
            write_log(folder / "log")
            write_raw(folder / "raw")
            (folder / "tables.yaml").write_text(TABLES)
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

    def remove(self) -> None:
        """Deletes the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
