"""Requests of any rank, known to all ranks at the same step."""

from collections.abc import Iterable
from datetime import timedelta

import torch
import torch.distributed as dist


class Agreement:
    """Collects the requests of all ranks at each step and returns them one step later, so that no rank waits.

    Args:
        names: of all possible requests.
        timeout: seconds that a rank waits for the others.

    Example::

        agreement = Agreement(["save", "end"])
        for batch in batches:
            step(batch)
            requests = agreement.exchange(["end"] if terminated else [])  # {"end"} on all ranks, a step later
    """

    def __init__(self, names: Iterable[str], *, timeout: float = 600.0) -> None:
        self._names = list(names)
        # Small tensors on the host: reading them back from a GPU would wait for it.
        self._group = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout))
        self._work: dist.Work | None = None
        self._flags = torch.zeros(len(self._names), dtype=torch.int32)

    def exchange(self, requests: Iterable[str]) -> set[str]:
        """Sends this rank's requests; returns those that any rank sent in the call before.

        All ranks make the same calls.
        """
        before = self._read()
        requests = set(requests)
        self._flags = torch.tensor([name in requests for name in self._names], dtype=torch.int32)
        self._work = dist.all_reduce(self._flags, op=dist.ReduceOp.MAX, group=self._group, async_op=True)
        return before

    def exchange_now(self, requests: Iterable[str]) -> set[str]:
        """Sends this rank's requests and waits; returns those that any rank sent in this call or the one before."""
        before = self.exchange(requests)
        return before | self._read()

    def close(self) -> None:
        """Closes the connections; all ranks call it."""
        self._read()
        dist.destroy_process_group(self._group)

    def _read(self) -> set[str]:
        if self._work is None:
            return set()
        self._work.wait()
        self._work = None
        return {name for name, flag in zip(self._names, self._flags.tolist(), strict=True) if flag}
