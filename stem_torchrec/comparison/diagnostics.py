"""Diagnostics of trained models: the rank and similarity of their tables."""

from collections import defaultdict
from collections.abc import Sequence
from itertools import combinations, combinations_with_replacement
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stem_torchrec.tables import table_feature, table_group, table_of
from stem_torchrec.transfer.weight_source import CheckpointWeights

_BLOCK_ROWS = 65_536


def table_diagnostics(runs: Sequence[Path]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows for the tables in the runs' best weights: one for each table, and one for each feature and pair of groups.

    information_abundance: sum of the singular values over the largest, from 1 (all rows on one line) to D (Guo et al.,
    "On the Embedding Collapse when Scaling up Recommendation Models", ICML 2024, eq. 2).
    similarity: linear CKA of the two tables' rows, from 0 to 1 (the same but for rotation and scale; Kornblith et al.,
    "Similarity of Neural Network Representations Revisited", ICML 2019, eq. 5).

    Only the tables of one feature are in memory at a time. One process calls it, outside of any process group.
    """
    tables, pairs = [], []
    of_runs = FeatureTables([CheckpointWeights(run) for run in runs])
    for feature in of_runs.features:
        weights = of_runs.read(feature)
        for group, weight in weights.items():
            abundance = information_abundance(weight)
            tables.append({"feature": feature, "group": group, "information_abundance": abundance})
        for a, b in combinations(sorted(weights), 2):
            similarity = linear_cka(weights[a], weights[b])
            pairs.append({"feature": feature, "group": a, "other": b, "similarity": similarity})
    return tables, pairs


class FeatureTables:
    """The tables of a model, saved in any layout, feature by feature.

    Args:
        sources: the weights of the model, of one run or of several that share no table.

    Example::

        tables = FeatureTables([CheckpointWeights(Path("runs/a"))])
        tables.features          # ["uid", "tags"]
        tables.sizes("uid")      # {"like": (1000, 16), "shared": (1000, 16)}
        tables.read("uid")       # {"like": tensor(...), "shared": tensor(...)}
    """

    def __init__(self, sources: Sequence[CheckpointWeights]) -> None:
        self._names: dict[str, dict[str, tuple[CheckpointWeights, str]]] = defaultdict(dict)
        for source in sources:
            for name in source.sizes:
                table = table_of(name)
                if table is not None:
                    self._names[table_feature(table)][table_group(table)] = source, name

    @property
    def features(self) -> list[str]:
        """All features."""
        return list(self._names)

    def sizes(self, feature: str) -> dict[str, tuple[int, ...]]:
        """The size (N, D) of each table of a feature, by group; {} for another model's feature."""
        return {group: source.sizes[name] for group, (source, name) in self._names.get(feature, {}).items()}

    def read(self, feature: str, groups: Sequence[str] | None = None) -> dict[str, Tensor]:
        """The tables (N, D) of a feature by group, those of some groups or all."""
        weights: dict[str, Tensor] = {}
        targets: dict[CheckpointWeights, list[tuple[str, Tensor]]] = defaultdict(list)
        for group in self._names[feature] if groups is None else groups:
            source, name = self._names[feature][group]
            weights[group] = torch.empty(source.sizes[name])
            targets[source].append((name, weights[group]))
        for source, of_source in targets.items():
            source.read(of_source)
        return weights


def information_abundance(table: Tensor) -> float:
    """The sum of the singular values of a table (N, D) divided by the largest one."""
    # D is small, so the eigenvalues of the D x D product are cheap for any number of rows.
    values = torch.linalg.eigvalsh(_product(table, 0, table, 0)).clamp(min=0).sqrt()
    return (values.sum() / values.max()).item()


def linear_cka(a: Tensor, b: Tensor) -> float:
    """||A^T B||^2 / (||A^T A|| ||B^T B||) in Frobenius norms, of tables (N, D) with centered columns.

    NaN if all rows of a table are the same.
    """
    # Each mean once, as in float64 it takes as long as a product.
    centered = [(table, table.mean(dim=0, dtype=torch.float64)) for table in (a, b)]
    aa, ab, bb = (_product(*x, *y).norm() for x, y in combinations_with_replacement(centered, 2))
    return (ab**2 / (aa * bb)).item()


def _product(a: Tensor, center_a: Tensor | int, b: Tensor, center_b: Tensor | int) -> Tensor:
    """(A - a)^T (B - b) (D, D) in float64 for centers a and b; block by block, as float64 copies are large."""
    blocks = zip(a.split(_BLOCK_ROWS), b.split(_BLOCK_ROWS), strict=True)
    return sum((x.double() - center_a).T @ (y.double() - center_b) for x, y in blocks)


def count_weights(runs: Sequence[Path]) -> tuple[list[tuple[int, ...]], int]:
    """The sizes of the tables in the runs' best weights, and the number of weights in their dense parts."""
    tables, dense = [], 0
    for run in runs:
        for name, size in CheckpointWeights(run).sizes.items():
            if table_of(name) is not None:
                tables.append(size)
            else:
                dense += torch.Size(size).numel()
    return tables, dense
