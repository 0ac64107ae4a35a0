"""DCMT: ESMM whose steps have a twin, which predicts that the step would not happen and is trained where it could not.

Source: Zhu et al., "DCMT: A Direct Entire-Space Causal Multi-Task Framework for Post-Click Conversion Estimation",
ICDE 2023, arXiv 2302.06141.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Unpack

from torchrec.modules.embedding_modules import EmbeddingBagCollection

from stem_torchrec.config import Arch
from stem_torchrec.models.counterfactual import CounterfactualLosses, twin
from stem_torchrec.models.entire_space import EntireSpace, EntireSpaceOptions
from stem_torchrec.models.frame import InputOptions


@dataclass(frozen=True)
class DCMTOptions(EntireSpaceOptions):
    """Options of DCMT."""

    arch: Arch = "dcmt"


class DCMT(EntireSpace):
    """ESMM with two towers for each step: of rows whose step before happened, and of those in which it did not.

    With r_t, p_t, o_t and e_t as in ESCM2, and the twin r*_t = sigmoid(Tower'_t(MLP_t(x_s))), the loss of task t > 1 is

        BCE(p_t, y_t) + weight * mean over rows: o_t e_t / stop(p_{t-1}) + (1 - o_t) BCE(r*_t, 1) / stop(1 - p_{t-1})
                                                 + 0.001 |1 - (r_t + r*_t)|

    so that rows without the step before train the twin directly, and through the last term r_t. Only the loss
    reads the twin. The paper also divides the first two sums by those of their weights (self-normalization) in place of
    the number of rows, which is left out: it would take these sums over all ranks. Its towers have a linear part beside
    the MLP, its tasks are a click and a conversion, and its loss of p_t has a weight, which is 1 here.
    `models/counterfactual.py` says which rows count.

    Args:
        embedding_bag_collection, tasks, expert_hidden, tower_hidden, dropout, inputs: see AITM.
        counterfactual_weight, least_propensity: see EntireSpaceOptions.

    Raises UserError for a single task.
    """

    def __init__(
        self,
        embedding_bag_collection: EmbeddingBagCollection,
        tasks: Sequence[str],
        *,
        expert_hidden: Sequence[int] = (512, 512, 512),
        tower_hidden: Sequence[int] = (128, 64),
        dropout: float = 0.0,
        counterfactual_weight: float = 1.0,
        least_propensity: float = 0.05,
        **inputs: Unpack[InputOptions],
    ) -> None:
        super().__init__(
            embedding_bag_collection,
            tasks,
            CounterfactualLosses(len(tasks), counterfactual_weight, least_propensity, twin),
            further_towers=True,
            expert_hidden=expert_hidden,
            tower_hidden=tower_hidden,
            dropout=dropout,
            **inputs,
        )
