"""How far a run is, between two steps."""

from dataclasses import asdict, dataclass


@dataclass
class TrainState:
    """What `TrainLoop` counts; it stands in each checkpoint.

    Example::

        TrainState(step=120, epoch=1, epoch_end=200)  # 120 steps are made, 80 are left of the second epoch
    """

    step: int = 0
    """Steps made."""
    epoch: int = 0
    """The epoch of the last step, counted from 0."""
    epoch_end: int = 0
    """The step that ends the epoch."""
    evaluate: bool = False
    """Whether an evaluation is due before the next step."""
    stopped: bool = False
    """Whether the run ends before its last step, for example by early stopping."""

    @property
    def left(self) -> int:
        """Steps left of the epoch."""
        return self.epoch_end - self.step

    def state_dict(self) -> dict[str, int | bool]:
        """All fields by name."""
        return asdict(self)

    def load_state_dict(self, state: dict[str, int | bool]) -> None:
        """Takes what `state_dict` returned; raises KeyError where a field is missing."""
        for name in asdict(self):
            setattr(self, name, state[name])
