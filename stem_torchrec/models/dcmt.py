"""DCMT: ESMM whose steps have a twin, which predicts that the step would not happen and is trained where it could not.

Source: Zhu et al., "DCMT: A Direct Entire-Space Causal Multi-Task Framework for Post-Click Conversion Estimation",
ICDE 2023, arXiv 2302.06141.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Unpack

from torchrec.modules.embedding_modules import EmbeddingBagCollection

from stem_torchrec.config import Arch
from stem_torchrec.models.counterfactual import CounterfactualLosses, Twin
from stem_torchrec.models.entire_space import CounterfactualWeight, EntireSpace, EntireSpaceOptions
from stem_torchrec.models.frame import InputOptions


@dataclass(frozen=True)
class DCMTOptions(EntireSpaceOptions):
    """Options of DCMT."""

    arch: Arch = "dcmt"
    agreement: CounterfactualWeight = 0.001
    """Weight, within the loss of a step, of the mean of |1 - (r + r*)|, which keeps a step's twin r* near 1 - r."""


class DCMT(EntireSpace):
    """ESMM with two towers for each step: of rows whose step before happened, and of those in which it did not.

    With r_t, p_t, o_t and e_t as in ESCM2, and the twin r*_t = sigmoid(Tower'_t(MLP_t(x_s))), the loss of task t > 1 is

        BCE(p_t, y_t) + weight * (  sum of w_t e_t / sum of w_t,                 w_t = o_t / stop(p_{t-1})
                                  + sum of w*_t BCE(r*_t, 1) / sum of w*_t,      w*_t = (1 - o_t) / stop(1 - p_{t-1})
                                  + agreement * mean of |1 - (r_t + r*_t)| )

    over the rows of all ranks, so that rows without the step before train the twin directly, and through the last term
    r_t. Only the loss reads the twin. Divided by the sum of its weights (self-normalization) a mean does not grow where
    p is too small for all rows. Here p and 1 - p are at least `least_propensity` where a row is divided by them; the
    paper's towers have a linear part beside the MLP, its tasks are a click and a conversion, and its loss of p_t has a
    weight, which is 1 here.
    `models/counterfactual.py` says which rows count.

    Args:
        embedding_bag_collection, tasks, expert_hidden, tower_hidden, dropout, inputs: see AITM.
        agreement, counterfactual_weight, least_propensity: see DCMTOptions.

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
        agreement: float = 0.001,
        **inputs: Unpack[InputOptions],
    ) -> None:
        super().__init__(
            embedding_bag_collection,
            tasks,
            CounterfactualLosses(len(tasks), counterfactual_weight, least_propensity, Twin(agreement)),
            further_towers=True,
            expert_hidden=expert_hidden,
            tower_hidden=tower_hidden,
            dropout=dropout,
            **inputs,
        )
