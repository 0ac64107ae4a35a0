"""Rows sorted by a key, in memory or on disk, which all ranks exchange piece by piece."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stem_torchrec.exchange import gather, send_rows, world_size

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

    def cut(self, low: Tensor | None, high: Tensor | None) -> list[Tensor]:
        """The rows with low <= key < high, key first; None is no limit."""
        if self._columns:
            key = self._columns[0]
            start, stop = (None if bound is None else int(torch.searchsorted(key, bound)) for bound in (low, high))
            return [column[start:stop] for column in self._columns]
        # A mapping lives only while it is read, so that its pages do not count as this process's memory.
        start, stop = (
            None if bound is None else int(np.searchsorted(self._map(0), bound.item())) for bound in (low, high)
        )
        return [torch.from_numpy(np.array(self._map(i)[start:stop])).to(self.device) for i in range(len(self._files))]

    def _map(self, column: int) -> np.ndarray:
        found: np.ndarray = np.load(self._files[column], mmap_mode="r")
        return found


def rounds_of(chunks: Sequence[SortedRows], rows_at_once: int) -> int:
    """In how many rounds no rank reads more than about `rows_at_once` of its rows; the same on all ranks."""
    rows = torch.tensor(sum(chunk.rows for chunk in chunks), device=chunks[0].device)
    return max(1, -(-int(gather(rows).max()) // rows_at_once))


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


def read_rounds(chunks: Sequence[SortedRows], boundaries: Tensor, rounds: int) -> Iterator[tuple[Tensor, list[Any]]]:
    """The pieces of each round, as this rank holds them: the boundaries between them, and of each chunk its columns.

    Piece p is for rank p % W in round p // W, so that within a round the keys ascend with the ranks.

    Args:
        chunks: of this rank.
        boundaries: the W * rounds - 1 keys at which the next piece begins, ascending.
        rounds: as on all ranks.
    """
    ranks = world_size()
    for turn in range(rounds):
        first, last = turn * ranks, (turn + 1) * ranks
        low = boundaries[first - 1] if first else None
        high = boundaries[last - 1] if last < ranks * rounds else None
        yield boundaries[first : last - 1], [chunk.cut(low, high) for chunk in chunks]


def to_their_ranks(inner: Tensor, key: Tensor, *columns: Tensor) -> list[Tensor]:
    """Sends this rank's rows of a round to the ranks of their pieces; returns those received, key first.

    Args:
        inner: the W - 1 boundaries between the pieces of the round.
        key: what the boundaries are of, (N,).
        *columns: (N,).
    """
    return send_rows(torch.searchsorted(inner, key, right=True), key, *columns)
