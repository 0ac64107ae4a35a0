"""Duet: two streams of a task with a loss each, a prediction between them, and tasks that stay isolated."""

import math
from typing import get_type_hints

import pytest
import torch
from torch import Tensor

from stem_torchrec.config import LossConfig
from stem_torchrec.data.label_counts import LabelCounter
from stem_torchrec.models import duet
from stem_torchrec.models.build import build_model
from stem_torchrec.models.duet import Duet
from stem_torchrec.models.loss import MultiTaskTrain
from stem_torchrec.models.stem import STEM
from stem_torchrec.models.table import with_arch
from stem_torchrec.models.trained_by import tasks_of_parameters

from reference import COLUMNS, loss_by_formula, random_batch
from runs import MODEL

TASKS = len(COLUMNS.labels)
ROUNDING = {"rtol": 1e-5, "atol": 1e-6}


def built(**options: object) -> MultiTaskTrain:
    torch.manual_seed(0)
    return build_model(with_arch(MODEL, "duet", embedding_std=1.0, **options), COLUMNS, table_device="cpu")


def streams(train: MultiTaskTrain, seed: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """The predictions, and the logits of STEM and of the own streams, each (B, T)."""
    batch = random_batch(seed)
    predicted, stem, own = train.model(batch.dense_features, batch.sparse_features).split(TASKS, dim=1)
    return predicted, stem, own


def test_duet_takes_every_argument_of_stem_by_its_name_and_type() -> None:
    types = {
        model: {
            name: hint
            for name, hint in get_type_hints(model.__init__, vars(duet)).items()
            if name not in ("options", "inputs", "return")
        }
        for model in (Duet, STEM)
    }
    assert types[STEM].items() <= (types[Duet] | get_type_hints(duet._Options)).items()


def test_each_stream_is_trained_by_a_loss_of_its_own() -> None:
    train = built()
    batch = random_batch(1)
    total, (losses, logits) = train(batch)
    predicted, stem, own = streams(train)
    expected = loss_by_formula(stem, batch.labels) + loss_by_formula(own, batch.labels)
    torch.testing.assert_close(total, expected, **ROUNDING)
    torch.testing.assert_close(losses.sum(), (expected / 2).detach(), **ROUNDING)
    torch.testing.assert_close(logits, predicted.detach())
    ours = torch.autograd.grad(total, list(train.parameters()))
    for gradient, other in zip(ours, torch.autograd.grad(expected, list(train.parameters())), strict=True):
        torch.testing.assert_close(gradient, other, **ROUNDING)


@pytest.mark.parametrize("share", [0.0, 0.2, 0.9])
def test_a_prediction_is_between_the_logits_of_the_streams(share: float) -> None:
    predicted, stem, own = streams(built(own_share=share))
    torch.testing.assert_close(predicted, (1 - share) * stem + share * own, **ROUNDING)
    assert (stem - own).abs().min() > 1e-4


def test_every_parameter_is_trained_and_those_of_a_task_by_it_alone() -> None:
    # Also where the own stream has no share in the prediction.
    train = built(own_share=0.0)
    trained = tasks_of_parameters(train, tasks=TASKS, dense_in_features=len(COLUMNS.dense))
    assert set(trained) == {name for name, _ in train.named_parameters()}
    for name, tasks in trained.items():
        owner = [i for i, task in enumerate(COLUMNS.labels) if task in name.replace("/", ".").split(".")]
        assert tasks == (set(owner) or set(range(TASKS))), name


def test_what_an_own_stream_predicts_depends_on_nothing_that_is_shared() -> None:
    train = built()
    _, stem, own = streams(train)
    with torch.no_grad():
        for name, parameter in train.named_parameters():
            if "shared" in name or ".like" in name:
                parameter.add_(1.0)
    _, moved, same = streams(train)
    finish = COLUMNS.labels.index("finish")
    assert torch.equal(own[:, finish], same[:, finish])
    assert not torch.equal(stem[:, finish], moved[:, finish])


def test_other_losses_and_weights_of_labels_count_in_both_streams() -> None:
    config = with_arch(MODEL, "duet", embedding_std=1.0, task_weights=(1.0, 3.0))
    torch.manual_seed(0)
    train = build_model(config, COLUMNS, LossConfig(kinds={"like": "focal"}, focal_gamma=0.0), table_device="cpu")
    batch = random_batch(1)
    [counted] = LabelCounter().counted([batch])
    _, stem, own = streams(train)
    # With an exponent of 0 focal is the cross entropy.
    expected = sum(loss_by_formula(each, batch.labels, (1.0, 3.0)) for each in (stem, own))
    torch.testing.assert_close(train(counted)[0], expected, **ROUNDING)


def test_a_task_without_labels_leaves_its_streams_alone() -> None:
    train, batch = built(), random_batch(1)
    batch.labels[:, 1] = math.nan
    train(batch)[0].backward()
    for name, parameter in train.named_parameters():
        of_like = "like" in name.replace("/", ".").split(".")
        assert (parameter.grad is None or not parameter.grad.count_nonzero()) == of_like, name
