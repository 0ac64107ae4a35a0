"""What a trained model has made of its tables and gates: who reads whom, and what the tables hold."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
import torch.fx
from torch import Tensor, nn

from stem_torchrec.metrics.collectives import gather
from stem_torchrec.models.gated_experts import GatedExperts
from stem_torchrec.tables import table_feature, table_group, table_of
from stem_torchrec.transfer.weight_source import CheckpointWeights

_BLOCK_ROWS = 65_536


class GateWeights:
    """How much each stream reads from each group: its gate's weights, summed by group, mean over the rows.

    Args:
        device: of this rank, which the process group's backend serves; the CPU if None.

    Example::

        gates = GateWeights()
        with gates.watch(model):
            predict(pipeline, model, exposures, consume)
        gates.mean()  # {"layers.0": {"like": {"finish": 0.1, "like": 0.3, "shared": 0.6}}}
    """

    def __init__(self, device: torch.device | None = None) -> None:
        self._device = device or torch.device("cpu")
        self._sums: dict[tuple[str, str], Tensor] = {}
        self._rows: dict[tuple[str, str], int] = defaultdict(int)
        self._groups: dict[tuple[str, str], tuple[list[str], list[int]]] = {}

    @contextmanager
    def watch(self, model: nn.Module) -> Iterator[None]:
        """Counts what the gates of `model` say until the end of the block."""
        handles = []
        for name, layer in model.named_modules():
            if isinstance(layer, GatedExperts):
                for stream, groups in layer.reads.items():
                    place = (name.partition("model.")[2] or name, stream)
                    self._groups[place] = groups, [layer.num_experts[group] for group in groups]
                    if stream in layer.gates:
                        handles.append(layer.gates[stream].register_forward_hook(self._hook(place)))
                    else:
                        # It reads one expert, whole.
                        self._sums[place], self._rows[place] = torch.ones(1, dtype=torch.float64), 1
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _hook(self, place: tuple[str, str]) -> Any:
        def add(gate: nn.Module, inputs: tuple[Tensor, ...], weights: Tensor) -> None:
            if isinstance(weights, torch.fx.Proxy):
                return  # The pipeline traces the model before it runs it.
            if len(weights) == 1:
                return  # The padding of a rank that has run out of rows; at most one row of a rank is like it.
            total = weights.detach().double().sum(dim=0)
            self._sums[place] = total if place not in self._sums else self._sums[place] + total
            self._rows[place] += len(weights)

        return add

    def mean(self) -> dict[str, dict[str, dict[str, float]]]:
        """By layer, stream and group, over the rows of all ranks; all ranks call it."""
        found: dict[str, dict[str, dict[str, float]]] = defaultdict(dict)
        for place, (groups, sizes) in self._groups.items():
            total = self._sums.get(place, torch.zeros(sum(sizes), dtype=torch.float64)).to(self._device)
            counted = gather(torch.cat([total, total.new_tensor([self._rows[place]])])).sum(dim=0)
            parts = (counted[:-1] / counted[-1]).split(sizes)
            layer, stream = place
            found[layer][stream] = {group: part.sum().item() for group, part in zip(groups, parts, strict=True)}
        return dict(found)


def table_diagnostics(runs: Sequence[Path]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Of the tables in runs' best weights, a line for each, and one for each pair of groups and feature.

    information_abundance: sum of the singular values over the largest, from 1 (all rows on one line) to D (Guo et al.,
    "On the Embedding Collapse when Scaling up Recommendation Models", ICML 2024, eq. 2).
    similarity: linear CKA of the two tables' rows, from 0 to 1 (the same but for rotation and scale; Kornblith et al.,
    "Similarity of Neural Network Representations Revisited", ICML 2019, eq. 5).

    The tables of one feature are in memory at a time. One process calls it, outside of any process group.
    """
    by_feature: dict[str, dict[str, tuple[CheckpointWeights, str]]] = defaultdict(dict)
    for run in runs:
        saved = CheckpointWeights(run)
        for name in saved.sizes:
            table = table_of(name)
            if table is not None:
                by_feature[table_feature(table)][table_group(table)] = saved, name
    tables, pairs = [], []
    for feature, places in by_feature.items():
        weights = {}
        for group, (saved, name) in places.items():
            weights[group] = torch.empty(saved.sizes[name])
            saved.read([(name, weights[group])])
        for group, weight in weights.items():
            abundance = information_abundance(weight)
            tables.append({"feature": feature, "group": group, "information_abundance": abundance})
        for a, b in combinations(sorted(weights), 2):
            similarity = linear_cka(weights[a], weights[b])
            pairs.append({"feature": feature, "group": a, "other": b, "similarity": similarity})
    return tables, pairs


def information_abundance(table: Tensor) -> float:
    """Sum of the singular values of a table (N, D) over the largest."""
    # D is small, so the eigenvalues of the D x D product are cheap however many rows there are.
    values = torch.linalg.eigvalsh(_product(table, table)).clamp(min=0).sqrt()
    return (values.sum() / values.max()).item()


def linear_cka(a: Tensor, b: Tensor) -> float:
    """||A^T B||^2 / (||A^T A|| ||B^T B||) in Frobenius norms, of tables (N, D) with their columns centered.

    NaN where all rows of a table are the same.
    """
    ab, aa, bb = (_product(x, y, centered=True).norm() for x, y in ((a, b), (a, a), (b, b)))
    return (ab**2 / (aa * bb)).item()


def _product(a: Tensor, b: Tensor, *, centered: bool = False) -> Tensor:
    """A^T B (D, D) in float64, of as many rows at a time as do not double the tables."""
    means = [table.mean(dim=0, dtype=torch.float64) if centered else 0 for table in (a, b)]
    blocks = zip(a.split(_BLOCK_ROWS), b.split(_BLOCK_ROWS), strict=True)
    return sum((x.double() - means[0]).T @ (y.double() - means[1]) for x, y in blocks)


def weights_of(runs: Sequence[Path]) -> tuple[list[tuple[int, ...]], int]:
    """The sizes of the tables in runs' best weights, and the number of weights in their dense parts."""
    tables, dense = [], 0
    for run in runs:
        for name, size in CheckpointWeights(run).sizes.items():
            if table_of(name) is not None:
                tables.append(size)
            else:
                dense += torch.Size(size).numel()
    return tables, dense
