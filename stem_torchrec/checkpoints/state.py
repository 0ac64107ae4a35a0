"""All that a step changes: weights, states of the optimizers, random numbers."""

import torch
import torch.distributed as dist
from torch import nn
from torchrec.optim.keyed import CombinedOptimizer

from stem_torchrec.checkpoints.rowwise import read, take_out
from stem_torchrec.checkpoints.storage import State, without_warnings
from stem_torchrec.checkpoints.weights import damage_on_any_rank, load_state, read_metadata


def training_state(model: nn.Module, optimizer: CombinedOptimizer, losses: torch.Tensor) -> State:
    """The tensors of this rank by name, not copied. The optimizer has made a step.

    Args:
        model: sharded.
        optimizer: its optimizer.
        losses: what this rank's meter says, see `Place`.
    """
    return {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict()["state"],
        # Each rank has its own.
        "rank": {str(dist.get_rank()): {"losses": losses, **_random_states()}},
    }


def restore_state(
    model: nn.Module, optimizer: CombinedOptimizer, path: str, *, step: int, tasks: int, same_ranks: bool
) -> torch.Tensor | None:
    """Reads what was saved of `training_state`, in any layout and plan; all ranks call it before the first step.

    Returns the losses, or None on another number of ranks than before.

    Args:
        model: sharded.
        optimizer: its optimizer.
        path: of the checkpoint.
        step: steps that had been made.
        tasks: how many.
        same_ranks: whether there are as many ranks as then; else random numbers start anew.

    Raises UserError where something is missing, cannot be read or does not fit.
    """
    with without_warnings():
        # Makes the states to read into, by a step whose effect the weights that are read undo.
        optimizer.init_state(set())
        optimizer.zero_grad()
        losses = torch.zeros(tasks + 3, dtype=torch.float64)
        state, states = training_state(model, optimizer, losses), optimizer.state_dict()
        state["optimizer"] = states["state"]
        if not same_ranks:
            del state["rank"]
        otherwise = take_out(state, read_metadata(path))
        load_state(state, path)
        with damage_on_any_rank(path):
            read(otherwise, state, path)
        model.load_state_dict(state["model"])
        # All states have been read in place.
        optimizer.load_state_dict(optimizer.state_dict())
    # FBGEMM corrects the bias of moments by a count of its own.
    optimizer.set_optimizer_step(step)
    if not same_ranks:
        torch.manual_seed(step * dist.get_world_size() + dist.get_rank())
        return None
    _set_random_states(state["rank"][str(dist.get_rank())])
    return losses


def _random_states() -> dict[str, torch.Tensor]:
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def _set_random_states(states: dict[str, torch.Tensor]) -> None:
    torch.set_rng_state(states["cpu"])
    if "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"])
