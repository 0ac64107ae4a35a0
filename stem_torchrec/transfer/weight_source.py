"""Weights to start from, under the names that their model gave them: a checkpoint on disk or a state dict in memory.

Either is read piece by piece into tensors that may be sharded by another plan; no rank holds a whole sharded table
meanwhile.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from stem_torchrec.checkpoints.load_planner import split_sizes
from stem_torchrec.checkpoints.storage import without_warnings
from stem_torchrec.checkpoints.weights import find_weights, load_state, saved_tensors
from stem_torchrec.runtime.errors import UserError, nearest
from stem_torchrec.runtime.internals.pytorch import ShardedTensor
from stem_torchrec.runtime.internals.torchrec_hooks import forget_cached_rows
from stem_torchrec.runtime.path_options import PathOption, checked_path
from stem_torchrec.runtime.progress import log_rank0
from stem_torchrec.runtime.store_path import AnyPath, path_of
from stem_torchrec.sharding.placement import some
from stem_torchrec.tables import local_pieces, sharded_collections, size_of, tables_among
from stem_torchrec.training.best_by_task import note_of_mean
from stem_torchrec.training.run_folder import BEST_WEIGHTS, CONFIG_FILE

Source = str | AnyPath | Mapping[str, Tensor]
"""A run folder, a folder that torch.distributed.checkpoint wrote, or the `state_dict()` of a module, sharded or not."""

_BLOCK_ROWS = 65_536
"""Rows of a sharded tensor in memory that are sent between ranks at a time."""


class WeightSource(Protocol):
    """Weights that can be read by name."""

    name: str
    """The source in error messages."""
    sizes: dict[str, tuple[int, ...]]
    """The size of each weight by its name in the source, in any order: a checkpoint does not keep the model's order."""

    def read(self, targets: Sequence[tuple[str, Tensor]]) -> None:
        """Fills each target with the weight of that name and of its size; all ranks call it with the same names."""


def open_source(source: Source) -> WeightSource:
    """Opens a source; raises UserError if it has no weights."""
    if isinstance(source, Mapping):
        return StateDictWeights(source)
    folder = path_of(checked_path(str(source), PathOption("folder")))
    note = note_of_mean(folder, "read are")
    if note is not None:
        log_rank0(f"note: {note}")
    return CheckpointWeights(folder.absolute() if isinstance(folder, Path) else folder)


class CheckpointWeights:
    """A folder of torch.distributed.checkpoint, from which each rank reads what its shards need."""

    def __init__(self, folder: AnyPath) -> None:
        self.folder = find_weights(folder / BEST_WEIGHTS if (folder / CONFIG_FILE).exists() else folder)
        self.name = str(self.folder)
        # By the names of the split layout, under which packed tables can be read as well.
        self.sizes = split_sizes({name: weight.size for name, weight in saved_tensors(self.folder).items()})

    def read(self, targets: Sequence[tuple[str, Tensor]]) -> None:
        """See WeightSource."""
        # A dictionary has each name once, so a weight with several targets is read several times.
        reads: dict[int, dict[str, Tensor]] = {}
        for name, target in targets:
            number = next(number for number in count() if name not in reads.get(number, ()))
            reads.setdefault(number, {})[name] = target
        for weights in reads.values():
            load_state(weights, self.folder)


class StateDictWeights:
    """A state dict; its shards are broadcast from their ranks block by block."""

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        self.name = "the state dict"
        for name, weight in state.items():
            if isinstance(weight, DTensor):
                raise UserError(f"{name} is a DTensor; save it with torch.distributed.checkpoint and give the folder.")
        self.state = {name: weight for name, weight in state.items() if isinstance(weight, Tensor)}
        self.sizes = {name: size_of(weight) for name, weight in self.state.items()}

    @torch.no_grad()
    def read(self, targets: Sequence[tuple[str, Tensor]]) -> None:
        """See WeightSource."""
        for name, target in targets:
            for start, block in _blocks(self.state[name]):
                for offset, piece in local_pieces(target):
                    _copy_overlap(block, start, piece, offset)


