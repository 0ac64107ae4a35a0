"""STEM-Net: shared and task-specific embeddings, read all forward and trained task-specific backward.

Source: "STEM: Unleashing the Power of Embeddings for Multi-task Recommendation", AAAI 2024, arXiv 2308.13537.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from stem_torchrec.config import Groups
from stem_torchrec.errors import UserError
from stem_torchrec.layers import MLP, Experts, Gate, linear
from stem_torchrec.tables import SHARED, SparseArch, groups_of


class STEMLayer(nn.Module):
    """One layer of experts and AFTB gates: `{group: (B, in_features)} -> {group: (B, H)}`.

    With e_{g,k} the experts of group g and a_t = softmax(Gate_t(x_t + x_s)) over all of them,

        x_t' = sum_{g,k} a_t[g,k] * stop(g, t)(e_{g,k}(x_g)),   stop(g, t) = identity if g is t or shared

    and the shared stream, where another layer follows, is x_s' with a_s = softmax(Gate_s(x_s)) and all task
    experts under stop-gradient. The published code leaves that shared gate open, so that from two layers on a
    task's loss reaches the other tasks' tables through it.

    Args:
        tasks: names of the tasks.
        in_features: width of each group's input.
        num_shared_experts: experts of the shared group.
        num_task_experts: experts of each task.
        expert_hidden: layer widths of an expert; the last is H.
        gate_hidden: hidden layer widths of a gate.
        last: whether the towers follow; then no shared stream is made, as its gate would get no gradient.
        reads: experts that a gate reads: "all", or "own_shared" for its own group's and the shared ones.
        trains: of those, the ones its loss trains: "own_shared" (AFTB) or "all".
        dropout: share of hidden units dropped in training.
    """

    read: Tensor
    trained: Tensor

    def __init__(
        self,
        tasks: Sequence[str],
        in_features: int,
        *,
        num_shared_experts: int,
        num_task_experts: int,
        expert_hidden: Sequence[int],
        gate_hidden: Sequence[int],
        last: bool,
        reads: Groups = "all",
        trains: Groups = "own_shared",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        groups = groups_of(tasks)
        num_experts = {group: num_shared_experts if group == SHARED else num_task_experts for group in groups}
        self.streams = tuple(tasks) if last else groups
        self.reads = {s: [g for g in groups if reads == "all" or g in (s, SHARED)] for s in self.streams}
        self.num_experts = num_experts
        self.experts = nn.ModuleDict(
            {g: Experts(num_experts[g], in_features, expert_hidden, dropout=dropout) for g in groups}
        )
        num_read = {s: sum(num_experts[g] for g in self.reads[s]) for s in self.streams}
        # A softmax over one expert is 1 and would leave its gate without a gradient.
        self.gates = nn.ModuleDict(
            {s: Gate(in_features, gate_hidden, n, dropout=dropout) for s, n in num_read.items() if n > 1}
        )
        owners = [group for group in groups for _ in range(num_experts[group])]
        pairs = [(stream, owner) for stream in self.streams for owner in owners]
        read = [i for i, (stream, owner) in enumerate(pairs) if owner in self.reads[stream]]
        trained = [trains == "all" or owner in (stream, SHARED) for stream, owner in pairs]
        self.register_buffer("read", torch.tensor(read), persistent=False)
        self.register_buffer("trained", torch.tensor(trained).view(-1, len(owners)), persistent=False)

    def forward(self, x: dict[str, Tensor]) -> dict[str, Tensor]:
        experts = torch.cat([self.experts[group](x[group]) for group in self.experts])
        weights = torch.cat([self._gate(stream, x) for stream in self.streams], dim=1)
        # The experts that a stream does not read have the weight 0.
        weights = weights.new_zeros(weights.shape[0], self.trained.numel()).index_copy(1, self.read, weights)
        mixed = aftb(weights.unflatten(1, self.trained.shape), experts, self.trained).unbind(dim=1)
        return {stream: mixed[i] for i, stream in enumerate(self.streams)}

    def _gate(self, stream: str, x: dict[str, Tensor]) -> Tensor:
        if stream not in self.gates:
            return torch.ones_like(x[SHARED][:, :1])
        return self.gates[stream](x[SHARED] if stream == SHARED else x[stream] + x[SHARED])


def aftb(weights: Tensor, experts: Tensor, trained: Tensor) -> Tensor:
    """Mixtures of experts, all forward, task-specific backward: `(B, S, K), (K, B, H) -> (B, S, H)`.

    Each of S streams reads K experts by its weights; its gradient reaches all weights, but only the experts where
    `trained` (S, K) is true. Forward and backward are one batched matrix product over the rows each, for all streams
    together:

        Y = W E        dW = dY E^T        dE = (W * trained)^T dY
    """
    return _AFTB.apply(weights.to(experts.dtype), experts.transpose(0, 1), trained)


class _AFTB(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weights: Tensor, experts: Tensor, trained: Tensor) -> Tensor:
        ctx.save_for_backward(weights, experts, trained)
        return torch.bmm(weights, experts)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        weights, experts, trained = ctx.saved_tensors
        return torch.bmm(grad, experts.mT), torch.bmm((weights * trained).mT, grad), None


# The pipeline traces a model with FX, which cannot look into an autograd function: this is one step to it.
torch.fx.wrap("aftb")


class STEM(nn.Module):
    """STEM-Net over the tables of an EmbeddingBagCollection: a batch of B rows to logits of shape (B, T).

    Args:
        embedding_bag_collection: columns for each task and feature and for "shared" and each feature, in tables named
            as `tables.embedding_bag_configs` names them in either layout.
        tasks: names of the T tasks, in the order of the logits.
        dense_in_features: number of dense features.
        dense_out_features: width to which each group projects them on its own, so that isolation holds.
        num_layers: layers of experts and gates.
        num_shared_experts: experts of the shared group, per layer.
        num_task_experts: experts of each task, per layer.
        expert_hidden: layer widths of an expert.
        gate_hidden: hidden layer widths of a gate.
        tower_hidden: hidden layer widths of a tower.
        reads: which experts a task's gate reads, see STEMLayer.
        trains: which of them its loss trains; the default is AFTB.
        dropout: share of hidden units dropped in training.
        embedding_dropout: share of layer 1's input dropped in training.

    Example::

        configs = embedding_bag_configs([SparseFeature("uid", 100)], ["finish", "like", "shared"])
        model = STEM(EmbeddingBagCollection(tables=configs), tasks=["finish", "like"])
        features = KeyedJaggedTensor.from_lengths_sync(["uid"], torch.tensor([3, 7]), torch.tensor([1, 1]))
        model(torch.empty(2, 0), features).shape  # (2, 2)
    """

    def __init__(
        self,
        embedding_bag_collection: EmbeddingBagCollection,
        tasks: Sequence[str],
        *,
        dense_in_features: int = 0,
        dense_out_features: int = 16,
        num_layers: int = 1,
        num_shared_experts: int = 8,
        num_task_experts: int = 1,
        expert_hidden: Sequence[int] = (512, 512, 512),
        gate_hidden: Sequence[int] = (128, 64),
        tower_hidden: Sequence[int] = (128, 64),
        reads: Groups = "all",
        trains: Groups = "own_shared",
        dropout: float = 0.0,
        embedding_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if min(num_layers, num_shared_experts, num_task_experts, len(expert_hidden)) < 1:
            raise UserError(
                "STEM needs at least 1 layer, 1 shared expert, 1 expert per task and 1 hidden layer in an expert, not "
                f"{num_layers}, {num_shared_experts}, {num_task_experts} and {len(expert_hidden)}."
            )
        self.tasks = tuple(tasks)
        groups = groups_of(tasks)
        self.sparse_arch = SparseArch(embedding_bag_collection, groups)
        self.dense_arch = nn.ModuleDict(
            {g: linear(dense_in_features, dense_out_features) for g in groups if dense_in_features > 0}
        )
        self.embedding_dropout = nn.Dropout(embedding_dropout)
        in_features = self.sparse_arch.out_features[SHARED] + (dense_out_features if self.dense_arch else 0)
        self.layers = nn.ModuleList(
            STEMLayer(
                tasks,
                in_features if layer == 0 else expert_hidden[-1],
                num_shared_experts=num_shared_experts,
                num_task_experts=num_task_experts,
                expert_hidden=expert_hidden,
                gate_hidden=gate_hidden,
                last=layer == num_layers - 1,
                reads=reads,
                trains=trains,
                dropout=dropout,
            )
            for layer in range(num_layers)
        )
        self.towers = nn.ModuleDict(
            {task: MLP(expert_hidden[-1], tower_hidden, out_features=1, dropout=dropout) for task in tasks}
        )

    def forward(self, dense_features: Tensor, sparse_features: KeyedJaggedTensor) -> Tensor:
        x = self.sparse_arch(sparse_features)
        if self.dense_arch:
            x = {g: torch.cat([x[g], self.dense_arch[g](dense_features)], dim=1) for g in x}
        x = {g: self.embedding_dropout(x[g]) for g in x}
        for layer in self.layers:
            x = layer(x)
        return torch.cat([self.towers[task](x[task]) for task in self.tasks], dim=1)
