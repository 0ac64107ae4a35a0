"""The contract between a model and its loss: what stands in the columns that a model puts out.

A model puts out logits (B, T), and needs to declare nothing. If it puts out more, or has tasks that are not binary, it
has an attribute or property `outputs`, which MultiTaskTrain reads when it is created. docs/add_a_model.md shows one.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from stem_torchrec.models.links import Link
from stem_torchrec.runtime.errors import UserError

AddedLosses = Callable[[Tensor, Tensor, Tensor | None, Tensor | None], Tensor]
"""From all that a model puts out, labels (B, T), labels per rank (T,) and weights (B, T) to a loss of each task, (T,).

The last two are None where labels are not counted or not weighted, see `loss.multi_task_loss`.
"""


@dataclass(frozen=True)
class Outputs:
    """What a model puts out: the logits (B, T) of its predictions, and behind them what only its loss reads.

        columns    0 ... T - 1    T ... 2 T - 1    ...    (1 + streams) T ...
                   logits         stream 1         ...    read by added_losses alone

    Evaluation, metrics and bundles read the logits, the first T columns. The loss of a task is that of its logits, or
    in their place the sum of those of its streams, plus what `added_losses` gives.

    Example::

        Outputs(("finish", "like"), streams=2).split(torch.zeros(5, 6))  # three of (5, 2)
    """

    tasks: tuple[str, ...] = ()
    """Names of the T tasks, in the order of the logits; empty where a model declares nothing, and T is not known."""
    streams: int = 0
    """How many times (B, T) of further logits stand behind the first, each with a loss of its own (Duet)."""
    added_losses: AddedLosses | None = None
    """Losses that are added to those of the tasks (ESCM2, DCMT)."""
    links: Mapping[str, Link] = field(default_factory=dict)
    """From the logit to the prediction, by task, of tasks whose labels are numbers or levels: modules of the model."""

    def split(self, outputs: Tensor) -> list[Tensor]:
        """The logits (B, T), then those of each stream (B, T)."""
        tasks = len(self.tasks)
        if self.streams == 0 and self.added_losses is None:
            return [outputs]
        check_columns(outputs, tasks, self.streams, self.added_losses is not None)
        return [outputs[:, i * tasks : (i + 1) * tasks] for i in range(1 + self.streams)]


def outputs_of(model: nn.Module) -> Outputs:
    """What a model declares; logits (B, T) alone if it declares nothing, as TorchRec's DLRM."""
    declared = getattr(model, "outputs", None)
    return declared if isinstance(declared, Outputs) else Outputs()


def check_columns(outputs: Tensor, tasks: int, streams: int, has_more: bool) -> None:
    """Raises UserError unless a model puts out the columns that it declares, and `has_more` behind them or not."""
    declared = (1 + streams) * tasks
    if outputs.dim() != 2 or outputs.shape[1] < declared or (outputs.shape[1] > declared and not has_more):
        raise UserError(
            f"the model puts out {tuple(outputs.shape)}, but declares {tasks} tasks and {streams} streams, which are "
            f"{declared} columns; its `outputs` must tell what its `forward` returns."
        )


# The pipeline traces a model with FX, which cannot follow a decision about shapes: this is one step to it.
torch.fx.wrap("check_columns")
