"""When a run pauses for a checkpoint, and how it ends when it is asked to, or must."""

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

_SAVE, _END, _NONFINITE = "save", "end", "nonfinite"


class RunWatch:
    """Asks all ranks at each step whether a checkpoint is due, a signal has come or a loss is not finite.

    Args:
        save: called between two steps with the place and whether to wait until it is written; writes a checkpoint.
        every: steps between two checkpoints.
        seconds: between two checkpoints.
        ending: set when the run shall end.
        keep_batch: called with the step and the batch whose loss is not finite; says where it is kept. Without it such
            losses are nothing to end for.
        timeout: seconds that ranks wait for each other.
    """

    def __init__(
        self,
        save: Callable[..., None],
        *,
        every: int | None,
        seconds: float | None,
        ending: Event,
        keep_batch: Callable[[int, Batch], object] | None,
        timeout: float,
    ) -> None:
        self.every = every
        self._save, self._seconds, self._ending, self._keep_batch = save, seconds, ending, keep_batch
        self._agreement = Agreement([_SAVE, _END, _NONFINITE], timeout=timeout)
        self._asked: set[str] = set()
        self._last = time.monotonic()
        self._recent: tuple[int, Batch, Tensor] | None = None
        self._bad: tuple[int, Batch] | None = None

    def asks(self, step: int, batch: Batch, losses: Tensor) -> bool:
        """Whether to pause; all ranks call it after each step, and hear the same."""
        # The loss of the step before: that of this one would have to be waited for on a GPU.
        self._look()
        self._recent = step, batch, torch.isfinite(losses).all()
        self._asked |= self._agreement.ask(self._mine())
        return bool(self._asked)

    def asks_to_end(self) -> bool:
        """Whether to end; all ranks call it after each batch of an evaluation."""
        self._asked |= self._agreement.ask(self._mine())
        return _END in self._asked

    def check(self) -> None:
        """Raises DivergedError where a loss was not finite; all ranks call it."""
        self._look()
        # Also so that nothing asked before a pause is heard after it.
        self._asked |= self._agreement.ask_now(self._mine())
        if _NONFINITE not in self._asked or self._keep_batch is None:
            return
        kept = None
        if self._bad is not None:
            step, batch = self._bad
            try:
                where = f"is in {self._keep_batch(step, batch)}"
            except (OSError, pa.ArrowException) as error:
                where = f"cannot be kept ({reason_of(error)})"
            kept = step, dist.get_rank(), where
        all_kept: list[tuple[int, int, str] | None] = [None] * dist.get_world_size()
        dist.all_gather_object(all_kept, kept)
        step, rank, where = min(item for item in all_kept if item is not None)
        raise DivergedError(
            f"the loss at step {step} is not finite on rank {rank}, whose batch {where}; the last checkpoint is "
            "from before. Lower the learning rates, mend the rows, or skip such batches with --train.skip-nonfinite."
        )

    def pause(self, place: object) -> None:
        """Saves; raises Interrupted where the run was asked to end."""
        end = _END in self._asked
        self._save(place, wait=end)
        self._asked.clear()
        self._last = time.monotonic()
        if end:
            raise Interrupted

    def close(self) -> None:
        """Ends the connections; all ranks call it."""
        self._agreement.close()

    def _mine(self) -> list[str]:
        mine = [_END] if self._ending.is_set() else []
        if self._seconds is not None and time.monotonic() - self._last >= self._seconds:
            mine.append(_SAVE)
        return [*mine, _NONFINITE] if self._bad is not None else mine

    def _look(self) -> None:
        if self._keep_batch is not None and self._recent is not None and self._bad is None:
            step, batch, finite = self._recent
            if not finite.item():
                self._bad = step, batch
        self._recent = None
