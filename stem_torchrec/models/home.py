"""HoME: meta experts that all tasks or a category of them share, and above them experts of shared, category and task.

Source: Wang et al., "HoME: Hierarchy of Multi-Gate Experts for Multi-Task Learning at Kuaishou", KDD 2025, arXiv
2408.05430.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Unpack

from torch import Tensor
from torchrec.modules.embedding_modules import EmbeddingBagCollection

from stem_torchrec.config import Arch
from stem_torchrec.models.frame import InputOptions, MultiTaskModel, at_least_one
from stem_torchrec.models.gated_experts import GatedExperts
from stem_torchrec.models.group_experts import ExpertParts
from stem_torchrec.models.options import ExpertOptions
from stem_torchrec.runtime.errors import UserError
from stem_torchrec.tables import SHARED

ALL_TASKS = "+all"
"""The category without a name, of all tasks. No task's name has a plus."""


@dataclass(frozen=True)
class HoMEOptions(ExpertOptions):
    """Options of HoME."""

    arch: Arch = "home"
    categories: tuple[str, ...] = ()
    """Categories of tasks, each as tasks joined by +: like+share play+finish; one of all tasks if none is given. Each
    has as many experts as --model.num-shared-experts."""


class HoME(MultiTaskModel):
    """Two layers of experts on the shared tables, in which a task reads its own, its category's and the shared ones.

    With the mixture M(groups; inputs) of the experts of some groups, behind a gate as in GatedExperts, each expert with
    NormedSwish, each group with a feature gate, each stream with a self gate, and the category c of task t:

        z_s = M(s; x_s)           z_c = M(c, s; x_s)                              the meta experts
        x_t = M(t, c, s; z_c, z_c, z_s)           logit_t = Tower_t(x_t)          each group's experts on its own input

    so that no shared expert is occupied by a task through the others' experts (the hierarchy mask). The gate of a task
    reads [z_c, z_s], any other gate and all self gates what their stream's own experts read. Other than in the paper
    experts are normalized over their units, in each layer, and not over the batch, as NormedSwish says, and a feature
    gate has one pair of matrices, where the paper's weighs several, and is one for all experts of a group. z_s is of
    the shared experts alone, so that a category's experts are trained by its own tasks; in some public code it reads
    those of all categories.

    Args:
        embedding_bag_collection: columns for "shared" and each feature.
        tasks: names of the T tasks, in the order of the logits.
        num_shared_experts: experts of shared and of each category, per layer.
        num_task_experts: experts of each task.
        categories: see HoMEOptions.
        expert_hidden: layer widths of an expert.
        gate_hidden: hidden layer widths of a gate.
        tower_hidden: hidden layer widths of a tower.
        dropout: share of hidden units dropped in training.
        inputs: see MultiTaskModel.

    Raises UserError for categories in which a task is missing, unknown or named twice.
    """

    def __init__(
        self,
        embedding_bag_collection: EmbeddingBagCollection,
        tasks: Sequence[str],
        *,
        num_shared_experts: int = 8,
        num_task_experts: int = 1,
        categories: Sequence[str] = (),
        expert_hidden: Sequence[int] = (512, 512, 512),
        gate_hidden: Sequence[int] = (128, 64),
        tower_hidden: Sequence[int] = (128, 64),
        dropout: float = 0.0,
        **inputs: Unpack[InputOptions],
    ) -> None:
        super().__init__(embedding_bag_collection, tasks, (SHARED,), **inputs)
        at_least_one(
            num_shared_experts=num_shared_experts, num_task_experts=num_task_experts, hidden_layers=len(expert_hidden)
        )
        self.category = category_of_tasks(tasks, categories)
        groups = (*dict.fromkeys(self.category.values()), SHARED)

        def layer(
            in_features: int,
            reads: Mapping[str, Sequence[str]],
            numbers: Mapping[str, int],
            gate_inputs: Mapping[str, Sequence[str]],
        ) -> GatedExperts:
            return GatedExperts(
                in_features,
                num_experts=numbers,
                reads=reads,
                trains=reads,
                gate_inputs=gate_inputs,
                joins_gate_inputs=True,
                expert_hidden=expert_hidden,
                gate_hidden=gate_hidden,
                dropout=dropout,
                experts=ExpertParts("norm", feature_gate=True),
                self_gate=True,
            )

        shared = dict.fromkeys(groups, num_shared_experts)
        of_groups = {g: tuple(dict.fromkeys((g, SHARED))) for g in groups}
        self.meta = layer(self.in_features, of_groups, shared, {g: (g,) for g in groups})
        of_tasks = {task: (task, self.category[task], SHARED) for task in tasks}
        numbers = dict.fromkeys(tasks, num_task_experts) | shared
        self.local = layer(expert_hidden[-1], of_tasks, numbers, {task: (task, SHARED) for task in tasks})
        self.towers = self.make_towers(expert_hidden[-1], tower_hidden, dropout)

    def arch(self, x: dict[str, Tensor]) -> dict[str, Tensor]:
        """`{"shared": (B, in_features)} -> {task: (B, H)}`."""
        groups = (*dict.fromkeys(self.category[task] for task in self.tasks), SHARED)
        z = self.meta(dict.fromkeys(groups, x[SHARED]))
        return self.local({g: z[self.category.get(g, g)] for g in (*self.tasks, *groups)})


def category_of_tasks(tasks: Sequence[str], categories: Sequence[str]) -> dict[str, str]:
    """The name of each task's category, which is no task's; see HoMEOptions.

    Example::

        category_of_tasks(["like", "share", "play"], ["like+share", "play"])
        # {"like": "+like+share", "share": "+like+share", "play": "+play"}
    """
    if not categories:
        return dict.fromkeys(tasks, ALL_TASKS)
    category = {task: f"+{each}" for each in categories for task in each.split("+")}
    if sorted(task for each in categories for task in each.split("+")) != sorted(tasks):
        raise UserError(
            f"--model.categories is {' '.join(categories)}, but must name each of {', '.join(tasks)} once, those of a "
            "category joined by +."
        )
    return {task: category[task] for task in tasks}
