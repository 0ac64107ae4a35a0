"""What a trained model has made of its tables and gates: who reads whom, and what the tables hold."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
import torch.fx
from torch import Tensor, nn

from stem_torchrec.exchange import gather
from stem_torchrec.models.gated_experts import GatedExperts
from stem_torchrec.saved import SavedOnDisk
from stem_torchrec.tables import table_group


class GateWeights:
    """How much each stream reads from each group: its gate's weights, summed by group, mean over the rows.

    Example::

        gates = GateWeights()
        with gates.watch(model):
            predict(pipeline, model, exposures, consume)
        gates.mean()  # {"layers.0": {"like": {"finish": 0.1, "like": 0.3, "shared": 0.6}}}
    """

    def __init__(self) -> None:
        self._sums: dict[tuple[str, str], Tensor] = {}
        self._rows: dict[tuple[str, str], int] = defaultdict(int)
        self._groups: dict[tuple[str, str], tuple[list[str], list[int]]] = {}

    @contextmanager
    def watch(self, model: nn.Module) -> Iterator[None]:
        """Counts what the gates of `model` say until the end of the block."""
        handles = []
        for name, layer in model.named_modules():
            if isinstance(layer, GatedExperts):
                for stream, gate in layer.gates.items():
                    place = (name.partition("model.")[2] or name, stream)
                    groups = layer.reads[stream]
                    self._groups[place] = groups, [layer.num_experts[group] for group in groups]
                    handles.append(gate.register_forward_hook(self._hook(place)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _hook(self, place: tuple[str, str]) -> Any:
        def add(gate: nn.Module, inputs: tuple[Tensor, ...], weights: Tensor) -> None:
            if isinstance(weights, torch.fx.Proxy):
                return  # The pipeline traces the model before it runs it.
            total = weights.detach().double().sum(dim=0)
            self._sums[place] = total if place not in self._sums else self._sums[place] + total
            self._rows[place] += len(weights)

        return add

    def mean(self) -> dict[str, dict[str, dict[str, float]]]:
        """By layer, stream and group, over the rows of all ranks; all ranks call it."""
        found: dict[str, dict[str, dict[str, float]]] = defaultdict(dict)
        for place, (groups, sizes) in self._groups.items():
            total = self._sums.get(place, torch.zeros(sum(sizes), dtype=torch.float64))
            counted = gather(torch.cat([total, total.new_tensor([self._rows[place]])])).sum(dim=0)
            parts = (counted[:-1] / counted[-1]).split(sizes)
            layer, stream = place
            found[layer][stream] = {group: part.sum().item() for group, part in zip(groups, parts, strict=True)}
        return dict(found)


def table_diagnostics(run: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Of a run's best weights, a line for each table and one for each pair of groups and feature; all ranks call it.

    information_abundance: sum of the singular values over the largest, from 1 (all rows on one line) to D (Guo et al.,
    "On the Embedding Collapse when Scaling up Recommendation Models", ICML 2024, eq. 2).
    similarity: linear CKA of the two tables' rows, from 0 to 1 (the same but for rotation and scale; Kornblith et al.,
    "Similarity of Neural Network Representations Revisited", ICML 2019, eq. 5).

    One feature's tables are in memory at a time.
    """
    saved = SavedOnDisk(run)
    by_feature: dict[str, dict[str, str]] = defaultdict(dict)
    for name in saved.sizes:
        table = name.removesuffix(".weight").rpartition("embedding_bags.")[2]
        if name.endswith(".weight") and "embedding_bags." in name:
            by_feature[table.partition("/")[2]][table_group(table)] = name
    tables, pairs = [], []
    for feature, names in by_feature.items():
        weights = {group: torch.empty(saved.sizes[name]) for group, name in names.items()}
        saved.read([(names[group], weight) for group, weight in weights.items()])
        for group, weight in weights.items():
            abundance = information_abundance(weight)
            tables.append({"feature": feature, "group": group, "information_abundance": abundance})
        for a, b in combinations(weights, 2):
            similarity = linear_cka(weights[a], weights[b])
            pairs.append({"feature": feature, "group": a, "other": b, "similarity": similarity})
    return tables, pairs


def information_abundance(table: Tensor) -> float:
    """Sum of the singular values of a table (N, D) over the largest."""
    # D is small, so the eigenvalues of the D x D product are cheap however many rows there are.
    wide = table.double()
    values = torch.linalg.eigvalsh(wide.T @ wide).clamp(min=0).sqrt()
    return (values.sum() / values.max()).item()


def linear_cka(a: Tensor, b: Tensor) -> float:
    """||A^T B||^2 / (||A^T A|| ||B^T B||) in Frobenius norms, of tables (N, D) with their columns centered."""
    a, b = (table.double() - table.double().mean(dim=0) for table in (a, b))
    return ((a.T @ b).norm() ** 2 / ((a.T @ a).norm() * (b.T @ b).norm())).item()


def parameters_of(run: Path) -> Mapping[str, int]:
    """Number of weights of a run in its tables and in its dense part."""
    sizes = SavedOnDisk(run).sizes
    count = {"tables": 0, "dense": 0}
    for name, size in sizes.items():
        count["tables" if "embedding_bags." in name else "dense"] += torch.Size(size).numel()
    return count
