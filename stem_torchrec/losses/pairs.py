"""The pairwise logistic loss: a row with the label 1 should have a larger logit than one with the label 0."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from stem_torchrec.losses.step_rows import StepRows, TaskRows

PAIRS_AT_ONCE = 2**22
"""Pairs of rows in memory at a time; each takes about 20 bytes."""


def pairs(rows: StepRows) -> Tensor:
    """Mean of -ln sigmoid(z_i - z_j) over the pairs of a row i with the label 1 and a row j with the label 0.

    The pairs are those of all ranks' rows. The rows of a pair have the same group, and a pair counts the product of its
    rows' weights. 0 without a pair. The mean over the ranks of what they return is the loss, and of their gradients its
    gradient: a rank computes the pairs of its own rows, about 2 P N / W of P rows with the label 1, N with 0 and W
    ranks.

    Source: Burges et al., "Learning to Rank using Gradient Descent", ICML 2005; beside the binary cross entropy in Lin
    et al., "Understanding the Ranking Loss for Recommendation with Sparse User Feedback", KDD 2024 (arXiv 2403.14144),
    whose code adds both with shares of sum 1, as --loss.pointwise does, and takes the mean over all pairs of a batch.

    Example::

        # logits  1  0  2
        # labels  1  0  0    -(ln sigmoid(1 - 0) + ln sigmoid(1 - 2)) / 2
    """
    loss: Tensor = _PairLoss.apply(rows.own.logits, rows)
    return loss


class _PairLoss(torch.autograd.Function):
    """Computes the gradient beside the loss, block by block, so that no matrix of all pairs is kept."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, rows: StepRows) -> Tensor:
        (own_ones, own_zeros), (ones, zeros) = rows.own.by_label(), rows.everyone().by_label()
        of_loss, down = _sums(own_ones, zeros, sign=1)
        _, up = _sums(own_zeros, ones, sign=-1)
        weight = _weight_of_pairs(ones, zeros).to(logits.dtype)
        scale = len(rows.of_ranks) / torch.where(weight > 0, weight, 1)
        gradient, positive = torch.empty_like(logits), rows.own.labels == 1
        gradient[positive], gradient[~positive] = down * scale, up * scale
        ctx.save_for_backward(gradient)
        return of_loss * scale

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return upstream * gradient, None


def _sums(rows: TaskRows, others: TaskRows, *, sign: int) -> tuple[Tensor, Tensor]:
    """The weighted sum of -ln sigmoid(sign (z_i - z_j)) over rows i and others j, and its derivative by each z_i."""
    loss, slopes = rows.logits.new_zeros(()), torch.zeros_like(rows.logits)
    for start in range(0, len(rows.labels), size := max(PAIRS_AT_ONCE // max(len(others.labels), 1), 1)):
        part = slice(start, start + size)
        difference = sign * (rows.logits[part, None] - others.logits)
        weight = rows.weights[part, None] * others.weights * (rows.groups[part, None] == others.groups)
        loss = loss - (logsigmoid(difference) * weight).sum()
        slopes[part] = -sign * (torch.sigmoid(-difference) * weight).sum(dim=1)
    return loss, slopes


def _weight_of_pairs(ones: TaskRows, zeros: TaskRows) -> Tensor:
    """The sum of the products of weights over all pairs."""
    ids, of_rows = torch.cat([ones.groups, zeros.groups]).unique(return_inverse=True)
    parts = zip((ones, zeros), of_rows.split([len(ones.labels), len(zeros.labels)]), strict=True)
    sums = [
        ones.weights.new_zeros(len(ids), dtype=torch.float64).index_add(0, at, each.weights.double())
        for each, at in parts
    ]
    return (sums[0] * sums[1]).sum()
