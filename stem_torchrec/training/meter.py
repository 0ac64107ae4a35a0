"""Losses and speed of the steps between two lines of a run's log."""

import time
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from stem_torchrec.runtime.errors import UserError


class Meter:
    """Mean losses over steps and ranks, and speed, since the last reading.

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

    def add(self, losses: Tensor, *, rows: int) -> None:
        """Adds a step with its losses (T,); the mean leaves out a step whose losses are not finite."""
        if len(losses) != len(self.tasks):
            raise UserError(f"the model has {len(losses)} losses, but the tasks are {list(self.tasks)}; name each.")
        finite = torch.isfinite(losses).all()
        added = torch.where(finite, torch.cat([losses, losses.new_ones(1)]).double(), 0.0)
        self.sum = added if self.sum is None else self.sum.to(added.device) + added
        self.rows += rows
        self.steps += 1

    def read(self) -> dict[str, float | int | None]:
        """Values by name, as `train/loss/like`; all ranks call it."""
        assert self.sum is not None
        total = torch.cat([self.sum, self.sum.new_tensor([self.rows])])
        dist.all_reduce(total)
        # .tolist() waits for the device, so only every log_every steps.
        *sums, counted, rows = total.tolist()
        seconds, steps = time.perf_counter() - self.start, self.steps
        self.restart()
        return {
            **{
                f"train/loss/{t}": value / counted if counted else None
                for t, value in zip(self.tasks, sums, strict=True)
            },
            "train/step_ms": seconds / steps * 1000,
            "train/samples_per_second": rows / seconds,
        }

    def start_clock(self) -> None:
        """Measures speed from now on, without the steps that have been added before; their losses count."""
        self.steps = 0
        self.rows = 0
        self.start = time.perf_counter()

    def pause(self, seconds: float) -> None:
        """Leaves out time that was not spent on steps."""
        self.start += seconds

    def state(self) -> Tensor:
        """The steps since the last reading as a tensor (T + 3,): sums of the losses, finite steps, rows, steps."""
        sums = torch.zeros(len(self.tasks) + 1, dtype=torch.float64) if self.sum is None else self.sum.cpu()
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
