"""Losses and speed of the steps between two lines of a run's log."""

import time
from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from stem_torchrec.runtime.errors import UserError


class Meter:
    """Mean losses over the labels of all steps and ranks, and speed, since the last reading.

    Args:
        tasks: names of the tasks.

    Raises UserError in `add` for another number of losses.
    """

    def __init__(self, tasks: Sequence[str]) -> None:
        self.tasks = tasks
        self.restart()

    def restart(self) -> None:
        """Starts anew, with no steps."""
        self.sum: Tensor | None = None
        self.start_clock()

    def add(self, losses: Tensor, *, labels: Tensor, rows: int) -> None:
        """Adds a step; the means leave out one whose losses are not finite.

        Args:
            losses: (T,), each a sum over this rank's labels divided by `labels`.
            labels: (T,), as `labels_of_step` counts them.
            rows: of this rank's batch.
        """
        if len(losses) != len(self.tasks):
            raise UserError(f"the model has {len(losses)} losses, but the tasks are {list(self.tasks)}; name each.")
        labels = labels.to(losses.device, torch.float64, non_blocking=True)
        added = torch.where(torch.isfinite(losses).all(), torch.cat([losses * labels, labels]), 0.0)
        self.sum = added if self.sum is None else self.sum.to(added.device) + added
        self.rows += rows
        self.steps += 1

    def read(self) -> dict[str, float | int | None]:
        """Values by name, as `train/loss/like`, which is None without a label; all ranks call it."""
        assert self.sum is not None
        total = torch.cat([self.sum, self.sum.new_tensor([self.rows])])
        dist.all_reduce(total)
        # .tolist() waits for the device, so only every log_every steps.
        *sums, rows = total.tolist()
        seconds, steps, count = time.perf_counter() - self.start, self.steps, len(self.tasks)
        self.restart()
        losses = zip(self.tasks, sums[:count], sums[count:], strict=True)
        return {
            **{f"train/loss/{task}": value / labels if labels else None for task, value, labels in losses},
            "train/step_ms": seconds / steps * 1000,
            "train/samples_per_second": rows / seconds,
        }

    def start_clock(self) -> None:
        """Measures speed from now on, without the steps that have been added before; their losses count."""
        self.steps = 0
        self.rows = 0
        self.start = time.perf_counter()

    def pause(self, act: Callable[[], object]) -> float:
        """Calls `act`, whose time is not spent on steps and left out; returns its seconds."""
        begin = time.perf_counter()
        act()
        seconds = time.perf_counter() - begin
        self.start += seconds
        return seconds

    def state(self) -> Tensor:
        """The steps since the last reading as a tensor (2T + 2,): sums of the losses, labels, rows, steps."""
        sums = torch.zeros(2 * len(self.tasks), dtype=torch.float64) if self.sum is None else self.sum.cpu()
        return torch.cat([sums, sums.new_tensor([self.rows, self.steps])])

    def restore(self, state: Tensor) -> None:
        """Takes the losses of the steps that `state` returned; how long these steps took is not known any more."""
        self.sum = state[:-2].clone()
        self.start_clock()

    @staticmethod
    def speed(values: dict[str, float | int | None]) -> str:
        """`281 ms  14.6k samples/s` of a reading."""
        samples = values["train/samples_per_second"] or 0
        return f"{values['train/step_ms']:.0f} ms  {samples / 1000:.1f}k samples/s"
