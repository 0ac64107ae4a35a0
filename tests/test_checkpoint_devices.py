"""A checkpoint goes from CPU to GPU and back; GPUs are made up here, test_gpu_runs.py has a real one."""

import threading
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import pytest
import torch
from torch import Tensor

from stem_torchrec.checkpoints import saver as saver_module
from stem_torchrec.checkpoints import state as state_module
from stem_torchrec.checkpoints.folder import checkpoint_path
from stem_torchrec.checkpoints.saver import CheckpointSaver
from stem_torchrec.checkpoints.state import restore_state, training_state

from distributed import run_ranks
from runs import Run, batches_of_ranks, config_of, of_this_rank, progress_after

STATE_OF_GPU = torch.arange(16, dtype=torch.uint8)
"""Of its random numbers."""
STEPS = 3


def make_up_a_gpu(patch: pytest.MonkeyPatch, given: list[Tensor]) -> None:
    """Lets checkpoints save the random state of a GPU; `given` gets those that they restore."""
    patch.setattr(state_module, "trains_on_gpu", lambda: True)
    patch.setattr(torch.cuda, "get_rng_state", STATE_OF_GPU.clone)
    patch.setattr(torch.cuda, "set_rng_state", given.append)


@dataclass
class Restored:
    """What was restored from a checkpoint into a model of other weights."""

    of_gpu: list[list[int]]
    """The random states that a GPU got."""
    of_cpu: bool
    """Whether the CPU got its own."""
    weights: bool
    """Whether all weights have the bits of those that were saved."""
    meter: list[float] | None


DEVICES = list(product([False, True], [False, True]))
"""Whether a checkpoint is saved on a GPU, and whether it is read on one."""


def save_and_restore(folder: Path) -> dict[tuple[bool, bool], Restored]:
    """What was restored, by what DEVICES tells."""
    run = Run.build(config_of("adagrad", "row_wise"))
    run.train(of_this_rank(batches_of_ranks(STEPS, 1)))
    saved = {}
    for on_gpu in (False, True):
        saver = CheckpointSaver(str(folder / str(on_gpu)))
        with pytest.MonkeyPatch.context() as patch:
            if on_gpu:
                make_up_a_gpu(patch, [])
            state = training_state(run.model, run.optimizer, torch.arange(6, dtype=torch.float64))
        saver.save(state, progress_after(STEPS), wait=True)
        saver.close()
        saved[on_gpu] = checkpoint_path(saver.folder, STEPS), torch.get_rng_state()
        torch.rand(5)
    restored = {}
    for on_gpu, reads_on_gpu in DEVICES:
        other, given = Run.build(config_of("adagrad", "row_wise")), []
        path, random_state = saved[on_gpu]
        with pytest.MonkeyPatch.context() as patch:
            if reads_on_gpu:
                make_up_a_gpu(patch, given)
            meter = restore_state(other.model, other.optimizer, path, step=STEPS, tasks=2, same_ranks=True)
        weights = other.weights()
        restored[on_gpu, reads_on_gpu] = Restored(
            [each.tolist() for each in given],
            torch.equal(torch.get_rng_state(), random_state),
            all(torch.equal(weight, weights[name]) for name, weight in run.weights().items()),
            None if meter is None else meter.tolist(),
        )
    return restored


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[bool, bool], Restored]:
    [restored] = run_ranks(1, save_and_restore, tmp_path_factory.mktemp("checkpoints"))
    return restored


@pytest.mark.parametrize(("saved_on_gpu", "read_on_gpu"), DEVICES)
def test_a_checkpoint_of_either_device_is_read_on_either(
    saved_on_gpu: bool, read_on_gpu: bool, results: dict[tuple[bool, bool], Restored]
) -> None:
    restored = results[saved_on_gpu, read_on_gpu]
    assert restored.of_gpu == ([STATE_OF_GPU.tolist()] if saved_on_gpu and read_on_gpu else [])
    assert restored.of_cpu
    assert restored.weights
    assert restored.meter == list(range(6))


def threads_on_gpu(folder: str) -> list[tuple[int, bool]]:
    """The GPUs that were chosen while a checkpoint was written, and whether by the main thread."""
    chosen: list[tuple[int, bool]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(saver_module, "trains_on_gpu", lambda: True)
        patch.setattr(torch.cuda, "current_device", lambda: 3)
        patch.setattr(
            torch.cuda,
            "set_device",
            lambda device: chosen.append((device, threading.current_thread() is threading.main_thread())),
        )
        saver = CheckpointSaver(folder)
    # Without a GPU memory cannot be pinned, so this is as on CPU.
    saver.save({"weight": torch.zeros(3)}, progress_after(STEPS), wait=True)
    saver.close()
    return chosen


def test_the_thread_that_writes_checkpoints_is_on_the_gpu_of_its_rank(tmp_path: Path) -> None:
    assert run_ranks(1, threads_on_gpu, str(tmp_path)) == [[(3, False)]]
