"""Which rows of tables a rank has trained on since the last delta: a bit for each task and id of a feature.

The ids of a feature are recorded once, whatever number of tables looks them up:

                 labels of a row          touched["uid"]        changed rows of
    id 3         finish                   0b01                  finish/uid, shared/uid
    id 7         finish and like          0b11                  finish/uid, like/uid, shared/uid
    id 9         none                     0b00                  none

A row of a table has changed if its id is touched by a task that trains the table, so per-task tables have fewer changed
rows than shared ones where labels are missing. A batch costs a pass over its ids for each set of rows that has the
labels of some task: one where no label is missing.
"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

_WIDTHS = (np.uint8, np.uint16, np.uint32, np.uint64)


class TouchedRows:
    """A bit for each task and id of each feature; on the host.

    Args:
        num_embeddings: by feature.
        tasks: number of tasks, T. From 65 on, tasks share bits: a delta then has some rows too many.
        every_lookup: whether each row that is looked up moves, also without a label, as moments and decay do it.

    Example::

        touched = TouchedRows({"uid": 1000}, tasks=2)
        touched.add(features, labels)
        touched.arrays["uid"]  # (1000,) uint8
    """

    def __init__(self, num_embeddings: Mapping[str, int], tasks: int, *, every_lookup: bool = False) -> None:
        self._kind = next((kind for kind in _WIDTHS if np.iinfo(kind).bits >= tasks), np.uint64)
        self._bits = np.iinfo(self._kind).bits
        self._tasks, self._every_lookup = tasks, every_lookup
        self._rows = dict(num_embeddings)
        self.arrays = self._empty()
        """By feature, (num_embeddings,)."""

    def bits_of(self, tasks: Iterable[int]) -> int:
        """The bits of some tasks."""
        return sum({1 << task % self._bits for task in tasks})

    def add(self, features: KeyedJaggedTensor, labels: Tensor, weights: Tensor | None = None) -> None:
        """Records the ids of a batch on the host.

        Args:
            features: its ids.
            labels: (B, T), or (B,) for one task; NaN is a missing label.
            weights: of the labels, (B, T); a label of the weight 0 is missing.
        """
        known = ~labels.isnan() if weights is None else ~labels.isnan() & (weights > 0)
        rows_of = self._rows_by_labels(known.reshape(len(labels), -1).numpy())
        lengths = features.lengths().numpy().reshape(len(features.keys()), -1)
        values, offsets = features.values().numpy(), features.offset_per_key()
        for i, name in enumerate(features.keys()):
            if name not in self.arrays:
                continue
            touched, ids = self.arrays[name], values[offsets[i] : offsets[i + 1]]
            single = len(ids) == lengths.shape[1] and bool((lengths[i] == 1).all())
            for bits, rows in rows_of:
                of_rows = ids if rows is None else ids[rows if single else np.repeat(rows, lengths[i])]
                # An id may come several times: each time the same bits are added to what was there before.
                touched[of_rows] |= self._kind(bits)

    def add_all(self) -> None:
        """Records every row."""
        for array in self.arrays.values():
            array.fill(np.iinfo(self._kind).max)

    def add_rows(self, feature: str, rows: Tensor) -> None:
        """Records rows of a feature for all tasks."""
        self.arrays[feature][rows.numpy()] = np.iinfo(self._kind).max

    def take(self) -> dict[str, NDArray]:
        """Returns what has been recorded, and starts anew."""
        taken, self.arrays = self.arrays, self._empty()
        return taken

    def give_back(self, taken: Mapping[str, NDArray]) -> None:
        """Records again what `take` has returned."""
        for name, array in taken.items():
            self.arrays[name] |= array

    def _empty(self) -> dict[str, NDArray]:
        return {name: np.zeros(rows, dtype=self._kind) for name, rows in self._rows.items()}

    def _rows_by_labels(self, known: NDArray[np.bool_]) -> Sequence[tuple[int, NDArray[np.bool_] | None]]:
        """The rows that have labels of some tasks, (B,), each set of rows once, with the bits of the tasks."""
        everything = self.bits_of(range(self._tasks))
        if self._every_lookup or known.all():
            return [(everything, None)]
        by_rows: dict[bytes, tuple[int, NDArray[np.bool_]]] = {}
        for task in range(known.shape[1]):
            rows = known[:, task]
            bits, _ = by_rows.get(key := rows.tobytes(), (0, rows))
            by_rows[key] = bits | self.bits_of([task]), rows
        return [(bits, rows) for bits, rows in by_rows.values() if rows.any()]


def on_any_rank(touched: NDArray, group: dist.ProcessGroup | None) -> NDArray:
    """The bits that are set on any rank; all ranks call it. It costs an exchange of a byte for each id and 8 tasks."""
    together = torch.from_numpy(touched.copy().view(np.uint8))
    dist.all_reduce(together, op=dist.ReduceOp.BOR, group=group)
    return together.numpy().view(touched.dtype)
