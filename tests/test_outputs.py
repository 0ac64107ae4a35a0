"""What a model declares that it puts out: models built by hand train as those of a configuration."""

from dataclasses import fields
from inspect import Parameter, signature

import pytest
import torch
from torch import Tensor, nn
from torchrec import EmbeddingBagCollection

from stem_torchrec import Duet, DuetOptions, MultiTaskTrain, embedding_bag_configs
from stem_torchrec.config import LossConfig, ModelConfig
from stem_torchrec.data.columns import Columns
from stem_torchrec.losses.table import losses_of_tasks
from stem_torchrec.models.build import build_model
from stem_torchrec.models.dcmt import DCMT, DCMTOptions
from stem_torchrec.models.escm2 import ESCM2, ESCM2Options
from stem_torchrec.models.frame import MultiTaskModel
from stem_torchrec.models.links import NumberLink
from stem_torchrec.models.loss import multi_task_loss
from stem_torchrec.models.outputs import Outputs
from stem_torchrec.models.table import MODELS
from stem_torchrec.runtime.errors import UserError

from reference import random_batch, sparse_features

TASKS = ("click", "like")
LOG = Columns(sparse=sparse_features(uid=50, tags=7), dense=("age", "price"), labels=TASKS, group=None)
SIZES = {"expert_hidden": (6,), "tower_hidden": (5,)}
OF_DUET = SIZES | {"gate_hidden": (5,), "num_shared_experts": 2}


def collection(*groups: str) -> EmbeddingBagCollection:
    return EmbeddingBagCollection(tables=embedding_bag_configs(list(LOG.sparse.values()), groups, embedding_dim=4))


def duet(**options) -> Duet:
    return Duet(collection(*TASKS, "shared"), TASKS, dense_in_features=2, dense_out_features=4, **OF_DUET, **options)


def of_steps(model: type[ESCM2] | type[DCMT], **options) -> MultiTaskModel:
    return model(collection("shared"), TASKS, dense_in_features=2, dense_out_features=4, **SIZES, **options)


def trained(train: MultiTaskTrain) -> tuple[list[Tensor], list[Tensor]]:
    """Losses, losses of tasks and logits of three steps of a plain loop, and the weights after these."""
    optimizer, seen = torch.optim.Adam(train.parameters(), lr=0.01), []
    for step in range(3):
        loss, (losses, logits) = train(random_batch(step, LOG, rows=20))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seen += [loss.detach(), losses, logits]
    return seen, [weight.detach() for weight in train.parameters()]


@pytest.mark.parametrize(
    ("by_hand", "config"),
    [
        (duet, DuetOptions(**OF_DUET, embedding_dim=4)),
        (lambda: of_steps(ESCM2, estimator="dr"), ESCM2Options(**SIZES, embedding_dim=4, estimator="dr")),
        (lambda: of_steps(DCMT), DCMTOptions(**SIZES, embedding_dim=4)),
    ],
    ids=["duet", "escm2", "dcmt"],
)
def test_a_model_built_by_hand_trains_to_the_bit_as_that_of_a_configuration(by_hand, config: ModelConfig) -> None:
    torch.manual_seed(0)
    built = build_model(config, LOG, table_device="cpu")
    train = MultiTaskTrain(by_hand())
    train.load_state_dict(built.state_dict())
    for ours, other in zip(trained(train), trained(built), strict=True):
        assert len(ours) == len(other)
        assert all(torch.equal(a, b) for a, b in zip(ours, other, strict=True))


@pytest.mark.parametrize("arch", MODELS)
def test_a_model_built_by_hand_has_the_defaults_of_its_options(arch: str) -> None:
    line = MODELS[arch]
    assert isinstance(line.model, type)
    defaults = {
        name: parameter.default
        for kind in reversed(line.model.__mro__)
        if "__init__" in vars(kind)
        for name, parameter in signature(kind.__init__).parameters.items()
        if parameter.default is not Parameter.empty
    }
    both = [field.name for field in fields(line.options) if field.name in defaults]
    assert len(both) > 3
    assert {name: defaults[name] for name in both} == {name: getattr(line.options(), name) for name in both}


class Ranker(nn.Module):
    """A model of one's own around another one."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, dense: Tensor, sparse: object) -> Tensor:
        return self.model(dense, sparse)


def test_a_module_around_a_model_hands_on_what_it_declares() -> None:
    model, batch = duet(), random_batch(1, LOG)
    with pytest.raises(UserError, match=r"logits are \(12, 6\) and .* labels \(12, 2\); .* declares them by `outputs`"):
        MultiTaskTrain(Ranker(model))(batch)
    ranker = Ranker(model)
    ranker.outputs = model.outputs
    assert torch.equal(MultiTaskTrain(ranker)(batch)[0], MultiTaskTrain(model)(batch)[0])


class Twice(nn.Module):
    """Logits of two tasks, and half of them once more as those of a stream; then a column."""

    def __init__(self, outputs: Outputs) -> None:
        super().__init__()
        self.outputs = outputs

    def forward(self, dense: Tensor, sparse: object) -> Tensor:
        return torch.cat([dense, dense / 2, dense[:, :1]], dim=1)


def test_a_model_of_ones_own_declares_streams_and_added_losses() -> None:
    outputs = Outputs(TASKS, streams=1, added_losses=lambda columns, *_: columns[0, 4:].expand(2))
    batch = random_batch(1, LOG)
    loss, (losses, logits) = MultiTaskTrain(Twice(outputs))(batch)
    expected = multi_task_loss(batch.dense_features / 2, batch.labels) + batch.dense_features[0, 0]
    torch.testing.assert_close(losses, expected, rtol=0, atol=0)
    torch.testing.assert_close(loss, expected.sum(), rtol=0, atol=0)
    assert torch.equal(logits, batch.dense_features)


@pytest.mark.parametrize(
    ("outputs", "columns"), [(Outputs(TASKS, streams=1), 4), (Outputs(TASKS, 2, lambda *_: torch.zeros(2)), 6)]
)
def test_a_model_that_puts_out_other_columns_than_it_declares_is_refused(outputs: Outputs, columns: int) -> None:
    streams = outputs.streams
    with pytest.raises(UserError, match=rf"puts out \(12, 5\), but .* 2 tasks and {streams} streams, .* {columns} col"):
        MultiTaskTrain(Twice(outputs))(random_batch(1, LOG))


def test_weights_losses_and_links_that_do_not_fit_the_tasks_are_refused_at_once() -> None:
    model = duet()
    with pytest.raises(UserError, match=r"^MultiTaskTrain has 3 task_weights, but .* tasks click, like; give one"):
        MultiTaskTrain(model, (1.0, 1.0, 1.0))
    losses = losses_of_tasks(LossConfig(kinds={"a": "focal"}), ("a",))
    with pytest.raises(UserError, match=r"^MultiTaskTrain has 1 losses, but the model has the tasks click, like; give"):
        MultiTaskTrain(model, losses=losses)
    with pytest.raises(UserError, match=r"^the labels of like are numbers or levels, whose losses Multi"):
        MultiTaskTrain(duet(links={"like": NumberLink()}))
    with pytest.raises(UserError, match=r"^links has 'lke', but the tasks are click, like; did you mean 'like'"):
        duet(links={"lke": NumberLink()})
    train = MultiTaskTrain(
        duet(links={"like": NumberLink()}), losses=losses_of_tasks(LossConfig(), TASKS, {"like": "number"})
    )
    assert train(random_batch(1, LOG))[1][1].shape == (12, 2)
