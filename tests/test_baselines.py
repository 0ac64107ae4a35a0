"""The baselines: each equals its equations, and each loss reaches the tables that its name says."""

import dataclasses
import math
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor
from torchrec.datasets.utils import Batch

from stem_torchrec.data.files import Columns
from stem_torchrec.models.build import build_model
from stem_torchrec.models.frame import MultiTaskModel
from stem_torchrec.models.stem import STEMOptions
from stem_torchrec.models.table import MODELS, with_arch
from stem_torchrec.runtime.errors import UserError

from expert_formulas import sigmoid, softmax
from reference import Parts, logits_by_formula, random_batch, sparse_features

TASKS = ("click", "like", "share")
COLUMNS = Columns(sparse=sparse_features(uid=50, tags=7), dense=("age", "price"), labels=TASKS, group=None)
CONFIG = STEMOptions(
    embedding_dim=4,
    num_layers=2,
    num_shared_experts=3,
    num_task_experts=2,
    expert_hidden=(8, 6),
    gate_hidden=(5,),
    tower_hidden=(5,),
    embedding_std=1.0,
)
# Single-precision sums of some dozen terms in another order differ by 1e-7 to 1e-6 of their largest term.
ROUNDING = {"rtol": 1e-5, "atol": 1e-5}

Formula = Callable[[Parts, Batch], Tensor]


def single_task(parts: Parts, batch: Batch) -> Tensor:
    x = parts.inputs(batch, TASKS)
    return parts.towers({t: parts.hidden(f"bottoms.{t}", x[t], 2) for t in TASKS}, TASKS)


def shared_bottom(parts: Parts, batch: Batch) -> Tensor:
    bottom = parts.hidden("bottom", parts.inputs(batch, ["shared"])["shared"], 2)
    return parts.towers(dict.fromkeys(TASKS, bottom), TASKS)


def mixture(parts: Parts, x: Tensor, gate: str, numbers: dict[str, int], inputs: dict[str, Tensor], at: str) -> Tensor:
    """Sum over the experts of the groups in `numbers` of the gate's weight for it, times its output."""
    weights = parts.gate(f"{at}.gates.{gate}", x)
    outputs = [parts.expert(f"{at}.experts.{g}", k, inputs[g]) for g, n in numbers.items() for k in range(n)]
    return sum(weights[:, i, None] * output for i, output in enumerate(outputs))


def omoe(parts: Parts, batch: Batch) -> Tensor:
    x = parts.inputs(batch, ["shared"])
    mixed = mixture(parts, x["shared"], "shared", {"shared": 3 + 3 * 2}, x, "mixture")
    return parts.towers(dict.fromkeys(TASKS, mixed), TASKS)


def mmoe(parts: Parts, batch: Batch) -> Tensor:
    x = parts.inputs(batch, ["shared"])
    number = {"shared": 3 + 3 * 2}
    return parts.towers({t: mixture(parts, x["shared"], t, number, x, "mixture") for t in TASKS}, TASKS)


def me_mmoe(parts: Parts, batch: Batch) -> Tensor:
    x = parts.inputs(batch, [*TASKS, "shared"])
    numbers = {**dict.fromkeys(TASKS, 2), "shared": 3}
    return parts.towers({t: mixture(parts, x[t], t, numbers, x, "mixture") for t in TASKS}, TASKS)


def layer_on_layer(parts: Parts, x: dict[str, Tensor]) -> Tensor:
    everyone = {**dict.fromkeys(TASKS, 2), "shared": 3}
    shared = mixture(parts, x["shared"], "shared", everyone, x, "layers.0")
    for at in ("layers.0", "layers.1"):
        mixed = {t: mixture(parts, x[t], t, {t: 2, "shared": 3}, x, at) for t in TASKS}
        x = {**mixed, "shared": shared}
    return parts.towers(x, TASKS)


def ple(parts: Parts, batch: Batch) -> Tensor:
    return layer_on_layer(parts, dict.fromkeys([*TASKS, "shared"], parts.inputs(batch, ["shared"])["shared"]))


def me_ple(parts: Parts, batch: Batch) -> Tensor:
    return layer_on_layer(parts, parts.inputs(batch, [*TASKS, "shared"]))


