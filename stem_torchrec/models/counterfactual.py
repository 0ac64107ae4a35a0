"""Losses that ESCM2 and DCMT add to those of tasks that are steps: of a step alone, as if the one before had happened.

With p_t = r_1 ... r_t as in ESMM, y_t the labels, and e_t = BCE(r_t, y_t). Each is a mean over the rows with a label of
t, those of all ranks, as that of every loss. A row without a label of the task before counts as one in which its step
did not happen, and stays out of what counts such rows.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid, softplus


@dataclass(frozen=True)
class Steps:
    """The steps from the second on, of this rank's rows, all (B, T - 1)."""

    r: Tensor
    """Probability of a step if the one before happened."""
    error: Tensor
    """e_t; 0 where the label is missing counts as 0."""
    happened: Tensor
    """1 where the step before happened."""
    failed: Tensor
    """1 where it did not."""
    propensity: Tensor
    """p_{t-1}, under stop-gradient."""
    further: Tensor
    """What the model's further towers put out for the step."""


Term = Callable[[Steps], Tensor]
"""What a loss is of each row and step, (B, T - 1)."""


@dataclass(frozen=True)
class CounterfactualLosses:
    """Losses (T,) by a term of rows, times a weight.

    Args:
        tasks: T.
        weight: of the losses.
        least_propensity: smallest p that a row is divided by.
        term: inverse_propensity, doubly_robust, or twin.
    """

    tasks: int
    weight: float
    least_propensity: float
    term: Term

    def __call__(self, outputs: Tensor, labels: Tensor, per_rank: Tensor | None, weights: Tensor | None) -> Tensor:
        """From the model's outputs: the logits of the products p, (B, T), and behind them those of further towers."""
        log_p = logsigmoid(outputs[:, : self.tasks])
        # Below 0 in fp32 as well, so that 1 - r stays above it.
        log_r = (log_p[:, 1:] - log_p[:, :-1]).clamp(max=-1e-6)
        y, before = labels[:, 1:].nan_to_num(), labels[:, :-1]
        steps = Steps(
            r=log_r.exp(),
            error=-(y * log_r + (1 - y) * torch.log(-torch.expm1(log_r))),
            happened=(before == 1).to(y.dtype),
            failed=(before == 0).to(y.dtype),
            propensity=log_p[:, :-1].detach().exp().clamp(self.least_propensity, 1 - self.least_propensity),
            further=outputs[:, self.tasks :],
        )
        known = (~labels[:, 1:].isnan()).to(y.dtype)
        shares = known if weights is None else known * weights[:, 1:]
        divisors = shares.sum(dim=0) if per_rank is None else per_rank[1:]
        sums = (shares * self.term(steps)).sum(dim=0)
        losses = self.weight * sums / torch.where(divisors > 0, divisors, 1)
        return torch.cat([torch.zeros_like(losses[:1]), losses])


def inverse_propensity(steps: Steps) -> Tensor:
    """ESCM2-IPS: o e / p, with o = 1 where the step before happened."""
    return steps.happened / steps.propensity * steps.error


def doubly_robust(steps: Steps) -> Tensor:
    """ESCM2-DR: i + o (e - i) / p, and o (e - i)^2 / p, which trains the imputed error i = softplus(further tower)."""
    imputed = softplus(steps.further)
    missed = steps.error - imputed
    return imputed + steps.happened / steps.propensity * (missed + missed.square())


def twin(steps: Steps) -> Tensor:
    """DCMT: o e / p + (1 - o) e* / (1 - p) + 0.001 |1 - (r + r*)|, with r* the sigmoid of a further tower.

    r* is the probability that the step would not happen; it is trained to be 1 where the step before did not happen.
    """
    r_twin = torch.sigmoid(steps.further)
    error = binary_cross_entropy_with_logits(steps.further, torch.ones_like(steps.further), reduction="none")
    factual = steps.happened / steps.propensity * steps.error
    return factual + steps.failed / (1 - steps.propensity) * error + 0.001 * (1 - (steps.r + r_twin)).abs()
