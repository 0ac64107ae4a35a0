"""The first rows of a table on disk, whatever its layout and plan, for one process without a process group."""

import warnings

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint import DefaultLoadPlanner
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, TensorStorageMetadata
from torch.distributed.checkpoint.planner import LoadPlan

from stem_torchrec.checkpoints.load_planner import Part, parts_of, read_items
from stem_torchrec.checkpoints.storage import error_of, reader_from, without_warnings
from stem_torchrec.checkpoints.weights import saved_tensors
from stem_torchrec.runtime.store_path import AnyPath
from stem_torchrec.tables import table_of


def tables_on_disk(folder: AnyPath) -> dict[str, Part]:
    """The tables of one group and feature in a folder of weights, by name as `like/uid`, and where each is.

    Raises DamagedError if the folder cannot be read.
    """
    parts: dict[str, Part] = {}
    for tensor, saved in saved_tensors(folder).items():
        if table_of(tensor) is not None:
            parts |= {table_of(name) or "": part for name, part in parts_of(tensor, saved.size).items()}
    return parts


def first_rows(folder: AnyPath, table: Part, rows: int) -> Tensor:
    """The first rows of a table as (rows, D), fewer if it has no more.

    One saved shard of the table at a time is in memory besides.

    Args:
        folder: of the weights, as `find_weights` returns it.
        table: of `tables_on_disk`.
        rows: at most.

    Raises DamagedError if the folder cannot be read, MemoryError without memory for the rows.

    Example::

        first_rows(folder, tables_on_disk(folder)["like/uid"], 10_000).shape  # (10_000, 16)
    """
    target = torch.empty(min(rows, table.size[0]), table.size[1])
    try:
        with without_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled")
            dcp.load(
                {table.tensor: target}, storage_reader=reader_from(str(folder)), planner=_RowsLoadPlanner(table),
                no_dist=True,
            )  # fmt: skip
    except dcp.CheckpointException as error:
        raise error_of(str(folder), error) from error
    return target


class _RowsLoadPlanner(DefaultLoadPlanner):
    """Reads what a target has rows for."""

    def __init__(self, source: Part) -> None:
        super().__init__()
        self._source = source

    def create_local_plan(self) -> LoadPlan:
        assert self.metadata is not None
        name, size = self._source.tensor, self.state_dict[self._source.tensor].size()
        stored = self.metadata.state_dict_metadata[name]
        assert isinstance(stored, TensorStorageMetadata)
        chunk = ChunkStorageMetadata(torch.Size([0, 0]), size)
        return LoadPlan(list(read_items(Part(name, tuple(size)), [chunk], self._source, stored.chunks)))
