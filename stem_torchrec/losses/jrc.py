"""The softmax over rows of JRC: which of the compared rows has the label?"""

import torch
from torch import Tensor

from stem_torchrec.losses.step_rows import StepRows


def jrc(rows: StepRows) -> Tensor:
    """Mean over the rows i of all ranks of -ln (exp f_y(x_i) / sum over rows j of its group of exp f_y(x_j)), y = y_i.

    f_1 = z / 2 and f_0 = -z / 2 for a logit z, so that the softmax of (f_0, f_1) is the prediction. In the mean and in
    the sums a row counts its weight. The mean over the ranks of what they return is the loss, and of their gradients
    its gradient. Each rank computes it of the rows of all.

    Source: Sheng et al., "Joint Optimization of Ranking and Calibration with Contextualized Hybrid Model", KDD 2023
    (arXiv 2208.06164), the listwise-like loss, beside the binary cross entropy. The paper's model has two outputs f_0
    and f_1, and both losses are least at once where exp f_y is the joint distribution of a row and its label. Here one
    logit is the difference of both, so this loss and the cross entropy can disagree: what the paper shows of two
    outputs is not shown of this. The sum over j has the rows of both labels, those with the label of i too.

    Example::

        # logits  1  0  2
        # labels  1  0  0
        # f_y of the rows, and the sums of exp f_y over all three rows
        # -(1/2 - ln(e^(1/2) + 1 + e^1) - 0 - ln(e^(-1/2) + 1 + e^-1) - 1 - ln(e^(-1/2) + 1 + e^-1)) / 3
    """
    everyone, logits = rows.everyone(), rows.logits()
    ids, group = everyone.groups.unique(return_inverse=True)
    total = everyone.weights.sum()
    loss = logits.sum() * 0
    for label in (0, 1):
        f = logits / 2 if label == 1 else -logits / 2
        of_label = everyone.weights * (everyone.labels == label)
        loss = loss + (of_label * (_log_sums(f + everyone.weights.log(), group, len(ids))[group] - f)).sum()
    loss = loss / torch.where(total > 0, total, 1)
    # Each rank has the gradient of its own rows alone, and data parallelism takes the mean over the ranks.
    return loss.detach() + len(rows.of_ranks) * (loss - loss.detach())


def _log_sums(values: Tensor, group: Tensor, groups: int) -> Tensor:
    """ln sum exp of the values (N,) of each group, (groups,); `group` (N,) numbers the groups from 0 on."""
    largest = values.new_full((groups,), -torch.inf).scatter_reduce(0, group, values.detach(), "amax")
    sums = values.new_zeros(groups).index_add(0, group, torch.exp(values - largest[group]))
    return largest + sums.log()
