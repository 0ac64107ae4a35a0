"""What experts may have beside linear layers and ReLU: each option equals its equations and leaves AFTB as it is."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from stem_torchrec.models.build import build_model
from stem_torchrec.models.frame import MultiTaskModel
from stem_torchrec.models.gated_experts import GatedExperts
from stem_torchrec.models.group_experts import ExpertParts
from stem_torchrec.models.table import with_arch
from stem_torchrec.models.trained_by import tasks_of_parameters
from stem_torchrec.starting.axis_labels import axes_of_weights
from stem_torchrec.starting.match_modules import match_modules
from stem_torchrec.starting.model_weights import ModelWeights

from distributed import run_ranks
from expert_formulas import expert, sigmoid, softmax
from reference import COLUMNS, TABLES, random_batch
from runs import MODEL, Run, batches_of_ranks, config_of, of_this_rank
from starts import predictions, save_run, start, with_columns_of
from test_kept_tasks import test_a_model_keeps_the_logits_of_some_tasks_and_no_weight_that_they_do_not_read as keeps
from test_start_from_state import CHANGES

KINDS = ("mlp", "norm", "cross", "cross_norm")
ALL = {"expert": "cross_norm", "feature_gate": True, "prior": ("uid",)}
GROUPS = {"like": 2, "share": 1, "shared": 3}
# Single-precision sums of some dozen terms in another order differ by 1e-7 to 1e-6 of their largest term.
ROUNDING = {"rtol": 1e-5, "atol": 1e-5}


def gate(weights: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    hidden = (x @ weights[f"{name}.mlp.0.weight"].T + weights[f"{name}.mlp.0.bias"]).relu()
    return hidden @ weights[f"{name}.mlp.2.weight"].T + weights[f"{name}.mlp.2.bias"]


def layer_by_formula(
    weights: dict[str, Tensor], x: dict[str, Tensor], streams: Sequence[str], parts: ExpertParts, own: bool
) -> dict[str, Tensor]:
    mixed = {}
    for stream in streams:
        summed = x[stream] + x["shared"]
        of_gate = softmax(gate(weights, f"gates.{stream}", summed))
        terms, column = [], 0
        for group, number in GROUPS.items():
            of_group = {n.removeprefix(f"experts.{group}."): w for n, w in weights.items() if f"experts.{group}." in n}
            for k in range(number):
                output = expert(of_group, k, x[group], parts.kind, parts.feature_gate, *parts.prior)
                weight = of_gate[:, column]
                column += 1
                if own and group == stream:
                    z = gate(weights, f"self_gates.{stream}", summed)
                    weight = weight + (softmax(z) if number > 1 else sigmoid(z))[:, k]
                terms.append(weight[:, None] * (output if group in (stream, "shared") else output.detach()))
        mixed[stream] = sum(terms)
    return mixed


PARTS = [
    *(ExpertParts(kind, feature_gate=gated) for kind, gated in product(KINDS, (False, True))),
    *(ExpertParts(kind, gated, [slice(2, 5)], cross_layers=3, rank=2) for kind, gated in product(KINDS, (False, True))),
]


@pytest.mark.parametrize(("parts", "own"), [*product(PARTS, (False, True))])
def test_a_layer_of_each_kind_of_experts_is_its_equations_to_the_gradients(parts: ExpertParts, own: bool) -> None:
    torch.manual_seed(0)
    streams = ("like", "share")
    layer = GatedExperts(
        6, num_experts=GROUPS, reads=dict.fromkeys(streams, tuple(GROUPS)),
        trains={stream: (stream, "shared") for stream in streams},
        gate_inputs={stream: (stream, "shared") for stream in streams},
        expert_hidden=(8, 4), gate_hidden=(5,), experts=parts, self_gate=own,
    )  # fmt: skip
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    weights = {name: p.detach().clone().requires_grad_() for name, p in layer.named_parameters()}
    x = {group: torch.randn(9, 6, requires_grad=True) for group in GROUPS}
    outputs, expected = layer(x), layer_by_formula(weights, x, streams, parts, own)
    factors = {stream: torch.randn(9, 4) for stream in streams}
    for stream in streams:
        torch.testing.assert_close(outputs[stream], expected[stream], **ROUNDING)
    of_layer, of_formula = ([*each, *x.values()] for each in (layer.parameters(), weights.values()))
    ours = torch.autograd.grad(sum((outputs[s] * factors[s]).sum() for s in streams), of_layer)
    # Raises if the formula does not use a parameter, and so if the layer has one too many.
    by_formula = torch.autograd.grad(sum((expected[s] * factors[s]).sum() for s in streams), of_formula)
    for name, gradient, other in zip([*weights, *x], ours, by_formula, strict=True):
        # Cross layers multiply by the input, so that gradients are several times as large.
        torch.testing.assert_close(gradient, other, rtol=1e-4, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("num_layers", [1, 2])
def test_with_every_option_a_tasks_loss_trains_only_its_own_weights_and_the_shared_ones(num_layers: int) -> None:
    model = build_model(replace(MODEL, **ALL, self_gate=True, num_layers=num_layers), COLUMNS)
    owners = {"finish": {0}, "like": {1}, "shared": {0, 1}}
    trained = tasks_of_parameters(model, tasks=2, dense_in_features=2)
    for name, tasks in trained.items():
        [owner] = [owners[word] for word in name.replace("/", ".").split(".") if word in owners]
        assert tasks == owner, name
    assert set(trained) == {name for name, _ in model.named_parameters()}


@pytest.mark.parametrize("arch", ["stem", "ple", "mmoe", "me_mmoe"])
def test_a_model_with_every_option_is_cut_down_to_a_task(arch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    own = {"self_gate": True} if arch in ("stem", "ple") else {}

    def with_options(config: Any, arch: str) -> Any:
        return with_arch(config, arch, **ALL, **own)

    monkeypatch.setattr("test_kept_tasks.with_arch", with_options)
    keeps(arch, ("like",))


def test_a_model_with_every_option_predicts_as_its_source_with_more_ids_features_and_tasks(tmp_path: Path) -> None:
    [(old, new, carried)] = run_ranks(1, started, tmp_path)
    for task, logits in old.items():
        # The sums of a layer have more terms, of 0, and so another order.
        torch.testing.assert_close(new[task], logits, **ROUNDING)
        assert logits.abs().max() > 0.02
    fresh = [line for line in carried.lines if line.status == "fresh"]
    assert all(line.of == ("share",) or line.item == "tables of city" for line in fresh)


def started(folder: Path) -> tuple[dict[str, Tensor], dict[str, Tensor], Any]:
    config = config_of("adagrad", "table_wise", model=replace(MODEL, **ALL, self_gate=True, num_task_experts=2))
    source, run = save_run(folder / "stem", config)
    new, carried = start(source, config, CHANGES["all"])
    batch = random_batch(9, missing=0.0)
    return predictions(run, batch), predictions(new, with_columns_of(batch, CHANGES["all"])), carried


def test_columns_of_the_input_are_named_in_cross_layers_and_gates() -> None:
    train = build_model(replace(MODEL, **ALL, self_gate=True), COLUMNS)
    axes = axes_of_weights(train, ["age", "height"])

    def whats(name: str) -> list[str | None]:
        return [axis and axis.what for axis in axes[f"model.layers.{name}"]]

    for group in ("like", "shared"):
        at = f"0.experts.{group}"
        assert whats(f"{at}.cross.W_kernels.1") == ["input column", None]
        assert whats(f"{at}.cross.V_kernels.1") == [None, "input column"]
        assert whats(f"{at}.cross.bias.0") == ["input column"]
        assert whats(f"{at}.feature_gate.down.weight") == [None, "input column"]
        assert whats(f"{at}.feature_gate.up.weight") == ["input column", None]
        assert whats(f"{at}.prior_gate.of_prior.weight") == [None, "prior column"]
        assert whats(f"{at}.prior_gate.of_input.weight") == [None, "input column"]
        assert whats(f"{at}.prior_gate.last.weight") == ["input column", None]
        assert whats(f"{at}.mlp.0.weight") == ["expert", "input column", None]
        assert whats(f"{at}.mlp.1.weight") == ["expert", None]
    assert whats("0.self_gates.like.mlp.2.bias") == ["expert"]
    assert whats("1.experts.like.cross.V_kernels.0") == [None, None]
    axes = axes_of_weights(build_model(replace(MODEL, prior=("tags", "tags")), COLUMNS), ["age", "height"])
    # A name would stand for two columns.
    assert whats("0.experts.like.prior_gate.of_prior.weight") == [None, None]


def test_a_prior_gate_continues_the_columns_of_the_same_features_whatever_their_order() -> None:
    def continued(*features: Sequence[str]) -> tuple[Tensor | None, str, str]:
        """The old places of the prior columns, and what becomes of the experts, in words."""
        old, new = (ModelWeights(replace(MODEL, prior=tuple(each)), COLUMNS) for each in features)
        matches, lines = match_modules(old, new, states="carried")
        [line] = [each for each in lines if each.item == "layers.0.experts" and each.of == ("like",)]
        match = matches.get("model.layers.0.experts.like.prior_gate.of_prior.weight")
        return match and match.axes[1], line.status, line.details

    assert continued(["uid"], ["uid"]) == (None, "carried", "")
    assert continued(["uid"], ["tags"]) == (None, "fresh", "no prior column is the same")
    places, *words = continued(["uid"], ["tags", "uid"])
    assert words == ["grown", "8 new prior columns"]
    assert places is not None
    assert places.tolist() == [*[-1] * 8, *range(8)]


def test_with_every_option_products_in_bf16_train_what_those_in_fp32_do() -> None:
    batch, gradients = random_batch(1, rows=64), []
    for bf16 in (False, True):
        torch.manual_seed(0)
        train = build_model(replace(MODEL, **ALL, self_gate=True), COLUMNS, table_device="cpu")
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss, _ = train(batch)
        loss.backward()
        gradients.append(torch.cat([p.grad.flatten() for p in train.parameters()]))
    # Products of 8 bits, through some ten layers: over draws off by 0.05 to 0.16; those of plain STEM by 0.01 to 0.06.
    assert (gradients[1] - gradients[0]).norm() < 0.3 * gradients[0].norm()
    assert not torch.equal(*gradients)


def after_steps(options: dict[str, Any]) -> tuple[list[Tensor], dict[str, Tensor]]:
    """The losses of three steps and the tables after them."""
    model = replace(MODEL, **options)
    run = Run.build(config_of("sgd", "row_wise", model=model, learning_rate=1.0))
    outputs = run.train(of_this_rank(batches_of_ranks(3, dist.get_world_size(), missing=0.3)))
    return [losses for losses, _ in outputs], {n: w for n, w in run.weights().items() if TABLES in n}


def test_two_ranks_train_a_model_with_every_option_as_one_does() -> None:
    options = {**ALL, "self_gate": True}
    [(losses, tables)], together = run_ranks(1, after_steps, options), run_ranks(2, after_steps, options)
    for step, loss in enumerate(losses):
        mean = sum(each[0][step] for each in together) / 2
        torch.testing.assert_close(mean, loss, rtol=1e-4, atol=1e-5)
    # Adam divides by the size of a dense gradient, which magnifies rounding.
    torch.testing.assert_close(together[0][1], tables, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("arch", ["stem", "mmoe", "me_ple"])
def test_options_that_are_not_given_leave_names_and_first_weights_as_they_were(arch: str) -> None:
    def built(**options: Any) -> dict[str, Tensor]:
        torch.manual_seed(0)
        model = build_model(with_arch(MODEL, arch, **options), COLUMNS, table_device="cpu").model
        assert isinstance(model, MultiTaskModel)
        return dict(model.state_dict())

    plain, gated = built(), built(feature_gate=True)
    assert all(torch.equal(weight, plain[name]) for name, weight in built(rank=2, cross_layers=3).items())
    crossed = {name: weight for name, weight in built(expert="cross").items() if "shared.cross.V_kernels" in name}
    layers = range(MODEL.num_layers if arch != "mmoe" else 1)
    assert [len(weight) for weight in crossed.values()] == [64 for _ in layers for _ in range(2)]
    assert not [name for name in plain if "feature_gate" in name or (".experts." in name and ".mlp." in name)]
    assert {name.replace(".mlp.", ".") for name in gated if "feature_gate" not in name} == {
        name.replace(".mlp.", ".") for name in plain
    }
