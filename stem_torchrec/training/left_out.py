"""A model among several that cannot be trained: it is left out for a reason, and the others go on."""

import gc
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch

from stem_torchrec.runtime.errors import AllocationError, DivergedError, NoMemoryError
from stem_torchrec.runtime.memory import naming_lack_of_memory
from stem_torchrec.runtime.process import Process, from_first_rank
from stem_torchrec.runtime.progress import log_rank0

T = TypeVar("T")


@dataclass(frozen=True)
class LeftOut:
    """Why a model is left out."""

    left_out: str
    """Which one, and why: a loss is not finite, or the memory does not suffice."""
    lacks_memory: bool = False


def trained_or_left_out(
    train: Callable[[], T], process: Process, *, name: str, leave_out: Callable[[LeftOut], object]
) -> T | None:
    """Trains a model and returns what `train` does; None, the same on all ranks, if it is left out. All ranks call it.

    A loss that is not finite, and sizes that no memory holds, are known to all ranks. An allocation that fails on one
    of several ranks is not: the others wait for that rank in the middle of a step. So it writes the reason and raises
    AllocationError, which ends all ranks; the same command then leaves the model out and goes on with the others.

    Args:
        train: trains the model; the memory that it took is free afterwards.
        process: this rank.
        name: of the model, for the reason.
        leave_out: writes the reason to a file, by which the next call of the command knows it; one rank calls it.
    """
    try:
        with naming_lack_of_memory():
            return train()
    except (DivergedError, NoMemoryError) as error:
        left_out = LeftOut(f"{name}: {error}", isinstance(error, NoMemoryError))
        if isinstance(error, AllocationError) and process.world_size > 1:
            leave_out(left_out)
            raise
    finally:
        # Sharded modules live in reference cycles; without this the next model is built while this one is in memory.
        gc.collect()
        # torch keeps what a model on a GPU has freed, after one without enough memory all of it; NCCL needs some.
        torch.cuda.empty_cache()
    log_rank0(f"left out: {left_out.left_out}")
    from_first_rank(lambda: leave_out(left_out))
    return None
