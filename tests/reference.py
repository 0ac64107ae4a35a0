"""STEM by its equations, one loop per sum sign, and its training by hand: what the models in the tests must equal."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag, linear, softplus
from torchrec.datasets.utils import Batch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from stem_torchrec.config import TrainConfig
from stem_torchrec.data.files import Columns
from stem_torchrec.data.schema import SparseFeature
from stem_torchrec.models.stem import STEMOptions

from expert_formulas import expert

TABLES = "sparse_arch.embedding_bag_collection.embedding_bags"
# 5000 rows: on two ranks the first of the blocks that initial weights are drawn in (4096 rows) is cut.
COLUMNS = Columns(
    sparse={"uid": SparseFeature("uid", 5000), "tags": SparseFeature("tags", 7)},
    dense=("age", "price"),
    labels=("finish", "like"),
    group=None,
)


def sparse_features(**sizes: int) -> dict[str, SparseFeature]:
    """Features that are summed up, by name, with their numbers of embeddings."""
    return {name: SparseFeature(name, size) for name, size in sizes.items()}


def random_batch(
    seed: int, columns: Columns = COLUMNS, *, rows: int = 12, missing: float = 0.3, part: slice = slice(None)
) -> Batch:
    """A batch with one id per row in the first feature, none to three in the others, and missing labels.

    `part` keeps some of its rows, so that ranks can share a global batch.
    """
    generator = torch.Generator().manual_seed(seed)
    values, lengths, weights = [], [], []
    for i, feature in enumerate(columns.sparse.values()):
        length = torch.randint(0, 4, (rows,), generator=generator) if i else torch.ones(rows, dtype=torch.int64)
        ids = torch.randint(feature.num_embeddings, (int(length.sum()),), generator=generator)
        values += ids.split(length.tolist())[part]
        lengths.append(length[part].int())
        if columns.weights:
            weight = torch.randn(len(ids), generator=generator) if feature.weights else torch.ones(len(ids))
            weights += weight.split(length.tolist())[part]
    labels = torch.randint(2, (rows, len(columns.labels)), generator=generator).float()
    labels[torch.rand(labels.shape, generator=generator) < missing] = math.nan
    return Batch(
        dense_features=torch.randn(rows, len(columns.dense), generator=generator)[part],
        sparse_features=KeyedJaggedTensor(
            list(columns.sparse),
            torch.cat(values),
            weights=torch.cat(weights) if weights else None,
            lengths=torch.cat(lengths),
        ),
        labels=labels[part],
    )


class Parts:
    """What the equations of all models are made of, with weights by parameter name."""

    def __init__(self, weights: dict[str, Tensor], config: STEMOptions, columns: Columns = COLUMNS) -> None:
        self.weights = weights
        self.config = config
        self.means = {name for name, feature in columns.sparse.items() if feature.pooling == "mean"}

    def inputs(self, batch: Batch, groups: Sequence[str]) -> dict[str, Tensor]:
        """Of each group, (B, in_features): pooled embeddings, then the dense features' projection."""
        x = {}
        for g in groups:
            parts = []
            for feature, bags in batch.sparse_features.to_dict().items():
                table = self.weights[f"{TABLES}.{g}/{feature}.weight"]
                w = bags.weights_or_none()
                pooled = embedding_bag(
                    bags.values(), table, bags.offsets(), mode="sum", include_last_offset=True, per_sample_weights=w
                )
                if feature in self.means:
                    pooled = torch.stack([row / max(int(n), 1) for row, n in zip(pooled, bags.lengths(), strict=True)])
                parts.append(pooled)
            if batch.dense_features.shape[1] > 0:
                parts.append(self.linear(f"dense_arch.{g}", batch.dense_features))
            x[g] = torch.cat(parts, dim=1)
        return x

    def linear(self, name: str, x: Tensor) -> Tensor:
        return linear(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    def expert(self, name: str, k: int, x: Tensor, kind: str = "", feature_gate: bool = False) -> Tensor:
        """The output (B, H) of one expert of a group, by default of the kind of the configuration."""
        weights = {n.removeprefix(f"{name}."): w for n, w in self.weights.items() if n.startswith(f"{name}.")}
        layers = len(self.config.expert_hidden)
        return expert(weights, k, x, kind or self.config.expert, feature_gate, layers=layers)

    def hidden(self, name: str, x: Tensor, layers: int) -> Tensor:
        for i in range(layers):
            x = self.linear(f"{name}.{2 * i}", x).relu()
        return x

    def gate(self, name: str, x: Tensor) -> Tensor:
        """Weights (B, K) that sum to 1."""
        layers = len(self.config.gate_hidden)
        gate = self.linear(f"{name}.mlp.{2 * layers}", self.hidden(f"{name}.mlp", x, layers))
        exp = (gate - gate.detach().max()).exp()
        return exp / exp.sum(dim=1, keepdim=True)

    def towers(self, x: dict[str, Tensor], tasks: Sequence[str]) -> Tensor:
        layers = len(self.config.tower_hidden)
        towers = [self.linear(f"towers.{t}.{2 * layers}", self.hidden(f"towers.{t}", x[t], layers)) for t in tasks]
        return torch.cat(towers, dim=1)


def logits_by_formula(
    weights: dict[str, Tensor], batch: Batch, tasks: Sequence[str], config: STEMOptions, columns: Columns = COLUMNS
) -> Tensor:
    """Logits (B, T) of STEM with weights by parameter name; `columns` tell which features pool by the mean."""
    parts = Parts(weights, config, columns)
    groups = [*tasks, "shared"]
    x = parts.inputs(batch, groups)
    for layer in range(config.num_layers):
        experts = {}
        for g in groups:
            for k in range(config.num_shared_experts if g == "shared" else config.num_task_experts):
                experts[g, k] = parts.expert(f"layers.{layer}.experts.{g}", k, x[g])
        mixed = {}
        for t in tasks if layer == config.num_layers - 1 else groups:
            read = [gk for gk in experts if config.reads == "all" or gk[0] in (t, "shared")]
            if len(read) == 1:
                mixed[t] = experts[read[0]]
                continue
            gate_input = x["shared"] if t == "shared" or config.gate_input == "shared" else x[t]
            if t != "shared" and config.gate_input == "sum":
                gate_input = x[t] + x["shared"]
            gate = parts.gate(f"layers.{layer}.gates.{t}", gate_input)
            mixed[t] = 0
            for i, (g, k) in enumerate(read):
                trained = g in (t, "shared") or config.trains == "all"
                seen = experts[g, k] if trained else experts[g, k].detach()
                mixed[t] = mixed[t] + gate[:, i, None] * seen
        x = mixed
    return parts.towers(x, tasks)


def loss_by_formula(logits: Tensor, labels: Tensor, task_weights: Sequence[float] = ()) -> Tensor:
    """Sum over the tasks of weight times mean of log(1 + exp(z)) - y z over the rows with a label y."""
    total = torch.zeros(())
    for t in range(labels.shape[1]):
        terms = [softplus(z) - y * z for z, y in zip(logits[:, t], labels[:, t], strict=True) if not y.isnan()]
        if terms:
            total = total + (task_weights[t] if task_weights else 1) * sum(terms) / len(terms)
    return total


def train_by_hand(
    weights: dict[str, Tensor],
    steps: Sequence[Sequence[Batch]],
    tasks: Sequence[str],
    config: TrainConfig,
    factors: Sequence[float] = (),
    columns: Columns = COLUMNS,
) -> dict[str, Tensor]:
    """Weights after the steps; a step's loss is that of the rows of all its ranks.

    `factors` scale the learning rates of the steps; `columns` tell which features pool by the mean. An optimizer that
    is fused into the backward pass leaves the rows alone that the step does not look up; only moments tell the
    difference.
    """
    weights = {name: weight.clone().requires_grad_() for name, weight in weights.items()}
    adam = torch.optim.Adam([w for name, w in weights.items() if TABLES not in name], config.dense.learning_rate)
    tables = {name: w for name, w in weights.items() if TABLES in name}
    state = {name: (torch.zeros(w.shape), torch.zeros(w.shape)) for name, w in tables.items()}
    for step, batches in enumerate(steps):
        factor = factors[step] if factors else 1.0
        logits = [logits_by_formula(weights, b, tasks, config.model, columns) for b in batches]
        loss_by_formula(torch.cat(logits), torch.cat([b.labels for b in batches])).backward()
        adam.param_groups[0]["lr"] = config.dense.learning_rate * factor
        adam.step()
        adam.zero_grad()
        for name, table in tables.items():
            group, feature = name.removeprefix(f"{TABLES}.").removesuffix(".weight").split("/")
            updated = torch.full((len(table), 1), float(config.sharding.type == "data_parallel"))
            for batch in batches:
                updated[batch.sparse_features[feature].values()] = 1.0
            rate = factor * config.sparse.group_learning_rates.get(group, config.sparse.learning_rate)
            _update(config, rate, step + 1, table, updated, *state[name])
            table.grad = None
    return {name: weight.detach() for name, weight in weights.items()}


@torch.no_grad()
def _update(
    config: TrainConfig, rate: float, step: int, table: Tensor, updated: Tensor, first: Tensor, second: Tensor
) -> None:
    """`updated` (N, 1) is 1 for the rows that the optimizer updates and 0 for the others."""
    grad, eps, decay = table.grad, config.sparse.eps, config.sparse.weight_decay
    match config.sparse.name:
        case "sgd":
            table -= rate * grad
        case "adagrad":
            second += grad**2
            table -= rate * grad / (second.sqrt() + eps)
        case "rowwise_adagrad":
            grad = grad + updated * decay * table
            second += (grad**2).mean(dim=1, keepdim=True)
            table -= rate * grad / (second.sqrt() + eps)
        case "adam" | "lamb" | "partial_rowwise_adam" as name:
            beta1, beta2 = config.sparse.betas
            square = grad**2
            if name == "partial_rowwise_adam":
                square = square.mean(dim=1, keepdim=True).expand_as(square)
            first.lerp_(grad, updated * (1 - beta1))
            second.lerp_(square, updated * (1 - beta2))
            move = (first / (1 - beta1**step)) / ((second / (1 - beta2**step)).sqrt() + eps) + decay * table
            if name == "lamb":
                move = move * table.norm(dim=1, keepdim=True) / move.norm(dim=1, keepdim=True)
            table -= rate * move.where(updated.bool(), 0)
        case name:
            raise AssertionError(name)
