"""Models of tasks in an order, each a step after the one before it: AITM and ESMM."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Unpack

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid
from torchrec.modules.embedding_modules import EmbeddingBagCollection

from stem_torchrec.config import Arch
from stem_torchrec.models.frame import InputOptions, MultiTaskModel, at_least_one
from stem_torchrec.models.layers import MLP, linear
from stem_torchrec.models.options import BottomOptions
from stem_torchrec.runtime.errors import UserError
from stem_torchrec.tables import SHARED


@dataclass(frozen=True)
class AITMOptions(BottomOptions):
    """Options of AITM."""

    arch: Arch = "aitm"


@dataclass(frozen=True)
class ESMMOptions(BottomOptions):
    """Options of ESMM."""

    arch: Arch = "esmm"


class _Sequential(MultiTaskModel):
    """A bottom for each task on the shared tables; raises UserError for a single task, which has no order."""

    def __init__(
        self,
        embedding_bag_collection: EmbeddingBagCollection,
        tasks: Sequence[str],
        *,
        expert_hidden: Sequence[int] = (512, 512, 512),
        tower_hidden: Sequence[int] = (128, 64),
        dropout: float = 0.0,
        **inputs: Unpack[InputOptions],
    ) -> None:
        if len(tasks) < 2:
            raise UserError(
                f"{type(self).__name__} takes tasks in an order, each a step after the one before it, but has only "
                f"{', '.join(tasks)}; give two or more (--data.labels click buy), or choose another --model.arch."
            )
        super().__init__(embedding_bag_collection, tasks, (SHARED,), **inputs)
        at_least_one(hidden_layers=len(expert_hidden))
        self.bottoms = nn.ModuleDict({t: MLP(self.in_features, expert_hidden, dropout=dropout) for t in tasks})
        self.towers = self.make_towers(expert_hidden[-1], tower_hidden, dropout)

    def arch(self, x: dict[str, Tensor]) -> dict[str, Tensor]:
        """`{"shared": (B, in_features)} -> {task: (B, H)}`."""
        return {task: self.bottoms[task](x[SHARED]) for task in self.tasks}


class AITM(_Sequential):
    """Adaptive information transfer: attention decides how much each task takes from the one before it.

    With q_t = MLP_t(x_s), z_1 = q_1 and p_t = Transfer_t(z_t):

        z_t = sum over u in {p_{t-1}, q_t}: w_u h1(u),   w = softmax(h2(u) h3(u) / sqrt(H)),   logit_t = Tower_t(z_t)

    Source: Xi et al., "Modeling the Sequential Dependence among Audience Multi-step Conversions with Multi-task
    Learning in Targeted Display Advertising", KDD 2021. Its calibrator, a loss where a task is likelier than the one
    before, is left out: it is for tasks that imply the one before. The authors' code has a ReLU behind a transfer and
    no biases in h1, h2 and h3; here a transfer is linear, and they have biases, as in the published STEM code. One h1,
    h2 and h3 serve all tasks, as in the authors' code.

    Args:
        embedding_bag_collection: columns for "shared" and each feature.
        tasks: names of the T tasks, 2 or more, in their order.
        expert_hidden: layer widths of a bottom; the last is H.
        tower_hidden: hidden layer widths of a tower.
        dropout: share of hidden units dropped in training.
        inputs: see MultiTaskModel.

    Raises UserError for a single task.
    """

    def __init__(
        self,
        embedding_bag_collection: EmbeddingBagCollection,
        tasks: Sequence[str],
        *,
        expert_hidden: Sequence[int] = (512, 512, 512),
        tower_hidden: Sequence[int] = (128, 64),
        dropout: float = 0.0,
        **inputs: Unpack[InputOptions],
    ) -> None:
        super().__init__(
            embedding_bag_collection,
            tasks,
            expert_hidden=expert_hidden,
            tower_hidden=tower_hidden,
            dropout=dropout,
            **inputs,
        )
        width = expert_hidden[-1]
        self.transfers = nn.ModuleDict({task: linear(width, width) for task in tasks[:-1]})
        self.attention = nn.ModuleDict({name: linear(width, width) for name in ("h1", "h2", "h3")})

    def arch(self, x: dict[str, Tensor]) -> dict[str, Tensor]:
        """`{"shared": (B, in_features)} -> {task: (B, H)}`."""
        q = super().arch(x)
        first, *others = self.tasks
        z = {first: q[first]}
        before = first
        for task in others:
            z[task] = self._transfer(self.transfers[before](z[before]), q[task])
            before = task
        return z

    def _transfer(self, p: Tensor, q: Tensor) -> Tensor:
        """z_t of p_{t-1} and q_t, all (B, H)."""
        u = torch.stack([p, q], dim=1)
        scores = (self.attention["h2"](u) * self.attention["h3"](u)).sum(dim=2) / math.sqrt(q.shape[1])
        weights = torch.softmax(scores, dim=1, dtype=torch.float32)
        return (weights.unsqueeze(2) * self.attention["h1"](u)).sum(dim=1)


class ESMM(_Sequential):
    """Entire-space model: each task's probability is the product of its own step and all before it.

    With z_t = Tower_t(MLP_t(x_s)), eq. 1 for two tasks:  p_t = sigmoid(z_1) * ... * sigmoid(z_t),  so that a click
    model and a click-and-buy model are trained on all exposures (eq. 3) and share the tables. p_t never exceeds
    p_{t-1}: for tasks that do not imply the one before, that is a handicap.

    Source: Ma et al., "Entire Space Multi-Task Model: An Effective Approach for Estimating Post-Click Conversion Rate",
    SIGIR 2018.

    Args: see AITM. Raises UserError for a single task.
    """

    def logits(self, towers: Tensor) -> Tensor:
        """ln(p / (1 - p)) of the products p, (B, T) of (B, T), in fp32."""
        # Below 0 in fp32 as well, so that 1 - p stays above it.
        log_p = logsigmoid(towers.float()).cumsum(dim=1)[:, 1:].clamp(max=-1e-30)
        return torch.cat([towers[:, :1].float(), log_p - torch.log(-torch.expm1(log_p))], dim=1)