def aitm(parts: Parts, batch: Batch) -> Tensor:
    x = parts.inputs(batch, ["shared"])["shared"]
    q = [parts.hidden(f"bottoms.{t}", x, 2) for t in TASKS]
    z = [q[0]]
    for t in (1, 2):
        sources = [parts.linear(f"transfers.{TASKS[t - 1]}", z[t - 1]), q[t]]
        value, key, query = ([parts.linear(f"attention.{h}", u) for u in sources] for h in ("h1", "h2", "h3"))
        scores = [(k * h).sum(dim=1) / math.sqrt(6) for k, h in zip(key, query, strict=True)]
        total = sum(score.exp() for score in scores)
        z.append(sum((score.exp() / total)[:, None] * v for score, v in zip(scores, value, strict=True)))
    return parts.towers(dict(zip(TASKS, z, strict=True)), TASKS)


def esmm(parts: Parts, batch: Batch) -> Tensor:
    x = parts.inputs(batch, ["shared"])["shared"]
    steps = parts.towers({t: parts.hidden(f"bottoms.{t}", x, 2) for t in TASKS}, TASKS).double().sigmoid()
    p = torch.stack([steps[:, 0], steps[:, 0] * steps[:, 1], steps[:, 0] * steps[:, 1] * steps[:, 2]], dim=1)
    return (p / (1 - p)).log().float()


def escm2(parts: Parts, batch: Batch) -> Tensor:
    return esmm(parts, batch)


def dcmt(parts: Parts, batch: Batch) -> Tensor:
    x = parts.inputs(batch, ["shared"])["shared"]
    hidden = {t: parts.hidden(f"further_towers.{t}", parts.hidden(f"bottoms.{t}", x, 2), 1) for t in TASKS[1:]}
    further = [parts.linear(f"further_towers.{t}.2", hidden[t]) for t in TASKS[1:]]
    return torch.cat([esmm(parts, batch), *further], dim=1)


def home(parts: Parts, batch: Batch) -> Tensor:
    x = parts.inputs(batch, ["shared"])["shared"]

    def layer(at: str, stream: str, numbers: dict[str, int], inputs: dict[str, Tensor], seen: Tensor) -> Tensor:
        of_gate, name = parts.gate(f"{at}.gates.{stream}", seen), f"{at}.self_gates.{stream}.mlp"
        of_self = softmax(parts.linear(f"{name}.2", parts.hidden(name, inputs[stream], 1)))
        mixed, column = torch.zeros(()), 0
        for group, number in numbers.items():
            for k in range(number):
                weight = of_gate[:, column] + (of_self[:, k] if group == stream else 0)
                output = parts.expert(f"{at}.experts.{group}", k, inputs[group], "norm", True)
                mixed = mixed + weight[:, None] * output
                column += 1
        return mixed

    of_meta = {"+all": x, "shared": x}
    z_s = layer("meta", "shared", {"shared": 3}, of_meta, x)
    z_c = layer("meta", "+all", {"+all": 3, "shared": 3}, of_meta, x)
    of_local, both = {**dict.fromkeys(TASKS, z_c), "+all": z_c, "shared": z_s}, torch.cat([z_c, z_s], dim=1)
    return parts.towers({t: layer("local", t, {t: 2, "+all": 3, "shared": 3}, of_local, both) for t in TASKS}, TASKS)


def pepnet(parts: Parts, batch: Batch) -> Tensor:
    x = parts.inputs(batch, ["shared"])["shared"]

    def gated(name: str, h: Tensor, seen: Tensor, prior: Tensor) -> Tensor:
        of_input = seen.detach() @ parts.weights[f"{name}.of_input.weight"].T
        hidden = (parts.linear(f"{name}.of_prior", prior) + of_input).relu()
        return h * 2 * sigmoid(parts.linear(f"{name}.last", hidden))

    # The columns of uid are the domain, those of tags the prior.
    embeddings, outputs = gated("domain_gate", x, x, x[:, :4]), {}
    for t in TASKS:
        h = embeddings
        for i in range(2):
            h = gated(f"bottoms.{t}.gates.{i}", h, embeddings, x[:, 4:8])
            h = parts.linear(f"bottoms.{t}.layers.{i}.0", h).relu()
        outputs[t] = h
    return parts.towers(outputs, TASKS)


