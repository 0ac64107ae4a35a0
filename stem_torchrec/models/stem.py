"""STEM-Net: shared and task-specific embeddings, read all forward and trained task-specific backward.

Source: "STEM: Unleashing the Power of Embeddings for Multi-task Recommendation", AAAI 2024, arXiv 2308.13537.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, Unpack

from torch import Tensor, nn
from torchrec.modules.embedding_modules import EmbeddingBagCollection

from stem_torchrec.config import Arch
from stem_torchrec.models.frame import InputOptions, MultiTaskModel, at_least_one
from stem_torchrec.models.gated_experts import GatedExperts
from stem_torchrec.models.group_experts import ExpertKind, ExpertParts
from stem_torchrec.models.options import CovarianceWeight, LayeredOptions, OwnTableOptions
from stem_torchrec.tables import SHARED, groups_of

Groups = Literal["all", "own_shared"]
GateInput = Literal["sum", "task", "shared"]


@dataclass(frozen=True)
class STEMOptions(LayeredOptions, OwnTableOptions):
    """Options of STEM."""

    arch: Arch = "stem"
    reads: Groups = "all"
    """Experts that a task's gate reads: those of all groups, or only its own and the shared ones."""
    trains: Groups = "own_shared"
    """Of the experts it reads, those that a task's loss trains: own and shared (AFTB), or all."""
    gate_input: GateInput = "sum"
    """The input of a task's gate: its own embeddings, the shared ones, or the sum of both."""
    covariance_weight: CovarianceWeight = 0.0
    """Weight in the loss of the covariances of each task's embeddings and the shared ones, which keeps a task's tables
    from repeating the shared ones (Crocodile). No pair of two tasks, so tasks stay isolated."""


class STEM(MultiTaskModel):
    """STEM-Net over the tables of an EmbeddingBagCollection: a batch of B rows to logits of shape (B, T).

    Every group g, a task or shared, has tables, whose pooled embeddings are x_g, and experts e_{g,k} on them. In each
    layer task t mixes the experts of all groups, but trains only its own and the shared ones (`models/aftb.py`):

        x_t' = sum_{g,k} a_t[g,k] * stop(g, t)(e_{g,k}(x_g)),   a_t = softmax(Gate_t(x_t + x_s)),
        stop(g, t) = identity if g is t or shared, else stop-gradient;   logit_t = Tower_t(x_t of the last layer)

    If another layer follows, the shared stream is x_s' with a_s = softmax(Gate_s(x_s)) and all task experts under
    stop-gradient, so that no task's loss reaches another task's tables at any depth. The published code leaves that
    gate open: there isolation ends after one layer.

    Args:
        embedding_bag_collection: columns for each task and feature and for "shared" and each feature, in tables named
            as `tables.embedding_bag_configs` names them in either layout.
        tasks: names of the T tasks, in the order of the logits.
        num_layers, num_shared_experts, num_task_experts, expert_hidden, gate_hidden, reads, trains, gate_input,
            tower_hidden, dropout, expert, cross_layers, feature_gate, prior, rank, self_gate: see STEMOptions.
        inputs: dense features, dropout of the input and penalties on it, see MultiTaskModel. Each group projects the
            dense features on its own, so that isolation holds.

    Raises UserError for a size below 1, and for tables or batches that do not fit the tasks; see MultiTaskModel.

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
        expert: ExpertKind = "mlp",
        cross_layers: int = 2,
        feature_gate: bool = False,
        prior: Sequence[str] = (),
        rank: int = 64,
        self_gate: bool = False,
        **inputs: Unpack[InputOptions],
    ) -> None:
        groups = groups_of(tasks)
        super().__init__(embedding_bag_collection, tasks, groups, **inputs)
        at_least_one(
            num_layers=num_layers,
            num_shared_experts=num_shared_experts,
            num_task_experts=num_task_experts,
            hidden_layers=len(expert_hidden),
        )
        columns = self.input_columns("--model.prior", prior)
        first = ExpertParts(expert, feature_gate, columns, cross_layers, rank)
        self.layers = nn.ModuleList()
        for layer in range(num_layers):
            # The last layer has no shared stream: its gate would get no gradient.
            streams = groups if layer < num_layers - 1 else self.tasks
            everything = dict.fromkeys(streams, groups)
            own_shared = {stream: (stream, SHARED) for stream in streams}
            self.layers.append(
                GatedExperts(
                    expert_hidden[-1] if layer else self.in_features,
                    num_experts={g: num_shared_experts if g == SHARED else num_task_experts for g in groups},
                    # All forward, task-specific backward: a task reads every expert, and trains its own and the shared.
                    reads=everything if reads == "all" else own_shared,
                    trains=everything if trains == "all" else own_shared,
                    gate_inputs={stream: gate_groups(stream, gate_input) for stream in streams},
                    expert_hidden=expert_hidden,
                    gate_hidden=gate_hidden,
                    dropout=dropout,
                    # Behind the first layer streams have no columns of features.
                    experts=replace(first, prior=()) if layer else first,
                    self_gate=self_gate,
                )
            )
        self.towers = self.make_towers(expert_hidden[-1], tower_hidden, dropout)

    def arch(self, x: dict[str, Tensor]) -> dict[str, Tensor]:
        """`{group: (B, in_features)} -> {task: (B, H)}`, layer by layer."""
        for layer in self.layers:
            x = layer(x)
        return x


def gate_groups(stream: str, gate_input: GateInput) -> tuple[str, ...]:
    """The groups whose inputs the gate of a stream reads, summed."""
    if stream == SHARED or gate_input == "shared":
        return (SHARED,)
    return (stream,) if gate_input == "task" else (stream, SHARED)