def _blocks(weight: Tensor) -> Iterator[tuple[Sequence[int], Tensor]]:
    """The whole weight as blocks, each with the position of its first element; the same on all ranks."""
    if not isinstance(weight, ShardedTensor):
        yield [0] * weight.dim(), weight
        return
    local = {tuple(shard.metadata.shard_offsets): shard.tensor for shard in weight.local_shards()}
    for shard in weight.metadata().shards_metadata:
        assert shard.placement is not None
        row, column = shard.shard_offsets
        owner = shard.placement.rank()
        for start in range(0, shard.shard_sizes[0], _BLOCK_ROWS):
            rows = min(_BLOCK_ROWS, shard.shard_sizes[0] - start)
            if owner == dist.get_rank():
                # A copy, as a column shard may not be contiguous, and the target may be the source.
                block = local[row, column][start : start + rows].clone(memory_format=torch.contiguous_format)
            else:
                block = torch.empty(rows, shard.shard_sizes[1], dtype=weight.dtype, device=shard.placement.device())
            dist.broadcast(block, src=owner)
            yield (row + start, column), block


def _copy_overlap(block: Tensor, start: Sequence[int], piece: Tensor, offset: Sequence[int]) -> None:
    from_block, into_piece = [], []
    for d, (a, b) in enumerate(zip(start, offset, strict=True)):
        low, high = max(a, b), min(a + block.shape[d], b + piece.shape[d])
        if low >= high:
            return
        from_block.append(slice(low - a, high - a))
        into_piece.append(slice(low - b, high - b))
    piece[tuple(into_piece)].copy_(block[tuple(from_block)])


def weights_by_name(model: nn.Module) -> dict[str, Tensor]:
    """The weights of a module by name, to read into; raises UserError if one has no memory yet."""
    with without_warnings():
        weights = {name: weight for name, weight in model.state_dict().items() if isinstance(weight, Tensor)}
    for name, weight in weights.items():
        if any(piece.is_meta for _, piece in local_pieces(weight)):
            raise UserError(f"{name} has no memory yet; shard the model first.")
    return weights


def read_into(model: nn.Module, source: WeightSource, targets: Sequence[tuple[str, Tensor]]) -> None:
    """Fills weights of `model`, which `weights_by_name` returned, from the source; all ranks call it."""
    source.read(targets)
    for _, collection in sharded_collections(model):
        forget_cached_rows(collection)


def match_tables(
    source: WeightSource, weights: Mapping[str, Tensor], *, table: str, source_table: str
) -> tuple[str, Tensor]:
    """What `WeightSource.read` needs to fill a table: the name of the weight in the source, and the weight to fill.

    Args:
        source: where to read from.
        weights: of the model to fill, by name.
        table: name of the table to fill.
        source_table: name of the table in the source.

    Raises UserError if either is missing, or their sizes differ.
    """
    target = weights[_find_table(weights, table, "this model")]
    name = _find_table(source.sizes, source_table, source.name)
    if source.sizes[name] != size_of(target):
        size, source_size = (" x ".join(map(str, size)) for size in (size_of(target), source.sizes[name]))
        raise UserError(
            f"{table} cannot start from {source_table}: it is {size} in this model and {source_size} in {source.name}; "
            "both need the same rows and columns."
        )
    return name, target


def _find_table(names: Iterable[str], table: str, where: str) -> str:
    """The one weight whose name ends as in `model.embedding_bags.TABLE.weight`, or is `table` itself."""
    names = list(names)
    matches = [table] if table in names else [name for name in names if f".{name}".endswith(f".{table}.weight")]
    if not matches:
        tables = tables_among(names)
        raise UserError(f"{where} has no table {table!r}, only {some(tables) or 'none'}{nearest(table, tables)}")
    if len(matches) > 1:
        raise UserError(f"{where} has several tables {table!r}: {some(matches)}; give the whole name of one.")
    return matches[0]
