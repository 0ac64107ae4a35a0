"""From the number z that a model has for a row and task to a prediction, for labels that are numbers or levels."""

import torch
from torch import Tensor, nn

from stem_torchrec.data.columns import Columns


class NumberLink(nn.Module):
    """A number: y = offset + scale z, (B,) of (B,).

    Offset and scale are the mean and the standard deviation of the training labels, and no step changes them. They are
    among the weights, so that whoever loads these predicts on the same scale.
    """

    offset: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("offset", torch.tensor(0.0))
        self.register_buffer("scale", torch.tensor(1.0))

    def start(self, statistics: tuple[float, ...]) -> None:
        """Takes the mean and the standard deviation of the training labels."""
        offset, scale = statistics
        self.offset.fill_(offset)
        self.scale.fill_(scale)

    def forward(self, z: Tensor) -> Tensor:
        return self.offset + self.scale * z

    def outputs(self, z: Tensor) -> Tensor:
        """What a loss compares with `targets`: z itself, (B,)."""
        return z

    def targets(self, labels: Tensor) -> Tensor:
        """The standardized labels (B,)."""
        return (labels - self.offset) / self.scale


class OrdinalLink(nn.Module):
    """The expected level of K ordered levels, the sum over k of P(y > k) = sigmoid(z + b_k): (B,) of (B,).

    The thresholds b_k are weights of the task, which its loss alone trains. One z for all k: a row that is likelier to
    exceed one level is likelier to exceed each.

    Source: McCullagh, "Regression Models for Ordinal Data", JRSS B 1980; as Cao et al., "Rank consistent ordinal
    regression for neural networks", Pattern Recognition Letters 2020 (CORAL), train it. They predict the number of k
    with a probability above 1/2, a level; the expected level is a number, by which rows can be ordered.

    Args:
        levels: K, 2 or more.

    Example::

        link = OrdinalLink(3)
        link.start((1.0, -1.0))
        link(torch.tensor([0.0]))  # [sigmoid(1) + sigmoid(-1)] = [1.0]
    """

    below: Tensor

    def __init__(self, levels: int) -> None:
        super().__init__()
        self.thresholds = nn.Parameter(torch.zeros(levels - 1))
        self.register_buffer("below", torch.arange(levels - 1), persistent=False)

    def start(self, statistics: tuple[float, ...]) -> None:
        """Takes the log odds of the training labels being above each level, which predict z = 0 rightly."""
        with torch.no_grad():
            self.thresholds.copy_(torch.tensor(statistics))

    def forward(self, z: Tensor) -> Tensor:
        return self.outputs(z).sigmoid().sum(dim=1)

    def outputs(self, z: Tensor) -> Tensor:
        """The logits of y > k, (B, K - 1)."""
        return z[:, None] + self.thresholds

    def targets(self, labels: Tensor) -> Tensor:
        """1 where y > k, else 0, (B, K - 1)."""
        return (labels[:, None] > self.below).to(labels.dtype)


Link = NumberLink | OrdinalLink


def typed_links(links: nn.ModuleDict) -> dict[str, Link]:
    """The links that a model has, by task."""
    typed = {}
    for task, link in links.items():
        assert isinstance(link, Link)
        typed[task] = link
    return typed


def links_of(columns: Columns) -> dict[str, Link]:
    """A link for each task that is not binary."""
    return {
        task: NumberLink() if kind == "number" else OrdinalLink(columns.levels[task])
        for task, kind in columns.not_binary.items()
    }