def duet(parts: Parts, batch: Batch) -> Tensor:
    def stream(number: int) -> dict[str, Tensor]:
        """The weights with this stream's towers alone, by the names that a single tower has."""
        towers = {name: name.split(".") for name in parts.weights if name.startswith("towers.")}
        of_stream = {".".join([*w[:2], *w[3:]]): parts.weights[n] for n, w in towers.items() if w[2] == str(number)}
        return {name: weight for name, weight in parts.weights.items() if name not in towers} | of_stream

    # By default STEM's experts have cross layers, and the own streams none.
    stem = logits_by_formula(stream(0), batch, TASKS, dataclasses.replace(CONFIG, expert="cross"), COLUMNS)
    own = single_task(Parts(stream(1), CONFIG), batch)
    return torch.cat([0.8 * stem + 0.2 * own, stem, own], dim=1)


FORMULAS: dict[str, Formula] = {
    f.__name__: f
    for f in (duet, single_task, shared_bottom, omoe, mmoe, ple, home, pepnet, aitm, esmm, escm2, dcmt, me_mmoe, me_ple)
}
OPTIONS: dict[str, dict[str, object]] = {"pepnet": {"prior": ("tags",), "domain": ("uid",)}}


def build(arch: str, *, tasks: Sequence[str] = TASKS, layout: str = "split", layers: int = 2) -> MultiTaskModel:
    torch.manual_seed(0)
    config = with_arch(dataclasses.replace(CONFIG, layout=layout, num_layers=layers), arch, **OPTIONS.get(arch, {}))
    model = build_model(config, dataclasses.replace(COLUMNS, labels=tuple(tasks)), table_device="cpu").model
    assert isinstance(model, MultiTaskModel)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def test_every_baseline_has_a_formula() -> None:
    assert set(MODELS) == {"stem", *FORMULAS}


@pytest.mark.parametrize("arch", FORMULAS)
def test_logits_and_gradients_are_those_of_the_equations(arch: str) -> None:
    model, batch = build(arch), random_batch(1, COLUMNS)
    weights = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}
    logits, expected = model(batch.dense_features, batch.sparse_features), FORMULAS[arch](Parts(weights, CONFIG), batch)
    torch.testing.assert_close(logits, expected, **ROUNDING)
    factors = torch.randn(logits.shape)
    # Raises if the formula does not use a parameter, and so if the model has one too many.
    by_formula = torch.autograd.grad((expected * factors).sum(), list(weights.values()))
    ours = torch.autograd.grad((logits * factors).sum(), list(model.parameters()))
    for name, gradient, other in zip(weights, ours, by_formula, strict=True):
        torch.testing.assert_close(gradient, other, **ROUNDING, msg=lambda text, name=name: f"{name}: {text}")


SHARED_ONLY = {t: {"shared"} for t in TASKS}
EVERYTHING = {t: {*TASKS, "shared"} for t in TASKS}
OWN_SHARED = {t: {t, "shared"} for t in TASKS}


@pytest.mark.parametrize(
    ("arch", "layers", "reached"),
    [
        ("stem", 2, OWN_SHARED),
        ("duet", 2, OWN_SHARED),
        ("single_task", 1, {t: {t} for t in TASKS}),
        *(
            (arch, 1, SHARED_ONLY)
            for arch in ("shared_bottom", "omoe", "mmoe", "ple", "home", "pepnet", "aitm", "esmm", "escm2", "dcmt")
        ),
        ("me_mmoe", 1, EVERYTHING),
        ("me_ple", 1, OWN_SHARED),
        # The shared stream of the first layer reads the experts of all tasks.
        ("me_ple", 2, EVERYTHING),
    ],
)
def test_each_loss_reaches_the_tables_that_the_name_says(arch: str, layers: int, reached: dict[str, set[str]]) -> None:
    model, batch = build(arch, layers=layers), random_batch(1, COLUMNS, missing=0)
    for column, task in enumerate(TASKS):
        model.zero_grad()
        model(batch.dense_features, batch.sparse_features)[:, column].sum().backward()
        moved = {
            name.split(".")[-2].partition("/")[0]
            for name, p in model.sparse_arch.named_parameters()
            if p.grad is not None and p.grad.count_nonzero() > 0
        }
        assert moved == reached[task]


