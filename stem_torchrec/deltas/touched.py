"""Which rows of tables a rank has trained on since the last delta: a bit for each task and id of a feature.

The ids of a feature are recorded once, whatever number of tables looks them up:

                 labels of a row          touched["uid"]        changed rows of
    id 3         finish                   0b01                  finish/uid, shared/uid
    id 7         finish and like          0b11                  finish/uid, like/uid, shared/uid
    id 9         none                     0b00                  none

A row of a table has changed if its id is touched by a task that trains the table, so per-task tables have fewer changed
rows than shared ones where labels are missing. Small batches wait until there are enough of them: between two steps the
code and what it reads have left the caches, which costs more than the ids of a small batch do.
"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

_WIDTHS = (np.uint8, np.uint16, np.uint32, np.uint64)
_WAITING_IDS = 2**16
"""Ids that may wait to be recorded, 512 KiB; a batch with as many is recorded at once."""
_Batch = tuple[KeyedJaggedTensor, Tensor, Tensor | None]
"""Features, labels and their weights, as `TouchedRows.add` gets them."""


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
        self._recorded = self._empty()
        self._waiting: list[_Batch] = []
        """Those that are not recorded yet."""
        self._waiting_ids = 0

    @property
    def arrays(self) -> dict[str, NDArray]:
        """By feature, (num_embeddings,)."""
        self._record_waiting()
        return self._recorded

    def bits_of(self, tasks: Iterable[int]) -> int:
        """The bits of some tasks."""
        return sum({1 << task % self._bits for task in tasks})

    def add(self, features: KeyedJaggedTensor, labels: Tensor, weights: Tensor | None = None) -> None:
        """Records the ids of a batch on the host, which keeps its values.

        Args:
            features: its ids.
            labels: (B, T), or (B,) for one task; NaN is a missing label.
            weights: of the labels, (B, T); a label of the weight 0 is missing.
        """
        self._waiting.append((features, labels, weights))
        self._waiting_ids += len(features.values())
        if self._waiting_ids >= _WAITING_IDS:
            self._record_waiting()

    def add_rows(self, feature: str, rows: Tensor) -> None:
        """Records rows of a feature for all tasks."""
        self.arrays[feature][rows.numpy()] = np.iinfo(self._kind).max

    def take(self) -> dict[str, NDArray]:
        """Returns what has been recorded, and starts anew."""
        taken, self._recorded = self.arrays, self._empty()
        return taken

    def give_back(self, taken: Mapping[str, NDArray]) -> None:
        """Records again what `take` has returned."""
        for name, array in taken.items():
            self.arrays[name] |= array

    def _empty(self) -> dict[str, NDArray]:
        return {name: np.zeros(rows, dtype=self._kind) for name, rows in self._rows.items()}

    def _record_waiting(self) -> None:
        waiting, self._waiting, self._waiting_ids = self._waiting, [], 0
        if not waiting:
            return
        bits, every = self._bits_of_rows(waiting), self.bits_of(range(self._tasks))
        keys = waiting[0][0].keys()
        lengths = [features.lengths().numpy().reshape(len(keys), -1) for features, _, _ in waiting]
        values = [
            np.split(features.values().numpy(), np.cumsum(of_batch.sum(axis=1))[:-1])
            for (features, _, _), of_batch in zip(waiting, lengths, strict=True)
        ]
        for i, name in enumerate(keys):
            if name not in self._recorded:
                continue
            touched = self._recorded[name]
            ids = _joined([of_batch[i] for of_batch in values])
            if bits is None:
                touched[ids] = every
                continue
            counts = _joined([of_batch[i] for of_batch in lengths])
            single = len(ids) == len(counts) and bool((counts == 1).all())
            _set_bits(touched, ids, bits if single else np.repeat(bits, counts))

    def _bits_of_rows(self, batches: Sequence[_Batch]) -> NDArray | None:
        """The bits of the tasks that each row of batches has labels of, (B,); None where each row has all of them."""
        if self._every_lookup:
            return None
        labels = torch.cat([labels for _, labels, _ in batches])
        known = ~labels.isnan().reshape(len(labels), -1)
        if batches[0][2] is not None:
            known &= torch.cat([weights > 0 for _, _, weights in batches if weights is not None])
        if known.all():
            return None
        bits: NDArray = np.zeros(len(labels), dtype=self._kind)
        for task, rows in enumerate(known.T.numpy()):
            bits |= np.where(rows, self._kind(self.bits_of([task])), self._kind(0))
        return bits


def _joined(parts: Sequence[NDArray]) -> NDArray:
    """Arrays one after another; a single one is not copied."""
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _set_bits(touched: NDArray, ids: NDArray, bits: NDArray) -> None:
    """Sets the bits (n,) of the ids (n,), of which some may come several times."""
    while len(ids):
        # Frequent ids have all of theirs already: to look costs less than to write.
        new = np.flatnonzero(bits & ~touched[ids])
        ids, bits = ids[new], bits[new]
        # Of an id that comes several times the last bits are set, and the next round sets others.
        touched[ids] |= bits


def on_any_rank(touched: NDArray, group: dist.ProcessGroup | None) -> NDArray:
    """The bits that are set on any rank; all ranks call it. It costs an exchange of a byte for each id and 8 tasks."""
    together = torch.from_numpy(touched.copy().view(np.uint8))
    dist.all_reduce(together, op=dist.ReduceOp.BOR, group=group)
    return together.numpy().view(touched.dtype)
