"""When a run pauses for a checkpoint, and how it ends on a signal or on a loss that is not finite."""

import time
from collections.abc import Callable
from threading import Event

import pyarrow as pa
import torch
import torch.distributed as dist
from torch import Tensor
from torchrec.datasets.utils import Batch

from stem_torchrec.checkpoints.agreement import Agreement
from stem_torchrec.runtime.errors import DivergedError, Interrupted, reason_of

_SAVE, _END, _NONFINITE, _DELTA = "save", "end", "nonfinite", "delta"


class RunWatch:
    """Exchanges at each step what any rank asks for: a checkpoint or a delta that is due, or the end of the run.

    A run ends on a signal or a loss that is not finite.

    Args:
        save: writes a checkpoint; called between two steps as `save(state, wait=...)` with what `on_pause` gets and
            whether to wait until the checkpoint is written.
        seconds: seconds between two checkpoints.
        ending: set when the run is to end.
        keep_batch: writes a batch whose loss is not finite to a file, given the step and the batch, and returns the
            path. Without it such losses do not end the run.
        lost: whether another process has taken the run's folder over; then `save`, which raises an error, is called.
        delta_is_due: whether this rank asks for a delta; it does so until the run has paused for one.
        timeout: seconds that ranks wait for each other.
    """

    def __init__(
        self,
        save: Callable[..., None],
        *,
        seconds: float | None,
        ending: Event,
        keep_batch: Callable[[int, Batch], object] | None,
        lost: Callable[[], bool],
        timeout: float,
        delta_is_due: Callable[[], bool] = lambda: False,
    ) -> None:
        self._save, self._seconds, self._ending, self._keep_batch = save, seconds, ending, keep_batch
        self._lost, self._delta_is_due = lost, delta_is_due
        self._agreement = Agreement([_SAVE, _END, _NONFINITE, _DELTA], timeout=timeout)
        self._requests: set[str] = set()
        self.delta_is_requested = False
        """Whether some rank has asked for a delta in the last step, the same on all ranks."""
        self._last_save = time.monotonic()
        self._unchecked: tuple[int, Batch, Tensor] | None = None
        """The last step with its batch and whether its losses are finite, not yet read."""
        self._nonfinite: tuple[int, Batch] | None = None
        """The first step on this rank whose losses are not finite, with its batch."""

    def should_pause(self, step: int, batch: Batch, losses: Tensor) -> bool:
        """Whether to pause; called after each step with its losses (T,), the same on all ranks."""
        # Reads the loss of the step before: on a GPU the host would have to wait for the one of this step.
        self._check_last_losses()
        self._unchecked = step, batch, torch.isfinite(losses).all()
        requests = self._agreement.exchange(self._requests_of_rank())
        self.delta_is_requested = _DELTA in requests
        self._requests |= requests - {_DELTA}
        return self.delta_is_requested or self.pause_is_requested

    @property
    def pause_is_requested(self) -> bool:
        """Whether some rank has asked for a checkpoint or the end since the last pause, the same on all ranks."""
        return bool(self._requests)

    def should_end(self) -> bool:
        """Whether to end the run; called after each batch of an evaluation, the same on all ranks."""
        self._requests |= self._agreement.exchange(self._requests_of_rank()) - {_DELTA}
        return _END in self._requests

    def check_finite(self) -> None:
        """Raises DivergedError on all ranks if a loss was not finite on any; all ranks call it."""
        self._check_last_losses()
        # Also empties the exchange, so that no request from before a pause is read after it. The one for a delta is
        # made again if it is not shipped in this pause.
        self._requests |= self._agreement.exchange_now(self._requests_of_rank()) - {_DELTA}
        if _NONFINITE not in self._requests or self._keep_batch is None:
            return
        failure = None
        if self._nonfinite is not None:
            step, batch = self._nonfinite
            try:
                where = f"is in {self._keep_batch(step, batch)}"
            except (OSError, pa.ArrowException) as error:
                where = f"cannot be kept ({reason_of(error)})"
            failure = step, dist.get_rank(), where
        failures: list[tuple[int, int, str] | None] = [None] * dist.get_world_size()
        dist.all_gather_object(failures, failure)
        step, rank, where = min(each for each in failures if each is not None)
        raise DivergedError(
            f"the loss at step {step} is not finite on rank {rank}, whose batch {where}; the last checkpoint is "
            "from before. Lower the learning rates, mend the rows, or skip such batches with --train.skip-nonfinite."
        )

    def on_pause(self, state: object) -> None:
        """Saves `state`; then raises Interrupted if the run is to end. All ranks call it, the pipeline being empty."""
        end = _END in self._requests
        self._save(state, wait=end)
        self._requests.clear()
        self._last_save = time.monotonic()
        if end:
            raise Interrupted

    def close(self) -> None:
        """Closes the connections; all ranks call it."""
        self._agreement.close()

    def _requests_of_rank(self) -> list[str]:
        requests = [_END] if self._ending.is_set() else []
        is_due = self._seconds is not None and time.monotonic() - self._last_save >= self._seconds
        if is_due or self._lost():
            requests.append(_SAVE)
        if self._delta_is_due():
            requests.append(_DELTA)
        return [*requests, _NONFINITE] if self._nonfinite is not None else requests

    def _check_last_losses(self) -> None:
        if self._keep_batch is not None and self._unchecked is not None and self._nonfinite is None:
            step, batch, finite = self._unchecked
            if not finite.item():
                self._nonfinite = step, batch
        self._unchecked = None
