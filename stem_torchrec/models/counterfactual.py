"""Losses that ESCM2 and DCMT add to those of tasks that are steps: of a step alone, as if the one before had happened.

With p_t = r_1 ... r_t as in ESMM, y_t the labels, and e_t = BCE(r_t, y_t). Each is of the rows with a label of t, those
of all ranks, as every loss is. A row without a label of the task before counts as one in which its step did not happen,
and stays out of what counts such rows.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid, softplus

from stem_torchrec.metrics.collectives import mean_over_ranks


@dataclass(frozen=True)
class Steps:
    """The steps from the second on, of this rank's rows; all but `rows` are (B, T - 1)."""

    r: Tensor
    """Probability of a step if the one before happened."""
    error: Tensor
    """e_t; 0 where the label is missing counts as 0."""
    happened: Tensor
    """1 where the step before happened."""
    failed: Tensor
    """1 where it did not."""
    propensity: Tensor
    """p_{t-1}, under stop-gradient, or the least that a row is divided by."""
    remainder: Tensor
    """1 - p_{t-1}, likewise."""
    further: Tensor
    """What the model's further towers put out for the step."""
    shares: Tensor
    """The weight of the label, 0 where it is missing."""
    rows: Tensor
    """The sum of the shares of all ranks over the number of ranks, (T - 1,)."""
    over_ranks: bool
    """Whether all ranks compute the loss together; else this rank's rows are all."""

    def mean(self, values: Tensor) -> Tensor:
        """The mean over the rows, (T - 1,); the mean over the ranks of what they return is that of all rows."""
        return _quotient((self.shares * values).sum(dim=0), self.rows)

    def weighted_mean(self, values: Tensor, weights: Tensor) -> Tensor:
        """The mean over the rows by `weights` on top of the shares; the ranks exchange the sums of the weights."""
        weighed = self.shares * weights
        sums = weighed.sum(dim=0)
        return _quotient((weighed * values).sum(dim=0), mean_over_ranks(sums) if self.over_ranks else sums)


def _quotient(sums: Tensor, divisors: Tensor) -> Tensor:
    # Without a row the sum is 0, whatever it is divided by.
    return sums / torch.where(divisors > 0, divisors, 1)


Term = Callable[[Steps], Tensor]
"""The loss of each step, (T - 1,)."""


@dataclass(frozen=True)
class CounterfactualLosses:
    """Losses (T,), a term of the steps times a weight.

    Args:
        tasks: T.
        weight: of the losses.
        least_propensity: smallest probability that a row is divided by.
        term: inverse_propensity, doubly_robust, or a Twin.
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
        y, before, p = labels[:, 1:].nan_to_num(), labels[:, :-1], log_p[:, :-1].detach().exp()
        known = (~labels[:, 1:].isnan()).to(y.dtype)
        shares = known if weights is None else known * weights[:, 1:]
        steps = Steps(
            r=log_r.exp(),
            error=-(y * log_r + (1 - y) * torch.log(-torch.expm1(log_r))),
            happened=(before == 1).to(y.dtype),
            failed=(before == 0).to(y.dtype),
            propensity=p.clamp(min=self.least_propensity),
            remainder=(1 - p).clamp(min=self.least_propensity),
            further=outputs[:, self.tasks :],
            shares=shares,
            rows=shares.sum(dim=0) if per_rank is None else per_rank[1:],
            over_ranks=per_rank is not None,
        )
        losses = self.weight * self.term(steps)
        return torch.cat([torch.zeros_like(losses[:1]), losses])


def inverse_propensity(steps: Steps) -> Tensor:
    """ESCM2-IPS: the mean of o e / p, with o = 1 where the step before happened."""
    return steps.mean(steps.happened / steps.propensity * steps.error)


def doubly_robust(steps: Steps) -> Tensor:
    """ESCM2-DR: the mean of i + o (e - i) / p, and of o (e - i)^2 / p, which trains the imputed error i.

    i is the softplus of a further tower.
    """
    imputed = softplus(steps.further)
    missed = steps.error - imputed
    return steps.mean(imputed + steps.happened / steps.propensity * (missed + missed.square()))


@dataclass(frozen=True)
class Twin:
    """DCMT: the mean of e by o / p, that of e* by (1 - o) / (1 - p), and `agreement` times that of |1 - (r + r*)|.

    r* = sigmoid of a further tower is the probability that the step would not happen, and e* = BCE(r*, 1): it is
    trained to be 1 where the step before did not happen. The first two means are divided by the sums of their weights.
    """

    agreement: float

    def __call__(self, steps: Steps) -> Tensor:
        r_twin = torch.sigmoid(steps.further)
        error = binary_cross_entropy_with_logits(steps.further, torch.ones_like(steps.further), reduction="none")
        return (
            steps.weighted_mean(steps.error, steps.happened / steps.propensity)
            + steps.weighted_mean(error, steps.failed / steps.remainder)
            + self.agreement * steps.mean((1 - (steps.r + r_twin)).abs())
        )


# The pipeline traces a model with FX, which cannot look into an exchange between ranks: to FX it is one step.
torch.fx.wrap("mean_over_ranks")
