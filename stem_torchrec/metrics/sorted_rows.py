"""Rows sorted by a key, in memory or on disk, which all ranks exchange piece by piece."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from stem_torchrec.metrics.collectives import gather, send_rows, world_size

SAMPLES = 1024
"""Keys of each chunk and rank from which the pieces are chosen: a piece exceeds its share by at most 2/1024 of all
rows."""


class SortedRows:
    """A chunk of this rank's rows, sorted by a key.

    Args:
        key: numbers, none is NaN, shape (N,); N may be 0.
        *columns: what else belongs to the rows, each of shape (N,).
        file: the columns are written to `file.0.npy`, `file.1.npy`, ...; without it they stay in memory.

    Example::

        rows = SortedRows(torch.tensor([0.5, 0.1, 0.3]), torch.tensor([1, 2, 3]))
        rows.cut(torch.tensor(0.3), None)  # [tensor([0.3, 0.5]), tensor([3, 1])]
    """

    def __init__(self, key: Tensor, *columns: Tensor, file: Path | None = None) -> None:
        self.device, self.dtype = key.device, key.dtype
        self.rows = len(key)
        key, order = key.sort()
        self._columns: list[Tensor] = []
        self._files: list[Path] = []
        for i, column in enumerate((key, *(column[order] for column in columns))):
            if file is None:
                self._columns.append(column)
            else:
                self._files.append(file.with_name(f"{file.name}.{i}.npy"))
                np.save(self._files[-1], column.cpu().numpy())

    def sample(self) -> Tensor:
        """SAMPLES keys at even distances in the order; zeros for a chunk without rows."""
        positions = torch.arange(SAMPLES) * self.rows // SAMPLES
        if not self.rows:
            return torch.zeros(SAMPLES, dtype=self.dtype, device=self.device)
        if self._columns:
            return self._columns[0][positions.to(self.device)]
        return torch.from_numpy(self._map(0)[positions.numpy()]).to(self.device)

    def position(self, bound: Tensor) -> int:
        """The number of rows whose key is below `bound`."""
        if self._columns:
            return int(torch.searchsorted(self._columns[0], bound))
        return int(np.searchsorted(self._map(0), bound.item()))

    def cut(self, low: Tensor | None, high: Tensor | None) -> list[Tensor]:
        """The columns, key first, of the rows with low <= key < high; None means no limit."""
        start, stop = (None if bound is None else self.position(bound) for bound in (low, high))
        if self._columns:
            return [column[start:stop] for column in self._columns]
        # The mapping is closed after each read, so that its pages do not count as this process's memory.
        return [torch.from_numpy(np.array(self._map(i)[start:stop])).to(self.device) for i in range(len(self._files))]

    def _map(self, column: int) -> np.ndarray:
        mapped: np.ndarray = np.load(self._files[column], mmap_mode="r")
        return mapped


@dataclass(frozen=True)
class Rounds:
    """Who gets which rows when: rank p % W gets piece p in round p // W, so that keys ascend with the ranks."""

    number: int
    """Number of rounds."""
    boundaries: Tensor
    """The W * number - 1 keys at which the pieces after the first begin, ascending."""

    def limits(self, turn: int) -> tuple[Tensor | None, Tensor | None]:
        """The first key of a round and that of the next round, None at the ends."""
        ranks = world_size()
        low = self.boundaries[turn * ranks - 1] if turn else None
        return low, self.boundaries[(turn + 1) * ranks - 1] if turn + 1 < self.number else None

    def inner(self, turn: int) -> Tensor:
        """The W - 1 boundaries between the pieces of a round."""
        ranks = world_size()
        return self.boundaries[turn * ranks : (turn + 1) * ranks - 1]


def plan_rounds(chunks: Sequence[SortedRows], rows_at_once: int, cut: Callable[[int], Tensor]) -> Rounds:
    """Chooses the number of rounds so that a rank reads about `rows_at_once` rows in each; the same on all ranks.

    If the keys of a rank are close together, as when they drift along the log, most of its rows fall into few rounds.
    Then the number is doubled as long as that helps; it does not help where many keys are equal.

    Args:
        chunks: of this rank; one or more.
        rows_at_once: rows of a rank in a round.
        cut: returns the boundaries between a number of pieces, the same on all ranks.
    """
    rows = torch.tensor(sum(chunk.rows for chunk in chunks), device=chunks[0].device)
    number = max(1, -(-int(gather(rows).max()) // rows_at_once))
    before = math.inf
    while True:
        rounds = Rounds(number, cut(number * world_size()))
        ends = [limits[1] for limits in map(rounds.limits, range(number))]
        below = [sum(chunk.rows if end is None else chunk.position(end) for chunk in chunks) for end in ends]
        largest = int(gather(rows.new_tensor(max(b - a for a, b in pairwise([0, *below])))).max())
        if largest <= 1.25 * rows_at_once or largest > 0.75 * before:
            return rounds
        number, before = 2 * number, largest


def quantiles(chunks: Sequence[SortedRows], pieces: int) -> Tensor:
    """The keys at which all ranks' rows are cut into pieces of about the same size, the same on all ranks.

    All ranks call it, each with one chunk or more.

    Example::

        # rank 0: the keys 0 to 4999      rank 1: the keys 5000 to 9999
        quantiles(chunks, 4)  # about [2500, 5000, 7500], shape (pieces - 1,)
    """
    samples = [chunk.sample() for chunk in chunks]
    num_chunks = int(gather(torch.tensor(len(chunks), device=samples[0].device)).max())
    samples += [torch.zeros_like(samples[0])] * (num_chunks - len(chunks))
    sizes = [chunk.rows for chunk in chunks] + [0] * (num_chunks - len(chunks))
    # A key weighs as much as its chunk has rows.
    weights = torch.tensor(sizes, device=samples[0].device).repeat_interleave(SAMPLES)
    sample, order = gather(torch.cat(samples)).flatten().sort()
    weight = gather(weights).flatten()[order].cumsum(0)
    share = weight[-1] * torch.arange(1, pieces, device=weight.device) // pieces
    return sample[torch.searchsorted(weight, share).clamp(max=len(sample) - 1)]


def send_to_piece_ranks(inner: Tensor, key: Tensor, *columns: Tensor) -> list[Tensor]:
    """Sends this rank's rows of a round to the ranks of their pieces; returns those received, key first.

    Args:
        inner: the W - 1 boundaries between the pieces of the round.
        key: of each row, shape (N,).
        *columns: what else belongs to the rows, each of shape (N,).
    """
    return send_rows(torch.searchsorted(inner, key, right=True), key, *columns)
