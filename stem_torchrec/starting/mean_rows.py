"""Starts the rows of new ids from the mean of the rows that are carried."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from stem_torchrec.checkpoints.load_planner import parts_of
from stem_torchrec.runtime.internals.pytorch import ShardedTensor
from stem_torchrec.runtime.process import trains_on_gpu
from stem_torchrec.starting.local_copies import pieces_of_part
from stem_torchrec.starting.model_weights import Matches
from stem_torchrec.tables import TableTensor, size_of

_BLOCK_ROWS = 65_536
"""Rows that are copied at a time to be added up."""


@dataclass(frozen=True)
class _Piece:
    """The columns of a piece of a table that the old table had."""

    table: str
    weight: Tensor
    column: int
    """The table's column that it starts with."""
    is_new: Tensor
    """Which of its rows continue none."""
    counts: bool
    """Whether this rank adds it to the mean; of a table that every rank has whole, one does."""


def start_from_mean(weights: Mapping[str, Tensor], matches: Matches) -> None:
    """Fills the rows of tables that continue no row with the mean of those that do; all ranks call it.

    Columns that the old table did not have stay as they are.

    Args:
        weights: of this rank, whose carried rows are filled.
        matches: which weights continue which.
    """
    starts, width = {}, 0
    for name, match in matches.items():
        if TableTensor.parse(name) is not None:
            starts[name], width = width, width + match.old_size[1]
    device = torch.device("cuda", torch.cuda.current_device()) if trains_on_gpu() else torch.device("cpu")
    # Of each column of each table: the sum, and the number of rows.
    sums = torch.zeros(2, width, dtype=torch.float64, device=device)
    pieces = list(_pieces(weights, matches))
    for piece in pieces:
        if piece.counts:
            columns = slice(start := starts[piece.table] + piece.column, start + piece.weight.shape[1])
            carried = (~piece.is_new).nonzero().flatten().to(piece.weight.device)
            for rows in carried.split(_BLOCK_ROWS):
                sums[0, columns] += piece.weight[rows].sum(dim=0, dtype=torch.float64).to(device)
            sums[1, columns] += len(carried)
    dist.all_reduce(sums)
    for piece in pieces:
        columns = slice(start := starts[piece.table] + piece.column, start + piece.weight.shape[1])
        if sums[1, columns].all():
            mean = (sums[0, columns] / sums[1, columns]).to(piece.weight.device, piece.weight.dtype)
            piece.weight[piece.is_new.to(piece.weight.device)] = mean


def _pieces(weights: Mapping[str, Tensor], matches: Matches) -> Iterator[_Piece]:
    for name, weight in weights.items():
        for table, part in parts_of(name, size_of(weight)).items():
            match = matches.get(table)
            if match is None or TableTensor.parse(table) is None:
                continue
            rows = match.axes[0]
            is_new = torch.arange(part.size[0]) >= match.old_size[0] if rows is None else rows < 0
            for (row, column), piece in pieces_of_part(weight, part):
                width = min(piece.shape[1], match.old_size[1] - column)
                if width > 0:
                    yield _Piece(
                        table,
                        piece[:, :width],
                        column,
                        is_new[row : row + len(piece)],
                        counts=isinstance(weight, ShardedTensor) or dist.get_rank() == 0,
                    )
