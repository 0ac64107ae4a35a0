"""Which contestants of a contest fit onto a GPU together: each stays there for all its turns."""

from collections.abc import Sequence

from contest.problem import Contestant, Problem
from contest.turns import Failure

_GIB = 2**30
_CONTEXT = 0.75 * _GIB
"""Memory that a process takes on a GPU before it allocates anything: CUDA's context, NCCL and the kernels."""
_SHARE = 0.95
"""Share of the free memory that is given away; allocators leave gaps."""


def seats(contestants: Sequence[Contestant], problem: Problem, free: float) -> tuple[list[Contestant], list[Failure]]:
    """The contestants that fit together, and those that do not; the first ones come first.

    Tables, dense part and optimizer stay on the GPU between turns. What a step needs beside them is there for one
    contestant at a time.

    Args:
        contestants: in the order of their value.
        problem: what they train.
        free: bytes of the GPU's free memory.
    """
    seated: list[Contestant] = []
    left_out = []
    stays = active = 0.0
    for contestant in contestants:
        own = _stays(contestant, problem.of(contestant))
        step = max(active, _in_a_step(contestant, problem.of(contestant)))
        if stays + own + step <= _SHARE * free:
            seated.append(contestant)
            stays, active = stays + own, step
        else:
            needed = (stays + own + step) / _GIB
            reason = f"{needed:.0f} GiB with the others of its contest, but {free / _GIB:.0f} GiB are free on the GPU"
            left_out.append(Failure(contestant, reason, is_error=False))
    return seated, left_out


def _stays(contestant: Contestant, problem: Problem) -> float:
    size = 2 if contestant.precision == "bf16" else 4
    if contestant.side == "products":
        # Input, output and the gradient of the input of every layer.
        columns = sum(number * (2 * wide + out) for number, wide, out in problem.layers())
        return _CONTEXT + size * problem.batch_size * columns
    if contestant.side in ("gemm", "copy"):
        # Input and output of the experts, or three square matrices of 8192.
        experts = 2 * problem.model.num_shared_experts * problem.model.expert_hidden[-1]
        return _CONTEXT + size * max(problem.batch_size * experts, 3 * 8192**2)
    # Adam of plain PyTorch has two moments for each weight; an optimizer of ours at most so many.
    row_wise = contestant.side != "dense" and contestant.sparse == "rowwise_adagrad"
    return _CONTEXT + problem.weight_bytes() * (1 + 1 / problem.model.embedding_dim if row_wise else 3)


def _in_a_step(contestant: Contestant, problem: Problem) -> float:
    """Activations, their gradients and mixtures, four copies in all; for dense, the gradients of all tables and the
    temporary that Adam makes of them."""
    activations = 4 * problem.batch_size * _hidden(problem) * (2 if contestant.precision == "bf16" else 4)
    if contestant.side == "dense":
        return activations + 2 * problem.weight_bytes()
    return activations if contestant.side in ("ours", "stock") else 0.0


def _hidden(problem: Problem) -> int:
    """Units of all layers of the dense part."""
    return sum(number * out for number, _, out in problem.layers())
