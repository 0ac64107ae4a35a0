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

# Keys of each chunk and rank that the pieces are chosen from: one has at most 2/1024 of all rows beyond its share.
SAMPLES = 1024


class SortedRows:
    """A chunk of this rank's rows in the order of a key.

    Args:
        key: numbers, none is NaN, shape (N,); N may be 0.
        *columns: shape (N,).
        file: where to put them, as `file.0.npy` and so on; in memory without it.
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
        """SAMPLES keys, evenly spaced in the order; zeros for a chunk without rows."""
        positions = torch.arange(SAMPLES) * self.rows // SAMPLES
        if not self.rows:
            return torch.zeros(SAMPLES, dtype=self.dtype, device=self.device)
        if self._columns:
            return self._columns[0][positions.to(self.device)]
        return torch.from_numpy(self._map(0)[positions.numpy()]).to(self.device)

    def position(self, bound: Tensor) -> int:
        """How many rows have a key below `bound`."""
        if self._columns:
            return int(torch.searchsorted(self._columns[0], bound))
        return int(np.searchsorted(self._map(0), bound.item()))

    def cut(self, low: Tensor | None, high: Tensor | None) -> list[Tensor]:
        """The rows with low <= key < high, key first; None is no limit."""
        start, stop = (None if bound is None else self.position(bound) for bound in (low, high))
        if self._columns:
            return [column[start:stop] for column in self._columns]
        # A mapping lives only while it is read, so that its pages do not count as this process's memory.
        return [torch.from_numpy(np.array(self._map(i)[start:stop])).to(self.device) for i in range(len(self._files))]

    def _map(self, column: int) -> np.ndarray:
        found: np.ndarray = np.load(self._files[column], mmap_mode="r")
        return found


@dataclass(frozen=True)
class Rounds:
    """How all ranks' rows pass: piece p is for rank p % W in round p // W, so that keys ascend with the ranks."""

    number: int
    boundaries: Tensor
    """The W * number - 1 keys at which the next piece begins, ascending."""

    def limits(self, turn: int) -> tuple[Tensor | None, Tensor | None]:
        """The first key of a round and that of the next one, None at the ends."""
        ranks = world_size()
        low = self.boundaries[turn * ranks - 1] if turn else None
        return low, self.boundaries[(turn + 1) * ranks - 1] if turn + 1 < self.number else None

    def inner(self, turn: int) -> Tensor:
        """The W - 1 boundaries between the pieces of a round."""
        ranks = world_size()
        return self.boundaries[turn * ranks : (turn + 1) * ranks - 1]


def plan_rounds(chunks: Sequence[SortedRows], rows_at_once: int, cut: Callable[[int], Tensor]) -> Rounds:
    """As many rounds as keep the rows that a rank reads in one to about `rows_at_once`; the same on all ranks.

    Where a rank's keys lie together, as they do when they drift along the log, its rows come in few rounds; then there
    are more rounds, as long as that helps: equal keys stay together.

    Args:
        chunks: of this rank; one or more.
        rows_at_once: of a rank.
        cut: from a number of pieces to the boundaries between them, alike on all ranks.
    """
    rows = torch.tensor(sum(chunk.rows for chunk in chunks), device=chunks[0].device)
    number = max(1, -(-int(gather(rows).max()) // rows_at_once))
    before = math.inf
    while True:
        rounds = Rounds(number, cut(number * world_size()))
        ends = [limits[1] for limits in map(rounds.limits, range(number))]
        below = [sum(chunk.rows if end is None else chunk.position(end) for chunk in chunks) for end in ends]
        most = int(gather(rows.new_tensor(max(b - a for a, b in pairwise([0, *below])))).max())
        if most <= 1.25 * rows_at_once or most > 0.75 * before:
            return rounds
        number, before = 2 * number, most


def quantiles(chunks: Sequence[SortedRows], pieces: int) -> Tensor:
    """The pieces - 1 keys, ascending, that cut all ranks' rows into pieces of about the same size; alike on all ranks.

    All ranks call it, with any number of chunks, but at least one.
    """
    samples = [chunk.sample() for chunk in chunks]
    most = int(gather(torch.tensor(len(chunks), device=samples[0].device)).max())
    samples += [torch.zeros_like(samples[0])] * (most - len(chunks))
    sizes = [chunk.rows for chunk in chunks] + [0] * (most - len(chunks))
    # Each key stands for as many rows as the chunk has for a sample.
    weights = torch.tensor(sizes, device=samples[0].device).repeat_interleave(SAMPLES)
    sample, order = gather(torch.cat(samples)).flatten().sort()
    weight = gather(weights).flatten()[order].cumsum(0)
    share = weight[-1] * torch.arange(1, pieces, device=weight.device) // pieces
    return sample[torch.searchsorted(weight, share).clamp(max=len(sample) - 1)]


def to_their_ranks(inner: Tensor, key: Tensor, *columns: Tensor) -> list[Tensor]:
    """Sends this rank's rows of a round to the ranks of their pieces; returns those received, key first.

    Args:
        inner: the W - 1 boundaries between the pieces of the round.
        key: what the boundaries are of, (N,).
        *columns: (N,).
    """
    return send_rows(torch.searchsorted(inner, key, right=True), key, *columns)
