import math
from typing import get_args

import pytest

from stem_torchrec.config import TaskGradients, TaskWeights, TrainConfig
from stem_torchrec.models.stem import STEMOptions
from stem_torchrec.models.table import MODELS, groups_with_tables
from stem_torchrec.runtime.process import join_process_group

from contest.cases import Case, contests
from contest.models import with_model
from contest.problem import Contestant, Problem
from contest.sides import ours
from contest.worker import take_turn

BESIDE_STEM: tuple[Case, ...] = ("architectures", "experts", "losses", "balance")
"""The cases with models beside STEM."""
SMALL = STEMOptions(embedding_dim=4, expert_hidden=(16, 8), gate_hidden=(6,), tower_hidden=(5,))


def all_beside_stem() -> list[Contestant]:
    """The contestants of all these cases, and STEM once for each contest."""
    return [each for case in BESIDE_STEM for some in contests(case, [50], [8]).values() for each in some]


def test_every_model_loss_and_method_takes_turns_with_stem() -> None:
    by_case = {
        case: [[each.model for each in contestants] for contestants in contests(case, [100, 200], [8]).values()]
        for case in BESIDE_STEM
    }
    assert {models[0] for groups in by_case.values() for models in groups} == {"stem"}
    assert {model for models in by_case["architectures"] for model in models} == {*MODELS, "duet_mlp"}
    losses, balance = ({*models} - {"stem"} for case in ("losses", "balance") for models in by_case[case])
    # The others are for numbers and levels, and the batches of a contest have binary labels.
    assert losses == {f"stem_{kind}" for kind in ("focal", "smoothed", "pairs", "jrc")}
    methods = {*get_args(TaskWeights), *get_args(TaskGradients)} - {"fixed", "sum"}
    assert balance == {f"stem_{how}" for how in methods}


def test_models_of_a_contest_have_tables_as_large_but_for_single_task() -> None:
    tasks = ["finish", "like", "share"]
    widths = {}
    for name in {each.model for each in all_beside_stem()}:
        options = with_model(TrainConfig(), name, tasks).model
        widths[name] = len(groups_with_tables(options, tasks)) * options.embedding_dim
    assert len(widths) > 25
    assert widths == {**dict.fromkeys(widths, 4 * 16), "single_task": 3 * 16}


@pytest.mark.long
def test_every_model_of_a_contest_makes_steps() -> None:
    problem = Problem(rows=50, batch_size=8, features=3, model=SMALL)
    sides = {each.model: each for each in all_beside_stem()}
    with join_process_group(alone=True) as process:
        answers = {name: take_turn(ours(problem.of(each), each, process), 2, process) for name, each in sides.items()}
    assert all(math.isfinite(loss) for answer in answers.values() for loss in answer.losses)
    assert all(len(answer.step_ms) == 2 for answer in answers.values())
    assert answers["stem"].work == problem.gemm_flops()
    # Two cross layers for each of three groups, each of two matrices of rank 64 on 3 x 4 columns.
    assert answers["stem_cross"].work - answers["stem"].work == 3 * 2 * 8 * (2 * 3 * 2 * 64 * 12)
