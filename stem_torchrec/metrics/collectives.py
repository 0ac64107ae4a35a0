"""Exchanges between ranks: each row of a rank goes to one rank, or a few numbers go to all.

Without a process group this process is rank 0 of 1, and nothing is sent.
"""

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    """Returns the number of ranks, 1 without a process group."""
    return dist.get_world_size() if dist.is_initialized() else 1


def gather(values: Tensor) -> Tensor:
    """Returns the `values` of all W ranks, each of shape (*), as one tensor (W, *) on every rank.

    Example::

        gather(torch.tensor([rank, 10 * rank]))  # [[0, 0], [1, 10]] on both of two ranks
    """
    if not dist.is_initialized():
        return values[None]
    gathered = [torch.empty_like(values) for _ in range(world_size())]
    dist.all_gather(gathered, values)
    return torch.stack(gathered)


def mean_over_ranks(values: Tensor) -> Tensor:
    """Returns the mean over the ranks, the same bits on each; overwrites `values`. All ranks call it."""
    if world_size() > 1:
        dist.all_reduce(values)
    return values / world_size()


def send_rows(destination: Tensor, *columns: Tensor) -> list[Tensor]:
    """Sends row i of every column to rank `destination[i]`; returns the columns of the rows received.

    Received rows are in the order of the sending ranks and, within one, in the sender's order. In addition to the
    columns this takes 16 bytes a row for the order, and memory for a second copy of one column at a time.

    Args:
        destination: integers from 0 to W - 1 for W ranks, shape (N,); N may be 0 and differ between ranks.
        *columns: shape (N,), on a device that the process group's backend serves.

    Example::

        # rank 0                 rank 1
        # destination [0, 1]     [0, 0]
        # column      [a, b]     [c, d]
        # returns     [a, c, d]  [b]
    """
    ranks = world_size()
    if ranks == 1:
        return list(columns)
    order = destination.argsort(stable=True)
    sent = torch.bincount(destination, minlength=ranks)
    received = torch.empty_like(sent)
    dist.all_to_all_single(received, sent)
    # .tolist() waits for the device; the backends need the sizes on the host.
    received_rows, sent_rows = received.tolist(), sent.tolist()
    outputs = []
    for column in columns:
        output = column.new_empty(sum(received_rows))
        dist.all_to_all_single(output, column[order], received_rows, sent_rows)
        outputs.append(output)
    return outputs
