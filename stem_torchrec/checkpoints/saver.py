"""Checkpoints written during training: the state is copied, then a thread writes the copy."""

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from functools import partial

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp

from stem_torchrec.checkpoints.folder import PROGRESS_FILE, Progress, checkpoint_path, prune, publish
from stem_torchrec.checkpoints.storage import State, failure_of, failure_on_any_rank, writer_to
from stem_torchrec.runtime.errors import UnwritableError, UserError
from stem_torchrec.runtime.file_systems import g_pathmgr
from stem_torchrec.runtime.hang_detection import set_activity
from stem_torchrec.runtime.internals.pytorch import (
    ShardedTensor,
    copy_state_dict,
    empty_like_sharded,
    empty_state_dict_on_host,
)
from stem_torchrec.runtime.paths import remove_folder
from stem_torchrec.runtime.process import trains_on_gpu
from stem_torchrec.runtime.progress import log_rank0


@dataclass
class Failures:
    """Counts writes that failed; too many in a row end the run."""

    limit: int
    """Writes in a row that may fail."""
    alternative: str
    """What the user can do other than making room, as `give another --output-dir`."""
    total: int = 0
    """Writes that failed."""
    in_a_row: int = 0
    """Writes that failed since the last one that did not."""

    def add(self, failure: str | None) -> None:
        """Counts a write that failed, in words, or one that did not, None; raises UnwritableError above the limit."""
        self.total += failure is not None
        self.in_a_row = 0 if failure is None else self.in_a_row + 1
        if self.in_a_row > self.limit:
            raise UnwritableError(
                f"{failure}, and so {self.in_a_row} times in a row; make room there or {self.alternative}, "
                "and start again."
            )


class CheckpointSaver:
    """Saves a run's state to a folder, one checkpoint at a time.

    A reader finds a complete checkpoint or none. If one cannot be written, the failure is counted and printed, and the
    earlier checkpoints stay. The copy in host memory takes as much memory as the state. All ranks make the same calls.

    Args:
        folder: of the checkpoints; any path of iopath.
        keep: number of checkpoints to keep, the newest.
        max_failures: checkpoints in a row that may fail.
        timeout: seconds that ranks wait for each other while they write.

    Example::

        saver = CheckpointSaver("runs/a/checkpoints", keep=2)
        saver.save(training_state(model, optimizer, meter), progress)  # step-000000100/ is written meanwhile
        saver.close()
    """

    def __init__(self, folder: str, *, keep: int = 2, max_failures: int = 3, timeout: float = 600.0) -> None:
        self.folder, self.keep = folder, keep
        self.failures = Failures(max_failures, "give another --checkpoint.folder")
        self._copy: State | None = None
        self._writing: Future[str | None] | None = None
        # A thread begins on GPU 0, where its first operation would take some hundred MiB for each rank.
        on_own_gpu = partial(torch.cuda.set_device, torch.cuda.current_device()) if trains_on_gpu() else None
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="checkpoint", initializer=on_own_gpu)
        # A group for the threads: training uses the default group at the same time.
        self._group = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout))

    def save(self, state: State, progress: Progress, *, wait: bool = False) -> float:
        """Copies the state and starts writing the copy; returns the seconds that training was paused.

        First waits for the last checkpoint, if it is still being written.

        Args:
            state: tensors, sharded and not, by name.
            progress: of the run at this step.
            wait: whether to wait until the checkpoint is written.

        Raises UnwritableError if too many checkpoints in a row could not be written.
        """
        begin = time.perf_counter()
        set_activity("waiting for the previous checkpoint to be written")
        self.wait()
        set_activity("copying its state for a checkpoint")
        if self._copy is None:
            self._copy = host_memory_for(state)
        copy_state_dict(state, self._copy)
        self._writing = self._executor.submit(self._write, self._copy, progress)
        if wait:
            set_activity("waiting for its last checkpoint to be written")
            self.wait()
        return time.perf_counter() - begin

    def wait(self) -> None:
        """Waits for the checkpoint that is being written; raises UnwritableError if too many in a row could not be."""
        if self._writing is not None:
            try:
                failure, self._writing = self._writing.result(), None
            except RuntimeError as error:
                raise UserError(
                    f"a checkpoint to {self.folder} could not be agreed on ({failure_of(error)}): a rank took longer "
                    "than --train.timeout to write its part, or is gone; start again, or allow more time."
                ) from error
            self.failures.add(failure)

    def close(self) -> None:
        """Waits for the checkpoint that is being written, then ends the thread and closes its connections."""
        self.wait()
        self._executor.shutdown()
        dist.destroy_process_group(self._group)

    def _write(self, state: State, progress: Progress) -> str | None:
        """Writes a checkpoint; returns the failure in words, the same on all ranks, or None."""
        begin, path = time.perf_counter(), checkpoint_path(self.folder, progress.step)
        reason = self._on_first_rank(lambda: _clear(path))
        if reason is None:
            try:
                dcp.save(state, storage_writer=writer_to(path), process_group=self._group)
            # Training continues after any error of a store.
            except (Exception, dcp.CheckpointException) as error:
                reason = failure_of(error)
            reason = failure_on_any_rank(reason, group=self._group)
        if reason is None:
            reason = self._on_first_rank(lambda: publish(path, progress))
        if reason is None:
            log_rank0(f"step {progress.step}  checkpoint written in {time.perf_counter() - begin:.1f} s: {path}")
            self._on_first_rank(lambda: prune(self.folder, keep=self.keep, newest=progress.step))
            return None
        failure = f"{path} cannot be written ({reason})"
        log_rank0(f"step {progress.step}  {failure}")
        self._on_first_rank(lambda: _clear(path))
        return failure

    def _on_first_rank(self, act: Callable[[], object]) -> str | None:
        reason = None
        if dist.get_rank() == 0:
            try:
                act()
            except Exception as error:
                reason = failure_of(error)
        return failure_on_any_rank(reason, group=self._group)


def host_memory_for(state: State) -> State:
    """Tensors on the CPU of the shapes and the sharding of those in `state`, pinned if ranks train on GPUs.

    torch rounds each pinned tensor up to a power of two bytes, so they may take up to twice the size of the state.

    Example::

        host_memory_for({"model": {"weight": sharded_on_gpu}})  # {"model": {"weight": sharded_on_cpu}}
    """
    memory: State = {}
    for name, value in state.items():
        if isinstance(value, dict):
            memory[name] = host_memory_for(value)
        elif isinstance(value, ShardedTensor) and all(
            shard.tensor.device.type == "cpu" for shard in value.local_shards()
        ):
            # torch's function below takes memory for a shard's whole storage, which holds all tables of a rank.
            memory[name] = empty_like_sharded(value)
        else:
            memory |= empty_state_dict_on_host({name: value}, pin_memory=trains_on_gpu())
    return memory


def _clear(path: str) -> None:
    if g_pathmgr.exists(path):
        remove_folder(path, first=PROGRESS_FILE)
