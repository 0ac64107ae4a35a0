"""Losses of single rows, and their means by task."""

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, huber_loss, logsigmoid


def bce(logits: Tensor, labels: Tensor) -> Tensor:
    """The binary cross entropy -(y ln p + (1 - y) ln(1 - p)) with p = sigmoid(logit), of the labels' shape."""
    return binary_cross_entropy_with_logits(logits, labels, reduction="none")


def focal(logits: Tensor, labels: Tensor, gamma: float) -> Tensor:
    """-(1 - q)^gamma ln q, where q is the probability of the label: p for 1, and 1 - p for 0.

    Its least is not at the probability of a label, but nearer to 1/2: calibrate the predictions.

    Source: Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017, eq. 4. With its alpha the loss is that with
    the positive weight alpha / (1 - alpha), but for a factor, of logits that are larger by the weight's logarithm.
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


def mse(outputs: Tensor, targets: Tensor) -> Tensor:
    """Half the squared error, (z - y)^2 / 2, of the targets' shape."""
    return (outputs - targets).square() / 2


def huber(outputs: Tensor, targets: Tensor, delta: float) -> Tensor:
    """(z - y)^2 / 2 up to an error of delta, and delta (|z - y| - delta / 2) beyond, of the targets' shape.

    Source: Huber, "Robust Estimation of a Location Parameter", Annals of Mathematical Statistics 35, 1964.
    """
    return huber_loss(outputs, targets, reduction="none", delta=delta)


def coral(outputs: Tensor, targets: Tensor) -> Tensor:
    """The sum over k of the binary cross entropy of y > k, (B,), of logits and 0 or 1 (B, K - 1) for K levels.

    Source: Cao et al., "Rank consistent ordinal regression for neural networks with application to age estimation",
    Pattern Recognition Letters 2020 (arXiv 1901.07884), with the same importance of all k.
    """
    return bce(outputs, targets).sum(dim=1)


def mean_by_task(losses: Tensor, labels: Tensor, per_rank: Tensor | None, weights: Tensor | None) -> Tensor:
    """The means (T,) of the losses (B, T) of the rows with a label, by the weights of labels; 0 without a label.

    Args:
        losses: of this rank's rows; any finite number where the label is missing.
        labels: (B, T), NaN where missing.
        per_rank: what to divide the sums by, (T,): the labels of all ranks over the number of ranks; by default the
            labels given, each times its weight.
        weights: of the labels, (B, T); 1 for each by default.
    """
    known = ~labels.isnan()
    shares = known if weights is None else known * weights
    divisors = shares.sum(dim=0) if per_rank is None else per_rank
    # Without a label the sum is 0, whatever it is divided by.
    return (losses * shares).sum(dim=0) / torch.where(divisors > 0, divisors, 1)
