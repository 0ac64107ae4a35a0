"""Weights to start from, under the names of whoever saved them: a checkpoint on disk or a state dict in memory.

Either is read piece by piece into tensors that may be sharded by another plan; no rank ever holds a whole sharded
table for it.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torch.distributed.tensor import DTensor

from stem_torchrec.checkpoints.load_planner import split_sizes
from stem_torchrec.checkpoints.storage import without_warnings
from stem_torchrec.checkpoints.weights import find_weights, load_state, saved_tensors
from stem_torchrec.runtime.errors import UserError, nearest
from stem_torchrec.sharding.placement import some
from stem_torchrec.tables import tables_among
from stem_torchrec.training.run_folder import BEST_WEIGHTS, CONFIG_FILE

Source = str | Path | Mapping[str, Tensor]
"""A run folder, a folder that torch.distributed.checkpoint wrote, or a `state_dict()` of a module, sharded or not."""

_BLOCK_ROWS = 65_536
"""Rows of a sharded tensor in memory that travel between ranks at a time."""


class WeightSource(Protocol):
    """Weights that can be read by name."""

    where: str
    """What messages call them."""
    sizes: dict[str, tuple[int, ...]]
    """Size of each weight by its name there, in any order: a checkpoint does not keep that of the model."""

    def read(self, targets: Sequence[tuple[str, Tensor]]) -> None:
        """Fills each target with the weight of that name and its own size; all ranks call it with the same names."""


def open_source(source: Source) -> WeightSource:
    """The weights of a source; raises UserError where there are none."""
    return StateDictWeights(source) if isinstance(source, Mapping) else CheckpointWeights(Path(source).absolute())


class CheckpointWeights:
    """A folder of torch.distributed.checkpoint, of which each rank reads what its shards need."""

    def __init__(self, folder: Path) -> None:
        self.folder = find_weights(folder / BEST_WEIGHTS if (folder / CONFIG_FILE).exists() else folder)
        self.where = str(self.folder)
        # By the names of the split layout, which packed tables are read by as well.
        self.sizes = split_sizes({name: weight.size for name, weight in saved_tensors(self.folder).items()})

    def read(self, targets: Sequence[tuple[str, Tensor]]) -> None:
        """See WeightSource."""
        # A dictionary holds a name once, so a weight with several targets is read several times.
        turns: dict[int, dict[str, Tensor]] = {}
        for name, target in targets:
            turn = next(turn for turn in count() if name not in turns.get(turn, ()))
            turns.setdefault(turn, {})[name] = target
        for weights in turns.values():
            load_state(weights, self.folder)


class StateDictWeights:
    """A state dict; shards that other ranks hold pass all ranks block by block."""

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        self.where = "the state dict"
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
                for offset, piece in pieces(target):
                    _copy_overlap(block, start, piece, offset)


def _blocks(weight: Tensor) -> Iterator[tuple[Sequence[int], Tensor]]:
    """The whole weight, as blocks with the position of their first element; the same ones on every rank."""
    if not isinstance(weight, ShardedTensor):
        yield [0] * weight.dim(), weight
        return
    mine = {tuple(shard.metadata.shard_offsets): shard.tensor for shard in weight.local_shards()}
    for shard in weight.metadata().shards_metadata:
        assert shard.placement is not None
        row, column = shard.shard_offsets
        owner = shard.placement.rank()
        for start in range(0, shard.shard_sizes[0], _BLOCK_ROWS):
            rows = min(_BLOCK_ROWS, shard.shard_sizes[0] - start)
            if owner == dist.get_rank():
                # A copy, as a column shard may lie among others, and the target may be the source.
                block = mine[row, column][start : start + rows].clone(memory_format=torch.contiguous_format)
            else:
                block = torch.empty(rows, shard.shard_sizes[1], dtype=weight.dtype, device=shard.placement.device())
            dist.broadcast(block, src=owner)
            yield (row + start, column), block


def pieces(weight: Tensor) -> list[tuple[Sequence[int], Tensor]]:
    """What this rank holds of a weight, each piece with the position of its first element."""
    if isinstance(weight, ShardedTensor):
        return [(shard.metadata.shard_offsets, shard.tensor) for shard in weight.local_shards()]
    return [([0] * weight.dim(), weight)]


def _copy_overlap(block: Tensor, start: Sequence[int], piece: Tensor, offset: Sequence[int]) -> None:
    there, here = [], []
    for d, (a, b) in enumerate(zip(start, offset, strict=True)):
        low, high = max(a, b), min(a + block.shape[d], b + piece.shape[d])
        if low >= high:
            return
        there.append(slice(low - a, high - a))
        here.append(slice(low - b, high - b))
    piece[tuple(here)].copy_(block[tuple(there)])


def size_of(weight: Tensor) -> tuple[int, ...]:
    """The size of a whole weight."""
    # A ShardedTensor warns when asked directly.
    return tuple(weight.metadata().size if isinstance(weight, ShardedTensor) else weight.shape)


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """The weights of a module by name, to read into; raises UserError where they have no memory yet."""
    with without_warnings():
        weights = {name: weight for name, weight in model.state_dict().items() if isinstance(weight, Tensor)}
    for name, weight in weights.items():
        if any(piece.is_meta for _, piece in pieces(weight)):
            raise UserError(f"{name} has no memory yet; shard the model first.")
    return weights


def match_tables(saved: WeightSource, here: Mapping[str, Tensor], ours: str, theirs: str) -> tuple[str, Tensor]:
    """What `WeightSource.read` needs to fill our table with theirs: the name of their weight, and our weight.

    Raises UserError where either is missing, or their sizes differ.
    """
    target = here[_find_table(here, ours, "this model")]
    name = _find_table(saved.sizes, theirs, saved.where)
    if saved.sizes[name] != size_of(target):
        size, size_there = (" x ".join(map(str, size)) for size in (size_of(target), saved.sizes[name]))
        raise UserError(
            f"{ours} cannot start from {theirs}: it is {size} in this model and {size_there} in {saved.where}; both "
            "need the same rows and columns."
        )
    return name, target


def _find_table(names: Iterable[str], table: str, where: str) -> str:
    """The one weight whose name ends as in `model.embedding_bags.TABLE.weight`, or is `table` itself."""
    names = list(names)
    found = [table] if table in names else [name for name in names if f".{name}".endswith(f".{table}.weight")]
    if not found:
        tables = tables_among(names)
        raise UserError(f"{where} has no table {table!r}, only {some(tables) or 'none'}{nearest(table, tables)}")
    if len(found) > 1:
        raise UserError(f"{where} has several tables {table!r}: {some(found)}; give the whole name of one.")
    return found[0]
