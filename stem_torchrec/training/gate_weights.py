"""How much each stream of a model reads from each group, by the weights of its gates."""

import math
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.fx
from torch import Tensor, nn

from stem_torchrec.metrics.collectives import gather
from stem_torchrec.models.gated_experts import GatedExperts

BINS = 40
"""Equal parts of 0 to 1 that a histogram counts rows in."""


@dataclass(frozen=True)
class RowHistogram:
    """How a number from 0 to 1 is distributed over rows."""

    counts: list[int]
    """Rows in each of BINS equal parts of 0 to 1."""
    total: float
    """Sum of the number over the rows."""
    squares: float
    """Sum of its squares."""


class GateWeights:
    """How much each stream reads from each group: its gate's weights, summed by group, over the rows.

    Args:
        device: device of this rank, on which the process group communicates; the CPU if None.

    Example::

        gates = GateWeights()
        with gates.watch(model):
            predict(pipeline, model, exposures, consume)
        gates.mean()  # {"layers.0": {"like": {"finish": 0.1, "like": 0.3, "shared": 0.6}}}
        gates.histograms()["gate_rows/layers.0/like/shared"].counts  # [0, 2, 31, ...], 40 numbers of rows
    """

    def __init__(self, device: torch.device | None = None) -> None:
        self._device = device or torch.device("cpu")
        # By layer and stream.
        self._sums: dict[tuple[str, str], Tensor] = {}
        self._rows: dict[tuple[str, str], int] = defaultdict(int)
        self._groups: dict[tuple[str, str], tuple[list[str], list[int]]] = {}
        # Rows by group and bin, (G, BINS), and sums and sums of squares by group, (2, G).
        self._counts: dict[tuple[str, str], Tensor] = {}
        self._moments: dict[tuple[str, str], Tensor] = {}

    @contextmanager
    def watch(self, model: nn.Module) -> Iterator[None]:
        """Sums the outputs of `model`'s gates until the end of the block; sums of an earlier block are dropped."""
        self._sums.clear()
        for sums in (self._rows, self._counts, self._moments):
            sums.clear()
        handles = []
        for name, layer in model.named_modules():
            if isinstance(layer, GatedExperts):
                for stream, groups in layer.reads.items():
                    key = (name.partition("model.")[2] or name, stream)
                    self._groups[key] = groups, [layer.num_experts[group] for group in groups]
                    if stream in layer.gates:
                        handles.append(layer.gates[stream].register_forward_hook(self._hook(key)))
                    else:
                        # Without a gate the stream reads one expert, with weight 1.
                        self._sums[key], self._rows[key] = torch.ones(1, dtype=torch.float64), 1
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _hook(self, key: tuple[str, str]) -> Any:
        def add(gate: nn.Module, inputs: tuple[Tensor, ...], weights: Tensor) -> None:
            if isinstance(weights, torch.fx.Proxy):
                return  # The pipeline traces the model first.
            if len(weights) == 1:
                return  # A rank without rows left pads with one row; this also drops a last batch of one real row.
            weights = weights.detach().double()
            _add(self._sums, key, weights.sum(dim=0))
            self._rows[key] += len(weights)
            _, sizes = self._groups[key]
            by_group = torch.stack([part.sum(dim=1) for part in weights.split(sizes, dim=1)], dim=1)
            _add(self._moments, key, torch.stack([by_group.sum(dim=0), by_group.square().sum(dim=0)]))
            cells = (by_group * BINS).long().clamp(0, BINS - 1) + BINS * torch.arange(len(sizes), device=weights.device)
            # Not by bincount, which waits for a GPU twice.
            cells = cells.flatten()
            counts = cells.new_zeros(len(sizes) * BINS).scatter_add_(0, cells, torch.ones_like(cells))
            _add(self._counts, key, counts.view(len(sizes), BINS))

        return add

    def mean(self) -> dict[str, dict[str, dict[str, float]]]:
        """The mean weight by layer, stream and group, over the rows of all ranks; all ranks call it."""
        means: dict[str, dict[str, dict[str, float]]] = defaultdict(dict)
        for key, (groups, sizes) in self._groups.items():
            total = self._sums.get(key, torch.zeros(sum(sizes), dtype=torch.float64)).to(self._device)
            counted = gather(torch.cat([total, total.new_tensor([self._rows[key]])])).sum(dim=0)
            parts = (counted[:-1] / counted[-1]).split(sizes)
            layer, stream = key
            means[layer][stream] = {group: part.sum().item() for group, part in zip(groups, parts, strict=True)}
        return dict(means)

    def even(self) -> dict[str, dict[str, dict[str, float]]]:
        """What `mean` would be if gates weighed all experts alike, as a group of many experts gets more of them."""
        even: dict[str, dict[str, dict[str, float]]] = defaultdict(dict)
        for (layer, stream), (groups, sizes) in self._groups.items():
            even[layer][stream] = {group: size / sum(sizes) for group, size in zip(groups, sizes, strict=True)}
        return dict(even)

    def values(self) -> dict[str, float | None]:
        """The means by name, as `gate/layers.0/like/shared`, None where no row was seen; all ranks call it."""
        return {
            f"gate/{layer}/{stream}/{group}": None if math.isnan(weight) else weight
            for layer, streams in self.mean().items()
            for stream, groups in streams.items()
            for group, weight in groups.items()
        }

    def histograms(self) -> dict[str, RowHistogram]:
        """How the weights are distributed over the rows of all ranks, as `gate_rows/layers.0/like/shared`.

        A stream without a gate has none. All ranks call it.
        """
        histograms = {}
        for key, (groups, sizes) in self._groups.items():
            layer, stream = key
            counts = self._counts.get(key, torch.zeros(len(sizes), BINS, dtype=torch.int64)).to(self._device)
            moments = self._moments.get(key, torch.zeros(2, len(sizes), dtype=torch.float64)).to(self._device)
            by_group, (totals, squares) = gather(counts).sum(dim=0).tolist(), gather(moments).sum(dim=0).tolist()
            for group, of_group, total, square in zip(groups, by_group, totals, squares, strict=True):
                if sum(of_group):
                    histograms[f"gate_rows/{layer}/{stream}/{group}"] = RowHistogram(of_group, total, square)
        return histograms


def _add(sums: dict[tuple[str, str], Tensor], key: tuple[str, str], value: Tensor) -> None:
    sums[key] = sums[key] + value if key in sums else value
