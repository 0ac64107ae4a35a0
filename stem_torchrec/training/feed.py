"""The batches that the train pipeline reads ahead, and where it stops to read."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator

from torchrec.datasets.utils import Batch

from stem_torchrec.runtime.errors import UserError
from stem_torchrec.runtime.hang_detection import set_activity


class BatchFeed:
    """Hands this rank's batches to the pipeline, slice by slice; at the end of a slice the pipeline is empty.

    The pipeline reads up to two batches ahead of the one that it trains on:

        feed        7  8  9 | 10 11        slice up to batch 9
        pipeline    7  8  9                trains on 7, has read 8 and 9
        waiting     7  8  9                in the order of the steps

    Args:
        batches: the batches of an epoch, counted from 0.
    """

    def __init__(self, batches: Callable[[int], Iterable[Batch]]) -> None:
        self.waiting: deque[Batch] = deque()
        """Batches that the pipeline has read and not trained on, the next one first."""
        self._batches = batches
        self._epoch: int | None = None
        self._iterator: Iterator[Batch] = iter(())
        self._left = 0

    def slice(self, epoch: int, length: int) -> Iterator[Batch]:
        """The next `length` batches of an epoch, or fewer if `stop` is called meanwhile.

        Raises UserError where the epoch has fewer batches.
        """
        if epoch != self._epoch:
            self._epoch, self._iterator = epoch, iter(self._batches(epoch))
        self._left = length
        while self._left:
            set_activity("reading a batch of the training split")
            batch = next(self._iterator, None)
            if batch is None:
                raise UserError(
                    f"the batches of epoch {epoch} end {self._left} steps too early; give fewer steps, or more batches."
                )
            set_activity("making a training step")
            self._left -= 1
            self.waiting.append(batch)
            yield batch

    def stop(self) -> None:
        """Ends the slice, so that the pipeline gets empty within two steps."""
        self._left = 0
