"""Weights on disk, by torch.distributed.checkpoint: written by all ranks, read back on any number of them."""

import shutil
import warnings
from pathlib import Path

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from stem_torchrec.errors import UserError


def save_weights(model: nn.Module, folder: Path) -> None:
    """Writes the weights of a sharded model to `folder`; a reader finds the old ones or the new ones, whole.

    All ranks call it.
    """
    new, old = folder.with_name(folder.name + ".new"), folder.with_name(folder.name + ".old")
    if dist.get_rank() == 0:
        shutil.rmtree(new, ignore_errors=True)
    dist.barrier()
    with warnings.catch_warnings():
        # DCP still calls what torch deprecates.
        warnings.simplefilter("ignore", FutureWarning)
        dcp.save({"model": model.state_dict()}, checkpoint_id=new)
    if dist.get_rank() == 0:
        shutil.rmtree(old, ignore_errors=True)
        if folder.exists():
            folder.rename(old)
        new.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    dist.barrier()


def find_weights(folder: Path) -> Path:
    """The folder that holds whole weights: `folder`, or the ones it replaces if saving was cut off between the two.

    Raises UserError where there are none.
    """
    for candidate in (folder, folder.with_name(folder.name + ".old")):
        if (candidate / ".metadata").exists():
            return candidate
    raise UserError(f"{folder} holds no weights; a training run writes them at its first evaluation.")


def load_weights(model: nn.Module, folder: Path) -> None:
    """Reads into a sharded model what `save_weights` wrote, whatever the ranks and the plan were then.

    All ranks call it. Raises UserError where there are no weights, or those of another model.
    """
    folder = find_weights(folder)
    state = {"model": model.state_dict()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        here = {name: tuple(weight.size()) for name, weight in state["model"].items()}
    saved = _saved_sizes(folder)
    for name in sorted(saved.keys() | here.keys()):
        if saved.get(name) != here.get(name):
            raise UserError(
                f"the weights in {folder} are another model's: {name} is {saved.get(name, 'missing')} there and "
                f"{here.get(name, 'missing')} in this model."
            )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        try:
            dcp.load(state, checkpoint_id=folder)
        except dcp.api.CheckpointException as error:
            reason, _ = next(iter(error.failures.values()))
            raise UserError(f"the weights in {folder} cannot be read: {' '.join(str(reason).split())}") from error
    model.load_state_dict(state["model"])


def _saved_sizes(folder: Path) -> dict[str, tuple[int, ...]]:
    saved = dcp.FileSystemReader(folder).read_metadata().state_dict_metadata
    return {
        name.removeprefix("model."): tuple(weight.size)
        for name, weight in saved.items()
        if isinstance(weight, TensorStorageMetadata)
    }
