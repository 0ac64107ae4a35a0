"""STEM-Net: shared and task-specific embeddings, read all forward and trained task-specific backward.

Source: "STEM: Unleashing the Power of Embeddings for Multi-task Recommendation", AAAI 2024, arXiv 2308.13537.
"""

from collections.abc import Sequence
from typing import Unpack

from torch import Tensor, nn
from torchrec.modules.embedding_modules import EmbeddingBagCollection

from stem_torchrec.config import GateInput, Groups
from stem_torchrec.models.frame import InputOptions, MultiTaskModel, at_least_one
from stem_torchrec.models.gated_experts import GatedExperts
from stem_torchrec.tables import SHARED, groups_of


class STEMLayer(GatedExperts):
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
        gate_input: what a task's gate reads: the "sum" of its own and the shared input, or the "task"'s or "shared".
        dropout: share of hidden units dropped in training.
    """

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
        gate_input: GateInput = "sum",
        dropout: float = 0.0,
    ) -> None:
        groups = groups_of(tasks)
        own_shared = {stream: (stream, SHARED) for stream in (tasks if last else groups)}
        everything = dict.fromkeys(own_shared, groups)
        super().__init__(
            in_features,
            num_experts={group: num_shared_experts if group == SHARED else num_task_experts for group in groups},
            reads=everything if reads == "all" else own_shared,
            trains=everything if trains == "all" else own_shared,
            gate_inputs={s: gate_groups(s, gate_input) for s in own_shared},
            expert_hidden=expert_hidden,
            gate_hidden=gate_hidden,
            dropout=dropout,
        )


def gate_groups(stream: str, gate_input: GateInput) -> tuple[str, ...]:
    """The groups whose inputs the gate of a stream reads."""
    if stream == SHARED or gate_input == "shared":
        return (SHARED,)
    return (stream,) if gate_input == "task" else (stream, SHARED)


class STEM(MultiTaskModel):
    """STEM-Net over the tables of an EmbeddingBagCollection: a batch of B rows to logits of shape (B, T).

    Args:
        embedding_bag_collection: columns for each task and feature and for "shared" and each feature, in tables named
            as `tables.embedding_bag_configs` names them in either layout.
        tasks: names of the T tasks, in the order of the logits.
        num_layers: layers of experts and gates.
        num_shared_experts: experts of the shared group, per layer.
        num_task_experts: experts of each task, per layer.
        expert_hidden: layer widths of an expert.
        gate_hidden: hidden layer widths of a gate.
        tower_hidden: hidden layer widths of a tower.
        reads: which experts a task's gate reads, see STEMLayer.
        trains: which of them its loss trains; the default is AFTB.
        gate_input: what a task's gate decides by, see STEMLayer.
        dropout: share of hidden units dropped in training.
        inputs: dense features and dropout of the input, see MultiTaskModel. Each group projects the dense features
            on its own, so that isolation holds.

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
        num_layers: int = 1,
        num_shared_experts: int = 8,
        num_task_experts: int = 1,
        expert_hidden: Sequence[int] = (512, 512, 512),
        gate_hidden: Sequence[int] = (128, 64),
        tower_hidden: Sequence[int] = (128, 64),
        reads: Groups = "all",
        trains: Groups = "own_shared",
        gate_input: GateInput = "sum",
        dropout: float = 0.0,
        **inputs: Unpack[InputOptions],
    ) -> None:
        super().__init__(embedding_bag_collection, tasks, groups_of(tasks), **inputs)
        at_least_one(
            num_layers=num_layers,
            num_shared_experts=num_shared_experts,
            num_task_experts=num_task_experts,
            hidden_layers=len(expert_hidden),
        )
        self.layers = nn.ModuleList(
            STEMLayer(
                tasks,
                self.in_features if layer == 0 else expert_hidden[-1],
                num_shared_experts=num_shared_experts,
                num_task_experts=num_task_experts,
                expert_hidden=expert_hidden,
                gate_hidden=gate_hidden,
                last=layer == num_layers - 1,
                reads=reads,
                trains=trains,
                gate_input=gate_input,
                dropout=dropout,
            )
            for layer in range(num_layers)
        )
        self.towers = self.make_towers(expert_hidden[-1], tower_hidden, dropout)

    def arch(self, x: dict[str, Tensor]) -> dict[str, Tensor]:
        """`{group: (B, in_features)} -> {task: (B, H)}`, layer by layer."""
        for layer in self.layers:
            x = layer(x)
        return x