@pytest.mark.parametrize("arch", MODELS)
def test_packed_tables_say_the_same(arch: str) -> None:
    split, packed = build(arch), build(arch, layout="packed")
    weights = dict(split.named_parameters())
    for name, parameter in packed.named_parameters():
        table = name.split(".")[-2]
        if "/" in table:
            groups, _, feature = table.partition("/")
            columns = [weights[name.replace(table, f"{group}/{feature}")] for group in groups.split("+")]
            parameter.data = torch.cat([c.detach() for c in columns], dim=1)
        else:
            parameter.data = weights[name].detach()
    batch = random_batch(1, COLUMNS)
    arguments = (batch.dense_features, batch.sparse_features)
    torch.testing.assert_close(packed(*arguments), split(*arguments), rtol=0, atol=0)


@pytest.mark.parametrize(("arch", "name"), [("aitm", "AITM"), ("esmm", "ESMM"), ("escm2", "ESCM2"), ("dcmt", "DCMT")])
def test_a_model_of_steps_refuses_a_single_task(arch: str, name: str) -> None:
    with pytest.raises(UserError, match=f"^{name} takes tasks in an order, .* but has only click; give two or more"):
        build(arch, tasks=["click"])


def test_a_step_of_esmm_is_never_likelier_than_the_one_before_even_where_rounding_ends() -> None:
    model = build("esmm")
    towers = torch.tensor([[200.0, 200.0, 200.0], [-200.0, 5.0, 200.0], [3.0, -200.0, 200.0]], requires_grad=True)
    logits = model.logits(towers)
    assert logits.isfinite().all()
    assert (logits.diff(dim=1) <= 0).all()
    logits.sum().backward()
    assert towers.grad is not None
    assert towers.grad.isfinite().all()


@pytest.mark.parametrize("changes", [{"num_layers": 0}, {"num_shared_experts": 0}, {"expert_hidden": ()}])
def test_sizes_below_one_are_refused(changes: dict[str, object]) -> None:
    for arch in FORMULAS:
        config = with_arch(dataclasses.replace(CONFIG, num_task_experts=0, **changes), arch)
        if arch in ("ple", "me_ple", "me_mmoe") or "expert_hidden" in changes:
            with pytest.raises(UserError, match="but must be at least 1"):
                build_model(config, COLUMNS)


@pytest.mark.parametrize("arch", ["stem", "single_task", "mmoe"])
def test_the_penalty_on_embeddings_is_part_of_the_gradient_of_rows_that_train_them(arch: str) -> None:
    """Of the loss of one task with missing labels: the gradient of its rows' norm in the tables that it trains."""
    batch = random_batch(1, COLUMNS, rows=40)
    known = ~batch.labels[:, 1].isnan()
    gradients = []
    for strength in (0.0, 0.3):
        config = with_arch(dataclasses.replace(CONFIG, num_layers=1, embedding_l2=strength), arch)
        torch.manual_seed(0)
        model = build_model(config, COLUMNS, table_device="cpu").model
        assert isinstance(model, MultiTaskModel)
        logits = model(batch.dense_features, batch.sparse_features)
        logits[known, 1].sum().backward()
        gradients.append({n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in model.named_parameters()})
    pooled = model.sparse_arch(batch.sparse_features)
    trained = [group for group in pooled if group in ("like", "shared")]
    penalty = 0.3 / 2 * sum(pooled[group][known].square().sum() for group in trained) / len(known)
    names, parameters = zip(*model.named_parameters(), strict=True)
    by_formula = torch.autograd.grad(penalty, parameters, allow_unused=True)
    assert penalty > 0
    for name, added in zip(names, by_formula, strict=True):
        expected = gradients[0][name] + (0 if added is None else added)
        torch.testing.assert_close(gradients[1][name], expected, **ROUNDING)
