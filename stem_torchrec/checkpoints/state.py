"""All that a step changes: weights, optimizer states, random states."""

from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import nn
from torchrec.optim.keyed import CombinedOptimizer

from stem_torchrec.balance.balance import balance_state
from stem_torchrec.checkpoints.rowwise import read, take_out
from stem_torchrec.checkpoints.storage import State, without_warnings
from stem_torchrec.checkpoints.weights import damage_on_any_rank, load_state, read_metadata
from stem_torchrec.runtime.process import trains_on_gpu
from stem_torchrec.tables import set_steps


def training_state(
    model: nn.Module, optimizer: CombinedOptimizer, meter: torch.Tensor, of_rank: Mapping[str, State] | None = None
) -> State:
    """This rank's tensors by name, not copied; call it after the optimizer's first step, which creates its states.

    Args:
        model: sharded.
        optimizer: of the model.
        meter: state of this rank's meter, shape (2T + 2,) for T tasks.
        of_rank: more tensors of this rank, which `rank_tensors` reads; by name of a part, and in it.

    Example::

        training_state(model, optimizer, meter)
        # {"model": {"...embedding_bags.like/uid.weight": ShardedTensor, ...},
        #  "optimizer": {"...embedding_bags.like/uid.weight": {"like/uid.momentum1": ShardedTensor}, ...},
        #  "rank": {"0": {"meter": Tensor, "cpu": Tensor}}}
    """
    return {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict()["state"],
        # The same on all ranks.
        **({"balance": balance} if (balance := balance_state(model)) else {}),
        # By rank, as each rank has its own.
        "rank": {str(dist.get_rank()): {"meter": meter, **_random_states(), **(of_rank or {})}},
    }


def restore_state(
    model: nn.Module, optimizer: CombinedOptimizer, path: str, *, step: int, tasks: int, same_ranks: bool
) -> torch.Tensor | None:
    """Reads a saved `training_state` into a model of any layout and plan; all ranks call it before the first step.

    Returns the state of this rank's meter, shape (2T + 2,), or None on another number of ranks, and of a
    checkpoint by an earlier version, which kept other sums.

    Args:
        model: sharded.
        optimizer: of the model.
        path: of the checkpoint.
        step: number of steps made before it was saved.
        tasks: number of tasks, T.
        same_ranks: whether it was saved on as many ranks; if not, random numbers start anew, as those of a GPU do
            after a checkpoint on CPU.

    Raises UserError if a tensor is missing or does not fit, and DamagedError if the checkpoint cannot be read.
    """
    with without_warnings():
        # Creates the states to read into, by a step; its effect on the weights ends when those are read.
        optimizer.init_state(set())
        optimizer.zero_grad()
        meter = torch.zeros(2 * tasks + 2, dtype=torch.float64)
        state, states = training_state(model, optimizer, meter), optimizer.state_dict()
        state["optimizer"] = states["state"]
        of_rank = state.pop("rank")[rank := str(dist.get_rank())]
        metadata = read_metadata(path)
        # A checkpoint by a run on CPU has no random state of a GPU, one by an earlier version has another meter.
        for name in {"cuda", "meter"} & of_rank.keys():
            if f"rank.{rank}.{name}" not in metadata.state_dict_metadata:
                del of_rank[name]
        if same_ranks:
            state["rank"] = {rank: of_rank}
        recut = take_out(state, metadata)
        load_state(state, path)
        with damage_on_any_rank(path):
            read(recut, state, path)
        model.load_state_dict(state["model"])
        # All states have been read in place.
        optimizer.load_state_dict(optimizer.state_dict())
    set_steps(model, optimizer, step)
    # Where random numbers are not restored, they start anew, on GPUs as well.
    torch.manual_seed(step * dist.get_world_size() + dist.get_rank())
    if not same_ranks:
        return None
    torch.set_rng_state(of_rank["cpu"])
    if "cuda" in of_rank:
        torch.cuda.set_rng_state(of_rank["cuda"])
    return of_rank.get("meter")


def _random_states() -> dict[str, torch.Tensor]:
    on_gpu = {"cuda": torch.cuda.get_rng_state()} if trains_on_gpu() else {}
    return {"cpu": torch.get_rng_state(), **on_gpu}
