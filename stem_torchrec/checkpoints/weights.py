"""Weights on disk, by torch.distributed.checkpoint: all ranks write them, any number of ranks reads them."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint import LoadPlanner
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

from stem_torchrec.checkpoints.dropout_names import names_with_dropout
from stem_torchrec.checkpoints.load_planner import LayoutLoadPlanner, split_sizes
from stem_torchrec.checkpoints.storage import (
    State,
    check_parts,
    error_of,
    error_of_writing,
    failure_of,
    failure_on_any_rank,
    reader_from,
    without_warnings,
    writer_to,
)
from stem_torchrec.runtime.errors import DamagedError, UnwritableError, UserError, reason_of
from stem_torchrec.runtime.paths import remove_tree, write_text
from stem_torchrec.runtime.process import from_first_rank
from stem_torchrec.runtime.store_path import AnyPath, StorePath

BEST_WEIGHTS = "best"
"""The weights of the best evaluation, in the folder of a run."""


def save_weights(model: nn.Module, folder: AnyPath) -> None:
    """Writes the weights of a sharded model to `folder`; a reader finds the old or the new ones, complete.

    All ranks call it. Raises UnwritableError if the weights cannot be written, MemoryError if some rank has no memory
    for it; the old ones stay.

    Example::

        save_weights(model, Path("runs/a/best"))
        # runs/a/best/.metadata, __0_0.distcp, __1_0.distcp
    """
    try:
        new = from_first_rank(lambda: _unfinished(folder))
        from_first_rank(lambda: remove_tree(new))
        try:
            with without_warnings():
                dcp.save({"model": model.state_dict()}, storage_writer=writer_to(str(new)))
            from_first_rank(lambda: _replace(folder, new))
        except (OSError, dcp.CheckpointException):
            from_first_rank(lambda: remove_tree(new))
            raise
    except dcp.CheckpointException as error:
        raise error_of_writing(str(folder), error) from error
    except OSError as error:
        raise UnwritableError(f"{folder} cannot be written ({failure_of(error)})") from error


def save_tensors(tensors: Mapping[str, Tensor], folder: Path, files: Mapping[str, str]) -> None:
    """Writes the weights of a model that one process has, as `save_weights` does, and text files beside them.

    Raises OSError if they cannot be written; the old ones stay.

    Example::

        save_tensors({"model.towers.like.0.bias": torch.zeros(1)}, Path("copy/best"), {"delta.json": "{...}"})
    """
    new = _unfinished(folder)
    remove_tree(new)
    try:
        with without_warnings():
            dcp.save(dict(tensors), storage_writer=writer_to(str(new)), no_dist=True)
        for name, text in files.items():
            write_text(new / name, text)
        _replace(folder, new)
    except dcp.CheckpointException as error:
        remove_tree(new)
        raise OSError(failure_of(error)) from error
    except BaseException:
        remove_tree(new)
        raise


def _unfinished(folder: AnyPath) -> AnyPath:
    """Where new weights are written. A store cannot rename them, so there each get a folder of their own number."""
    if isinstance(folder, Path):
        return folder.with_name(folder.name + ".new")
    newest = max((int(version.name) for version in _versions(folder)), default=0)
    return folder / f"{newest + 1:06d}"


def _replace(folder: AnyPath, new: AnyPath) -> None:
    """Puts the new weights in the place of the old ones; in a store those with the largest number count."""
    if isinstance(folder, Path):
        assert isinstance(new, Path)
        old = folder.with_name(folder.name + ".old")
        remove_tree(old)
        if folder.exists():
            folder.rename(old)
        new.rename(folder)
        remove_tree(old)
        return
    # Where that fails, the next call removes them.
    with suppress(OSError):
        for version in _versions(folder):
            if version != new:
                remove_tree(version)


def _versions(folder: StorePath) -> list[StorePath]:
    """The numbered weights in a folder of a store, the newest first."""
    versions = [path for path in folder.iterdir() if path.name.isdigit()] if folder.is_dir() else []
    return sorted(versions, key=lambda version: int(version.name), reverse=True)


def find_weights(folder: AnyPath) -> AnyPath:
    """The folder of complete weights: `folder`, or its predecessor if saving was interrupted before the exchange.

    In a store, the newest in `folder`.

    Raises UserError if neither exists.
    """
    versions = _versions(folder) if isinstance(folder, StorePath) else [folder.with_name(folder.name + ".old")]
    for candidate in (folder, *versions):
        if (candidate / ".metadata").exists():
            return candidate
    raise UserError(f"{folder} holds no weights; a training run writes them at its first evaluation.")


def load_weights(model: nn.Module, folder: AnyPath) -> None:
    """Reads weights that `save_weights` wrote into a sharded model, of any number of ranks, plan and layout.

    All ranks call it. Raises UserError if the folder has no weights, or those of another model.
    """
    folder = find_weights(folder)
    state = {"model": model.state_dict()}
    check_weights(state["model"], folder)
    load_state(state, folder)
    model.load_state_dict(state["model"])


def check_weights(weights: Mapping[str, Tensor], folder: AnyPath) -> None:
    """Raises UserError unless `folder` holds weights of these names and sizes, in any layout.

    Args:
        weights: of a model, which may be on the meta device.
        folder: as `find_weights` returns it.
    """
    with without_warnings():
        sizes = split_sizes({name: weight.size() for name, weight in weights.items()})
    written = {name: weight.size for name, weight in saved_tensors(folder).items() if name.startswith("model.")}
    saved = split_sizes({name.removeprefix("model."): size for name, size in written.items()})
    renamed = names_with_dropout(saved, sizes)
    saved = {name: saved[old] for name, old in renamed.items()} | {
        name: size for name, size in saved.items() if name not in renamed.values()
    }
    for name in sorted(saved.keys() | sizes.keys()):
        if saved.get(name) != sizes.get(name):
            raise UserError(
                f"the weights in {folder} are another model's: {name} is {saved.get(name, 'missing')} there and "
                f"{sizes.get(name, 'missing')} in this model."
            )


def load_state(state: State, folder: AnyPath | str, planner: LoadPlanner | None = None) -> None:
    """Fills the tensors in `state` from a folder of torch.distributed.checkpoint, saved in any layout and plan.

    All ranks call it. `LayoutLoadPlanner` tells how much memory it takes.

    Args:
        state: weights and optimizer states. States that the first step creates must exist (`optimizer.init_state`).
        folder: of the checkpoint or weights.
        planner: what to read, and where to; a `LayoutLoadPlanner` if None.

    Raises UserError if a tensor is missing or does not fit, DamagedError if the folder cannot be read, and MemoryError
    if some rank has no memory for it.

    Example::

        load_state({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, "runs/a/best")
    """
    try:
        with without_warnings():
            dcp.load(state, storage_reader=reader_from(str(folder)), planner=planner or LayoutLoadPlanner())
    except dcp.CheckpointException as error:
        raise error_of(str(folder), error) from error


def saved_tensors(folder: AnyPath) -> dict[str, TensorStorageMetadata]:
    """Sizes and types of the tensors in a folder of torch.distributed.checkpoint, by name.

    Each process reads .metadata for itself. Raises DamagedError if it cannot be read.
    """
    saved = _unpickle_metadata(str(folder)).state_dict_metadata
    return {name: item for name, item in saved.items() if isinstance(item, TensorStorageMetadata)}


def read_metadata(folder: str) -> Metadata:
    """Checks a checkpoint and returns its metadata; all ranks call it. Raises DamagedError if any file was changed."""
    metadata = from_first_rank(lambda: _unpickle_metadata(folder))
    with damage_on_any_rank(folder):
        check_parts(folder, metadata, part=dist.get_rank(), parts=dist.get_world_size())
    return metadata


@contextmanager
def damage_on_any_rank(folder: str) -> Iterator[None]:
    """Raises DamagedError on all ranks if the block fails on any; ranks must not wait for each other in it."""
    failure = None
    try:
        yield
    except (Exception, dcp.CheckpointException) as error:
        failure = failure_of(error)
    failure = failure_on_any_rank(failure)
    if failure is not None:
        raise DamagedError(f"{folder} cannot be read: {failure}")


def _unpickle_metadata(folder: str) -> Metadata:
    try:
        return reader_from(folder).read_metadata()
    # Damaged bytes make pickle raise almost any error.
    except Exception as error:
        raise DamagedError(f"{folder} cannot be read: {reason_of(error)}") from error
