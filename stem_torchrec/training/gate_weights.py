"""How much each stream of a model reads from each group, by the weights of its gates."""

import math
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.fx
from torch import Tensor, nn

from stem_torchrec.metrics.collectives import gather
from stem_torchrec.models.gated_experts import GatedExperts


class GateWeights:
    """How much each stream reads from each group: its gate's weights, summed by group, mean over the rows.

    Args:
        device: device of this rank, on which the process group communicates; the CPU if None.

    Example::

        gates = GateWeights()
        with gates.watch(model):
            predict(pipeline, model, exposures, consume)
        gates.mean()  # {"layers.0": {"like": {"finish": 0.1, "like": 0.3, "shared": 0.6}}}
    """

    def __init__(self, device: torch.device | None = None) -> None:
        self._device = device or torch.device("cpu")
        # By layer and stream.
        self._sums: dict[tuple[str, str], Tensor] = {}
        self._rows: dict[tuple[str, str], int] = defaultdict(int)
        self._groups: dict[tuple[str, str], tuple[list[str], list[int]]] = {}

    @contextmanager
    def watch(self, model: nn.Module) -> Iterator[None]:
        """Sums the outputs of `model`'s gates until the end of the block; sums of an earlier block are dropped."""
        self._sums.clear()
        self._rows.clear()
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
            total = weights.detach().double().sum(dim=0)
            self._sums[key] = total if key not in self._sums else self._sums[key] + total
            self._rows[key] += len(weights)

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

    def values(self) -> dict[str, float | None]:
        """The means by name, as `gate/layers.0/like/shared`, None where no row was seen; all ranks call it."""
        return {
            f"gate/{layer}/{stream}/{group}": None if math.isnan(weight) else weight
            for layer, streams in self.mean().items()
            for stream, groups in streams.items()
            for group, weight in groups.items()
        }
