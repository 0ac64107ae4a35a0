"""A bundle as the server has it: with its version, its columns, an example, and warmed up."""

import gc
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from stem_torchrec.runtime.errors import DataError, UserError
from stem_torchrec.server.input_columns import InputColumn, example_row, input_columns
from stem_torchrec.server.json_rows import rows_of_json
from stem_torchrec.serving.bundle import Bundle, load_bundle
from stem_torchrec.serving.manifest import MANIFEST_FILE, checksum

_WARM_UP = (1, 2, 64)
"""Rows that a new bundle scores before it answers requests: the first calls take longer than the others."""


@dataclass(frozen=True, eq=False)
class ServedBundle:
    """A bundle that answers requests."""

    bundle: Bundle
    version: str
    """The first 12 digits of the SHA-256 of its manifest, which has the checksums of its files."""

    @cached_property
    def columns(self) -> Mapping[str, InputColumn]:
        """What it reads from a request."""
        return input_columns(self.bundle)

    @cached_property
    def example(self) -> dict[str, Any]:
        """A row that it scores."""
        return example_row(self.bundle)

    def warm_up(self) -> None:
        """Scores its example some times. Raises whatever scoring raises, but for a value that it does not take."""
        for count in _WARM_UP:
            rows = rows_of_json([self.example] * count, self.columns)
            try:
                self.bundle.score(rows.table)
            except DataError:
                return


def open_bundle(path: Path) -> ServedBundle:
    """Loads a bundle and warms it up; a link is followed once, so that all files are from one bundle.

    Raises UserError for a folder that is no bundle, or one that cannot be loaded or does not score.
    """
    folder = path.resolve()
    served = ServedBundle(load_bundle(folder), checksum(folder / MANIFEST_FILE)[:12])
    try:
        served.warm_up()
    except UserError:
        raise
    # A program may fail in any way.
    except Exception as error:
        raise UserError(f"{folder} does not score its own example ({type(error).__name__}: {error}).") from error
    # A program that was loaded leaves circles of objects behind.
    gc.collect()
    return served


def breaking_changes(old: ServedBundle, new: ServedBundle) -> list[str]:
    """Why requests that the old bundle answers may fail or miss something with the new one.

    Example::

        breaking_changes(old, new)  # ["it does not score like", "it reads a column 'city' as text"]
    """
    kinds, of_old = new.bundle.manifest.kinds, old.bundle.manifest.kinds
    changes = [f"it does not score {task}" for task in old.bundle.tasks if task not in new.bundle.tasks]
    changes += [
        f"it predicts {task} as {kinds.get(task, 'binary')}"
        for task in old.bundle.tasks
        if task in new.bundle.tasks and kinds.get(task) != of_old.get(task)
    ]
    return changes + [
        f"it reads a column {name!r} as {column.kind}"
        for name, column in new.columns.items()
        if old.columns.get(name) != column
    ]
