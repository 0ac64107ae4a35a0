"""The folders of deltas: emptied for a new delta, and removed where --delta.keep allows it.

With keep = 3, F a delta that has all rows:

    F 1 2           the next one is to have all rows
    F 1 2 F 4       the newest three need those before them
    F 4 5           the newest three begin with F, so those before it are removed

So a copy at any delta, or at none, comes to the newest one, and the newest `keep` deltas are never removed.
"""

from stem_torchrec.deltas.manifest import (
    MANIFEST_FILE,
    Delta,
    all_numbers,
    complete_numbers,
    delta_path,
    read_delta,
)
from stem_torchrec.runtime.errors import UserError
from stem_torchrec.runtime.paths import remove_folder, remove_tree
from stem_torchrec.runtime.process import from_first_rank
from stem_torchrec.runtime.store_path import AnyPath


class KeptDeltas:
    """Which deltas of a folder stay; all ranks know it, and rank 0 removes the others.

    Args:
        folder: of the deltas.
        keep: the newest ones that stay at least; None for all of them.
    """

    def __init__(self, folder: AnyPath, keep: int | None) -> None:
        self._folder, self._keep = folder, keep
        # As many as decide whether the next one is to have all rows.
        self._full = [] if keep is None else from_first_rank(lambda: _full_numbers(folder, keep))
        """Numbers of the deltas that have all rows, rising."""

    def add(self, delta: Delta) -> None:
        """Counts a delta that has been written; all ranks call it."""
        if delta.manifest.full:
            self._full.append(delta.manifest.number)

    def needs_all_rows(self, number: int) -> bool:
        """Whether delta `number`, the next one, is to have all rows, so that those before it can be removed."""
        return self._keep is not None and (not self._full or number - self._full[-1] >= self._keep)

    def remove_old(self, number: int) -> None:
        """Removes the deltas that the newest ones up to `number` do not need. Raises OSError."""
        if self._keep is None:
            return
        first = max((full for full in self._full if full <= number + 1 - self._keep), default=0)
        for old in all_numbers(self._folder):
            if old < first:
                remove_folder(str(delta_path(self._folder, old)), first=MANIFEST_FILE)


def make_empty(path: AnyPath) -> None:
    """Makes a folder, without what an interrupted write has left in it; raises UserError for a complete delta."""
    if (path / MANIFEST_FILE).exists():
        raise UserError("another process has written this delta; give each run a --delta.out of its own")
    remove_tree(path)
    path.mkdir(parents=True, exist_ok=True)


def _full_numbers(folder: AnyPath, newest: int) -> list[int]:
    """Which of the newest deltas of a folder have all rows, rising; raises as `read_delta` does."""
    numbers = complete_numbers(folder)[-newest:]
    return [number for number in numbers if read_delta(delta_path(folder, number)).manifest.full]
