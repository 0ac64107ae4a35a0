"""Losses of single rows, and their means by task."""

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid


def bce(logits: Tensor, labels: Tensor) -> Tensor:
    """The binary cross entropy -(y ln p + (1 - y) ln(1 - p)) with p = sigmoid(logit), of the labels' shape."""
    return binary_cross_entropy_with_logits(logits, labels, reduction="none")


def focal(logits: Tensor, labels: Tensor, gamma: float) -> Tensor:
    """-(1 - q)^gamma ln q, where q is the probability of the label: p for 1, and 1 - p for 0.

    Its least is not at the probability of a label, but nearer to 1/2: calibrate the predictions.

    Source: Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017, eq. 4; its alpha is a positive weight.
    """
    x = torch.where(labels == 1, logits, -logits)
    # By its logarithm: the derivative of a power below 1 is infinite at 0.
    return -torch.exp(gamma * logsigmoid(-x)) * logsigmoid(x)


def smoothed(logits: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    """The binary cross entropy of the labels y (1 - s) + s / 2.

    Its least is at p (1 - s) + s / 2 for a probability p: calibrate the predictions.

    Source: Szegedy et al., "Rethinking the Inception Architecture for Computer Vision", CVPR 2016, section 7.
    """
    return bce(logits, labels * (1 - smoothing) + smoothing / 2)


def mean_by_task(losses: Tensor, labels: Tensor, per_rank: Tensor | None, weights: Tensor | None) -> Tensor:
    """The means (T,) of the losses (B, T) of the rows with a label, by the weights of labels; 0 without a label.

    Args:
        losses: of this rank's rows; any finite number where the label is missing.
        labels: 0, 1 or NaN, (B, T).
        per_rank: what to divide the sums by, (T,): the labels of all ranks over the number of ranks; by default the
            labels given, each times its weight.
        weights: of the labels, (B, T); 1 for each by default.
    """
    known = ~labels.isnan()
    shares = known if weights is None else known * weights
    divisors = shares.sum(dim=0) if per_rank is None else per_rank
    # Without a label the sum is 0, whatever it is divided by.
    return (losses * shares).sum(dim=0) / torch.where(divisors > 0, divisors, 1)
