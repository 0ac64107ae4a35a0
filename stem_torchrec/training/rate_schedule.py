"""How the learning rates of the tables and of the dense part change over the steps and evaluations of a run."""

import math

from torch.optim.lr_scheduler import LambdaLR
from torchrec.optim.keyed import CombinedOptimizer

from stem_torchrec.config import ScheduleConfig


class RateSchedule(LambdaLR):
    """The factor on every learning rate: a linear warm-up from 0, then constant or down to 0 at the last step.

    Each plateau multiplies it by `config.plateau_factor`, as ReduceLROnPlateau does with a patience of 0.

    Step it after the optimizer. The pipeline's `zero_grad` pushes the new rate into the fused tables before the
    next backward.

    Args:
        optimizer: has the learning rates of the first step.
        config: how they change.
        steps: the last step.
        made: steps after which the run resumes.

    Example::

        schedule = RateSchedule(optimizer, ScheduleConfig(decay="linear"), steps=2)  # factors 1, 1/2, 0
    """

    def __init__(self, optimizer: CombinedOptimizer, config: ScheduleConfig, *, steps: int, made: int = 0) -> None:
        self._config, self._steps, self._plateaus = config, steps, 0
        super().__init__(optimizer, self._factor)
        self.last_epoch = made
        self._set_rates()

    def set_plateaus(self, number: int) -> None:
        """Sets the rates of the next step, after as many evaluations without a better one."""
        self._plateaus = number
        self._set_rates()

    def _set_rates(self) -> None:
        for group, base in zip(self.optimizer.param_groups, self.base_lrs, strict=True):
            group["lr"] = base * self._factor(self.last_epoch)

    def _factor(self, step: int) -> float:
        warmup, of_plateaus = self._config.warmup_steps, self._config.plateau_factor**self._plateaus
        if step < warmup:
            return of_plateaus * (step + 1) / (warmup + 1)
        done = min((step - warmup) / max(self._steps - warmup, 1), 1.0)
        decay = {"constant": 1.0, "linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2}
        return of_plateaus * decay[self._config.decay]
