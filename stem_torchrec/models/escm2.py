"""ESCM2: ESMM with a loss of each step that stands for the rows whose step before did not happen.

Source: Wang et al., "ESCM2: Entire Space Counterfactual Multi-Task Model for Post-Click Conversion Rate Estimation",
SIGIR 2022, arXiv 2204.05125; the variant with inverse propensity scores.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Unpack

import torch
from annotated_types import Interval
from torch import Tensor
from torch.nn.functional import logsigmoid
from torchrec.modules.embedding_modules import EmbeddingBagCollection

from stem_torchrec.config import Arch
from stem_torchrec.models.frame import InputOptions
from stem_torchrec.models.options import BottomOptions
from stem_torchrec.models.sequential import ESMM

CounterfactualWeight = Annotated[float, Interval(ge=0, le=1e6)]
Propensity = Annotated[float, Interval(gt=0, le=1)]


@dataclass(frozen=True)
class ESCM2Options(BottomOptions):
    """Options of ESCM2."""

    arch: Arch = "escm2"
    counterfactual_weight: CounterfactualWeight = 0.1
    """Weight of the loss of a step on the rows whose step before happened, each divided by its probability."""
    least_propensity: Propensity = 0.05
    """Smallest such probability that a row is divided by, which limits what one row weighs."""


class ESCM2(ESMM):
    """ESMM whose steps are trained on their own as well, on rows that stand for all exposures.

    With r_t = sigmoid(z_t) the probability of step t if the one before happened, p_t = r_1 ... r_t as in ESMM, and
    labels y_t, the loss of task t > 1 is (eq. 7 and 15; two tasks there)

        BCE(p_t, y_t) + weight * mean over rows: y_{t-1} / stop(p_{t-1}) * BCE(r_t, y_t)

    A row of which it is unlikely that the step before happened stands for the many like it in which it did not, so that
    r_t is not fitted to the likely rows alone. The mean is over the rows with a label of t, those of all ranks, as that
    of every loss. A row without a label of the task before counts as one in which its step did not happen.

    Args:
        embedding_bag_collection, tasks, expert_hidden, tower_hidden, dropout, inputs: see AITM.
        counterfactual_weight, least_propensity: see ESCM2Options.

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
        counterfactual_weight: float = 0.1,
        least_propensity: float = 0.05,
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
        self.added_losses = CounterfactualLosses(counterfactual_weight, least_propensity)


@dataclass(frozen=True)
class CounterfactualLosses:
    """The losses that ESCM2 adds to those of the tasks, (T,), from logits of the products p and labels (B, T).

    log r_t = log p_t - log p_{t-1}, so the logits and labels are all that it takes.
    """

    weight: float
    least_propensity: float

    def __call__(self, logits: Tensor, labels: Tensor, per_rank: Tensor | None, weights: Tensor | None) -> Tensor:
        """See `models/loss.py` for the arguments."""
        log_p = logsigmoid(logits)
        # Below 0 in fp32 as well, so that 1 - r stays above it.
        log_r = (log_p[:, 1:] - log_p[:, :-1]).clamp(max=-1e-6)
        y = labels[:, 1:].nan_to_num()
        bce = -(y * log_r + (1 - y) * torch.log(-torch.expm1(log_r)))
        known = (~labels[:, 1:].isnan()).to(bce.dtype)
        shares = known if weights is None else known * weights[:, 1:]
        divisors = shares.sum(dim=0) if per_rank is None else per_rank[1:]
        propensities = log_p[:, :-1].detach().exp().clamp(min=self.least_propensity)
        happened = (labels[:, :-1] == 1).to(bce.dtype)
        sums = (shares * happened / propensities * bce).sum(dim=0)
        losses = self.weight * sums / torch.where(divisors > 0, divisors, 1)
        return torch.cat([torch.zeros_like(losses[:1]), losses])
