"""What any rank asks for, known on all ranks at the same step."""

from collections.abc import Iterable
from datetime import timedelta

import torch
import torch.distributed as dist


class Agreement:
    """Questions that all ranks answer at each step, one step late, so that nobody waits for the answer.

    Args:
        questions: their names.
        timeout: seconds that a rank waits for the others.

    Example::

        agreement = Agreement(["save", "end"])
        for batch in batches:
            step(batch)
            asked = agreement.ask(["end"] if terminated else [])  # {"end"} on all ranks, a step later
    """

    def __init__(self, questions: Iterable[str], *, timeout: float = 600.0) -> None:
        self._questions = list(questions)
        # Small tensors on the host: a GPU would have to be waited for.
        self._group = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout))
        self._work: dist.Work | None = None
        self._flags = torch.zeros(len(self._questions), dtype=torch.int32)

    def ask(self, mine: Iterable[str]) -> set[str]:
        """What some rank asked for the last time that all called this; all ranks make the same calls."""
        asked = self._read()
        mine = set(mine)
        self._flags = torch.tensor([question in mine for question in self._questions], dtype=torch.int32)
        self._work = dist.all_reduce(self._flags, op=dist.ReduceOp.MAX, group=self._group, async_op=True)
        return asked

    def ask_now(self, mine: Iterable[str]) -> set[str]:
        """What some rank asks for, waiting for all of them."""
        before = self.ask(mine)
        return before | self._read()

    def close(self) -> None:
        """Ends the connections; all ranks call it."""
        self._read()
        dist.destroy_process_group(self._group)

    def _read(self) -> set[str]:
        if self._work is None:
            return set()
        self._work.wait()
        self._work = None
        return {question for question, flag in zip(self._questions, self._flags.tolist(), strict=True) if flag}
