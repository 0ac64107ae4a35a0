"""STEM the plain way: nn.Linear in loops, as a good engineer writes it after reading the paper and before profiling."""

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn

from stem_torchrec.models.stem import STEMOptions


def mlp(in_features: int, *widths: int) -> nn.Sequential:
    """Linear layers of the given widths, each followed by ReLU."""
    layers: list[nn.Module] = []
    for width in widths:
        linear = nn.Linear(in_features, width)
        nn.init.xavier_normal_(linear.weight)
        nn.init.zeros_(linear.bias)
        layers += [linear, nn.ReLU()]
        in_features = width
    return nn.Sequential(*layers)


class PlainSTEM(nn.Module):
    """One layer of STEM-Net, `{group: (B, F * D)} -> (B, T)`: experts, gates and towers one after the other.

    Args:
        tasks: names of the T tasks.
        in_features: F * D, the number of features times the embedding dimension.
        config: numbers of experts and widths of all layers.
    """

    def __init__(self, tasks: tuple[str, ...], in_features: int, config: STEMOptions) -> None:
        super().__init__()
        self.tasks = tasks
        self.groups = (*tasks, "shared")
        number = {g: config.num_shared_experts if g == "shared" else config.num_task_experts for g in self.groups}
        self.experts = nn.ModuleDict(
            {g: nn.ModuleList(mlp(in_features, *config.expert_hidden) for _ in range(number[g])) for g in self.groups}
        )
        width = config.expert_hidden[-1]
        self.gates = nn.ModuleDict(
            {
                t: nn.Sequential(
                    *mlp(in_features, *config.gate_hidden), nn.Linear(config.gate_hidden[-1], sum(number.values()))
                )
                for t in tasks
            }
        )
        self.towers = nn.ModuleDict(
            {t: nn.Sequential(*mlp(width, *config.tower_hidden), nn.Linear(config.tower_hidden[-1], 1)) for t in tasks}
        )

    def forward(self, x: Mapping[str, Tensor]) -> Tensor:
        experts = {}
        for group in self.groups:
            of_group = cast(nn.ModuleList, self.experts[group])
            experts[group] = torch.stack([expert(x[group]) for expert in of_group], dim=1)
        logits = []
        for task in self.tasks:
            seen = [experts[g] if g in (task, "shared") else experts[g].detach() for g in self.groups]
            weights = torch.softmax(self.gates[task](x[task] + x["shared"]), dim=1)
            mixed = (weights.unsqueeze(2) * torch.cat(seen, dim=1)).sum(dim=1)
            logits.append(self.towers[task](mixed))
        return torch.cat(logits, dim=1)


class DenseTables(nn.Module):
    """An nn.Embedding for each group and feature: `(F, B)` ids to `{group: (B, F * D)}`.

    Args:
        groups: names of the tasks, and `shared`.
        features: F, the number of features.
        rows: of each table.
        config: embedding dimension and standard deviation of the initial weights.
    """

    def __init__(self, groups: tuple[str, ...], features: int, rows: int, config: STEMOptions) -> None:
        super().__init__()
        self.groups, self.features = groups, features
        self.tables = nn.ModuleList(nn.Embedding(rows, config.embedding_dim) for _ in groups for _ in range(features))
        for table in self.parameters():
            nn.init.normal_(table, std=config.embedding_std)

    def forward(self, ids: Tensor) -> dict[str, Tensor]:
        parts = [table(ids[i % self.features]) for i, table in enumerate(self.tables)]
        pooled = torch.cat(parts, dim=1).chunk(len(self.groups), dim=1)
        return dict(zip(self.groups, pooled, strict=True))


class StockSTEM(nn.Module):
    """PlainSTEM on TorchRec's own collection: `(dense features, KeyedJaggedTensor)` to `(B, T)` logits.

    Args:
        collection: the tables of all groups.
        plain: the dense part.
        keys: output keys of the collection by group, in the order of the features.
    """

    def __init__(self, collection: nn.Module, plain: PlainSTEM, keys: Mapping[str, list[str]]) -> None:
        super().__init__()
        self.collection = collection
        self.plain = plain
        self.keys = dict(keys)

    def forward(self, dense_features: Tensor, sparse_features: Tensor) -> Tensor:
        pooled = self.collection(sparse_features).to_dict()
        return self.plain({g: torch.cat([pooled[key] for key in keys], dim=1) for g, keys in self.keys.items()})
