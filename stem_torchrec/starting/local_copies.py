"""What a rank copies: for each piece of its weights and optimizer states, the part of the source that it continues.

States of element-wise optimizers continue as their weights do. A row-wise state has one number for a row of each column
shard, and follows the rule of `checkpoints/rowwise.py`: it is the mean of the saved numbers over those columns of the
shard that were saved.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from stem_torchrec.checkpoints.load_planner import Part, parts_of
from stem_torchrec.checkpoints.rowwise import column_shards, row_pieces
from stem_torchrec.runtime.errors import UserError
from stem_torchrec.starting.carry_planner import Copy, continued
from stem_torchrec.starting.model_weights import Match, Matches
from stem_torchrec.tables import TableTensor, local_pieces, size_of


@dataclass(frozen=True)
class Mean:
    """The numbers of a row-wise state, to be made of those of several saved column shards."""

    target: Tensor
    """Shape (R,) or (R, 1)."""
    numbers: Tensor
    """Of the S saved shards, shape (S, R), which copies fill."""
    weights: tuple[float, ...]
    """Of the S shards; they sum to 1."""

    def fill(self) -> None:
        """Fills the target, by a sum in the order of the shards, which is the same on all ranks that have a copy."""
        mean = torch.zeros_like(self.numbers[0])
        for weight, numbers in zip(self.weights, self.numbers, strict=True):
            mean += weight * numbers
        self.target.copy_(mean.view_as(self.target))


class LocalCopies:
    """The copies of a rank.

    Args:
        matches: which weights continue which.
        saved: what the source's folder has, by name.
        name: of the source, for messages.
    """

    def __init__(self, matches: Matches, saved: Mapping[str, TensorStorageMetadata], name: str) -> None:
        self.copies: list[Copy] = []
        self.means: list[Mean] = []
        """To be filled once the copies are made."""
        self.uncounted: list[Tensor] = []
        """Counts of steps that were not saved, as a fused optimizer does not."""
        self._matches, self._saved, self._name = matches, saved, name
        self._parts = {part: own for tensor, item in saved.items() for part, own in parts_of(tensor, item.size).items()}

    def add_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Adds those of the weights of a sharded model, by name; raises UserError if one was not saved."""
        for name, weight in weights.items():
            for of_group, part in parts_of(name, size_of(weight)).items():
                match = self._matches.get(of_group)
                if match is not None:
                    self._add(match.weight_axes, match, part, self._part(f"model.{match.old}"), weight)

    def add_states(self, states: Mapping[str, Mapping[str, Tensor]], weights: Mapping[str, Tensor]) -> None:
        """Adds those of the optimizer's states, by name of the weight and of the state.

        Args:
            states: of this rank, which all exist.
            weights: of this rank.
        """
        for name, of_weight in states.items():
            for state, value in of_weight.items():
                for of_group, part in parts_of(f"{name}.{state}", size_of(value)).items():
                    # Without the repeated table of a fused optimizer, and under its name of the state.
                    tensor = TableTensor.parse(of_group)
                    weight = name if tensor is None else replace(tensor, state=None).name
                    match = self._matches.get(weight)
                    if match is not None and match.has_states:
                        kind = state if tensor is None else tensor.state
                        self._add_state(match, part, f"optimizer.{match.old}.{kind}", value, weights[name])

    def _add_state(self, match: Match, part: Part, saved: str, value: Tensor, weight: Tensor) -> None:
        if value.dim() == 0 and saved not in self._parts:
            self.uncounted.append(value)
        elif value.dim() == 0:
            self._add((), match, part, self._part(saved), value)
        elif size_of(value) == size_of(weight):
            self._add(match.axes, match, part, self._part(saved), value)
        else:
            self._add_row_state(match, self._part(saved), value, weight)

    def _add(
        self, axes_of_value: Sequence[Tensor | None], match: Match, part: Part, saved: Part, value: Tensor
    ) -> None:
        """Adds the copies into the pieces of a weight, of a state of its size, or of a count, which has no axis."""
        for first, piece in pieces_of_part(value, part):
            starts = [*[0] * (len(first) - 1), saved.start]
            axes = [
                continued(positions, old_size, first=first[d], count=piece.shape[d], start=starts[d])
                for d, (positions, old_size) in enumerate(zip(axes_of_value, match.old_size, strict=False))
            ]
            self.copies.append(Copy(piece, saved.tensor, tuple(axes)))

    def _add_row_state(self, match: Match, saved: Part, value: Tensor, weight: Tensor) -> None:
        columns = column_shards(self._saved[self._part(f"model.{match.old}").tensor])
        old_rows = match.old_size[0]
        for (low, high), first, target in row_pieces(value, weight):
            common = [max(0, min(high, stop) - max(low, start)) for start, stop in columns]
            shards = [shard for shard, width in enumerate(common) if width]
            if not shards:
                continue
            numbers = target.view(1, -1) if len(shards) == 1 else target.new_zeros(len(shards), target.numel())
            for shard, of_shard in zip(shards, numbers, strict=True):
                rows = continued(
                    match.axes[0], old_rows, first=first, count=target.numel(), start=saved.start + shard * old_rows
                )
                self.copies.append(Copy(of_shard, saved.tensor, (rows,)))
            if len(shards) > 1:
                self.means.append(Mean(target, numbers, tuple(common[shard] / sum(common) for shard in shards)))

    def _part(self, name: str) -> Part:
        if name not in self._parts:
            raise UserError(f"{self._name} lacks {name}, which its own model or optimizer has; start from another.")
        return self._parts[name]


def pieces_of_part(value: Tensor, part: Part) -> Iterator[tuple[tuple[int, ...], Tensor]]:
    """The pieces of a part of a weight or state on this rank, each with the part's position of its first element."""
    for offsets, piece in local_pieces(value):
        if not part.size:
            yield (), piece
            continue
        low = max(part.start, offsets[-1])
        high = min(part.start + part.size[-1], offsets[-1] + piece.shape[-1])
        if low < high:
            yield (*offsets[:-1], low - part.start), piece.narrow(-1, low - offsets[-1], high - low)
