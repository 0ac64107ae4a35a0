"""ESMM with losses of the steps, and with towers that only these losses read: what ESCM2 and DCMT are."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Unpack

import torch
from annotated_types import Interval
from torch import Tensor
from torchrec.modules.embedding_modules import EmbeddingBagCollection

from stem_torchrec.models.counterfactual import CounterfactualLosses
from stem_torchrec.models.frame import InputOptions
from stem_torchrec.models.layers import MLP
from stem_torchrec.models.options import BottomOptions
from stem_torchrec.models.outputs import Outputs
from stem_torchrec.models.sequential import ESMM

CounterfactualWeight = Annotated[float, Interval(ge=0, le=1e6)]


@dataclass(frozen=True)
class EntireSpaceOptions(BottomOptions):
    """Options of ESMM with losses of the steps."""

    counterfactual_weight: CounterfactualWeight = 1.0
    """Weight of the loss that each step has by itself."""
    least_propensity: Annotated[float, Interval(gt=0, le=0.5)] = 0.05
    """Smallest probability that a row is divided by, which limits what one row weighs; a larger one stays as it is."""


class EntireSpace(ESMM):
    """ESMM whose forward gives the logits (B, T), and behind them what further towers put out, (B, T - 1).

    `outputs` tells MultiTaskTrain the losses that read these; a bundle has no further towers.

    Args:
        embedding_bag_collection, tasks, expert_hidden, tower_hidden, dropout, inputs: see AITM.
        added_losses: what the loss is beside that of ESMM.
        further_towers: whether each task from the second on has one, on the bottom of its task.
    """

    def __init__(
        self,
        embedding_bag_collection: EmbeddingBagCollection,
        tasks: Sequence[str],
        added_losses: CounterfactualLosses,
        *,
        further_towers: bool,
        expert_hidden: Sequence[int],
        tower_hidden: Sequence[int],
        dropout: float,
        **inputs: Unpack[InputOptions],
    ) -> None:
        super().__init__(
            embedding_bag_collection,
            tasks,
            expert_hidden=expert_hidden,
            tower_hidden=tower_hidden,
            dropout=dropout,
            **inputs,
        )
        self.added_losses = added_losses
        for task in self.tasks[1:] if further_towers else ():
            self.further_towers[task] = MLP(expert_hidden[-1], tower_hidden, out_features=1, dropout=dropout)

    def logits(self, towers: Tensor) -> Tensor:
        """The logits (B, T) of the products, and behind them the outputs of further towers as they are, in fp32."""
        tasks = len(self.tasks)
        return torch.cat([super().logits(towers[:, :tasks]), towers[:, tasks:].float()], dim=1)

    @property
    def outputs(self) -> Outputs:
        """The logits, and losses that read them and what stands behind them."""
        return replace(super().outputs, added_losses=self.added_losses)
