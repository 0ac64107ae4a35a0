"""ESCM2: ESMM with a loss of each step that stands for the rows whose step before did not happen.

Source: Wang et al., "ESCM2: Entire Space Counterfactual Multi-Task Model for Post-Click Conversion Rate Estimation",
SIGIR 2022, arXiv 2204.05125.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Unpack

from torchrec.modules.embedding_modules import EmbeddingBagCollection

from stem_torchrec.config import Arch
from stem_torchrec.models.counterfactual import CounterfactualLosses, doubly_robust, inverse_propensity
from stem_torchrec.models.entire_space import CounterfactualWeight, EntireSpace, EntireSpaceOptions
from stem_torchrec.models.frame import InputOptions

Estimator = Literal["ips", "dr"]


@dataclass(frozen=True)
class ESCM2Options(EntireSpaceOptions):
    """Options of ESCM2."""

    arch: Arch = "escm2"
    estimator: Estimator = "ips"
    """ips: rows whose step before happened, each divided by its probability. dr: and an imputed error of the others."""
    counterfactual_weight: CounterfactualWeight = 0.1
    """Weight of the loss that each step has by itself."""


class ESCM2(EntireSpace):
    """ESMM whose steps are trained on their own as well, on rows that stand for all exposures.

    With r_t = sigmoid(z_t) the probability of step t if the one before happened, p_t = r_1 ... r_t as in ESMM, labels
    y_t, o_t = y_{t-1} and e_t = BCE(r_t, y_t), the loss of task t > 1 is (eq. 27 for two tasks; the mean is eq. 15)

        ips   BCE(p_t, y_t) + weight * mean over rows: o_t e_t / stop(p_{t-1})
        dr    BCE(p_t, y_t) + weight * mean over rows: i_t + o_t ((e_t - i_t) + (e_t - i_t)^2) / stop(p_{t-1})

    A row of which it is unlikely that the step before happened stands for the many like it in which it did not, so that
    r_t is not fitted to the likely rows alone. The imputed error i_t = softplus(Tower'_t(MLP_t(x_s))) is trained with
    the rest: both terms of dr reach e_t and i_t at once, and so both towers and MLP_t, where doubly robust joint
    learning takes turns. Nothing goes back through p_{t-1}. `models/counterfactual.py` says which rows count.

    p_{t-1} is at least `least_propensity` where a row is divided by it, by default 0.05. The paper names 0.1 as an
    example; its weight is 0.1 to 1; its loss of p_t has a weight, which is 1 here; and MMoE's experts stand below its
    towers, where each task has a bottom here.

    Args:
        embedding_bag_collection, tasks, expert_hidden, tower_hidden, dropout, inputs: see AITM.
        estimator, counterfactual_weight, least_propensity: see ESCM2Options.

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
        estimator: Estimator = "ips",
        counterfactual_weight: float = 0.1,
        least_propensity: float = 0.05,
        **inputs: Unpack[InputOptions],
    ) -> None:
        term = doubly_robust if estimator == "dr" else inverse_propensity
        super().__init__(
            embedding_bag_collection,
            tasks,
            CounterfactualLosses(len(tasks), counterfactual_weight, least_propensity, term),
            further_towers=estimator == "dr",
            expert_hidden=expert_hidden,
            tower_hidden=tower_hidden,
            dropout=dropout,
            **inputs,
        )
