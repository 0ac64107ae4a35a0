"""AFTB: the fused function is its reference, and an expert that overflowed reaches only the streams that read it."""

import dataclasses

import pytest
import torch
from torch import Tensor, nn

from stem_torchrec.models.aftb import aftb, aftb_reference
from stem_torchrec.models.build import build_model
from stem_torchrec.models.gated_experts import GatedExperts
from stem_torchrec.transfer.add_tasks import CLOSED

from reference import COLUMNS, random_batch
from runs import MODEL


@pytest.mark.parametrize(
    ("rows", "streams", "experts", "width"), [(5, 2, 3, 4), (6, 1, 1, 4), (7, 3, 10, 6), (4, 1, 5, 2), (0, 2, 3, 4)]
)
def test_the_fused_function_is_the_reference_in_value_and_all_gradients(
    rows: int, streams: int, experts: int, width: int
) -> None:
    torch.manual_seed(0)
    for trained in (
        torch.ones(streams, experts, dtype=torch.bool),
        torch.zeros(streams, experts, dtype=torch.bool),
        torch.rand(streams, experts) < 0.5,
    ):
        weights = torch.rand(rows, streams, experts, dtype=torch.float64, requires_grad=True)
        outputs = torch.randn(experts, rows, width, dtype=torch.float64, requires_grad=True)
        factors = torch.randn(rows, streams, width, dtype=torch.float64)
        fused, reference = (
            [mixed, *torch.autograd.grad((mixed * factors).sum(), (weights, outputs), allow_unused=True)]
            for mixed in (aftb(weights, outputs, trained), aftb_reference(weights, outputs, trained))
        )
        for value, expected in zip(fused, reference, strict=True):
            # Sums of at most 10 double-precision terms in another order. Autograd leaves out a gradient of zeros.
            expected = torch.zeros_like(value) if expected is None else expected
            torch.testing.assert_close(value, expected, rtol=1e-13, atol=1e-13)


def test_a_weight_of_zero_reads_nothing_of_an_expert_that_overflowed() -> None:
    weights = torch.tensor([[[0.0, 1.0], [0.5, 0.5]], [[0.0, 1.0], [0.5, 0.5]]], requires_grad=True)
    experts = torch.tensor([[[torch.inf, 1.0], [1.0, 1.0]], [[2.0, 2.0], [4.0, 4.0]]], requires_grad=True)
    mixed = aftb(weights, experts, torch.ones(2, 2, dtype=torch.bool))
    assert mixed[:, 0].tolist() == [[2.0, 2.0], [4.0, 4.0]]
    # The other stream does read it, in the first row.
    assert not mixed[0, 1].isfinite().any()
    assert mixed[1, 1].tolist() == [2.5, 2.5]
    gradients = torch.autograd.grad(mixed[:, 0].sum(), (weights, experts))
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert gradients[1][1].tolist() == [[1.0, 1.0], [1.0, 1.0]]


class _Overflowing(nn.Module):
    """The experts of a group after their weights have run away."""

    def __init__(self, experts: nn.Module) -> None:
        super().__init__()
        self.experts = experts

    def forward(self, x: Tensor) -> Tensor:
        return self.experts(x) * torch.inf


GROUPS = ("like", "share", "shared")
OWN_SHARED = {"like": ("like", "shared"), "share": ("share", "shared")}


@pytest.mark.parametrize(
    "reads", [OWN_SHARED, {**OWN_SHARED, "shared": GROUPS}, {**OWN_SHARED, "shared": ("shared",)}], ids=str
)
def test_experts_that_overflow_reach_only_the_streams_that_read_them(reads: dict[str, tuple[str, ...]]) -> None:
    torch.manual_seed(0)
    layer = GatedExperts(
        4,
        num_experts={"like": 2, "share": 1, "shared": 3},
        reads=reads,
        trains=reads,
        gate_inputs={stream: (stream,) for stream in reads},
        expert_hidden=(6, 5),
        gate_hidden=(3,),
    )
    layer.experts["share"] = _Overflowing(layer.experts["share"])
    outputs = layer({group: torch.randn(8, 4) for group in GROUPS})
    finite = {stream for stream, output in outputs.items() if output.isfinite().all()}
    assert finite == {stream for stream, groups in reads.items() if "share" not in groups} >= {"like"}
    sum(outputs[stream].square().sum() for stream in finite).backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all(), name
    assert all(p.grad is not None and p.grad.count_nonzero() for p in layer.experts["like"].parameters())


def test_closed_gates_keep_a_new_task_that_overflowed_out_of_the_trained_ones() -> None:
    columns = dataclasses.replace(COLUMNS, labels=("finish", "like", "share"))
    torch.manual_seed(0)
    model = build_model(dataclasses.replace(MODEL, num_layers=1), columns, table_device="cpu").model
    [layer] = model.layers
    for task in ("finish", "like"):
        # The experts: one of finish, like and share each, then the shared ones.
        layer.gates[task].mlp[-1].bias.data[2] = CLOSED
    batch = random_batch(1, columns)

    def logits_and_gradients() -> list[Tensor]:
        logits = model(batch.dense_features, batch.sparse_features)
        loss = logits[:, :2].square().sum()
        # What belongs to the new task itself overflows.
        others = [p for name, p in model.named_parameters() if "share" not in name.replace("/", ".").split(".")]
        gradients = torch.autograd.grad(loss, others)
        return [logits[:, :2], *gradients]

    before = logits_and_gradients()
    layer.experts["share"] = _Overflowing(layer.experts["share"])
    after = logits_and_gradients()
    assert not model(batch.dense_features, batch.sparse_features)[:, 2].isfinite().any()
    assert all(gradient.isfinite().all() for gradient in after)
    assert all(torch.equal(value, expected) for value, expected in zip(after, before, strict=True))


def test_a_stream_that_diverged_reaches_no_expert_that_it_does_not_read() -> None:
    torch.manual_seed(0)
    layer = GatedExperts(
        4,
        num_experts=dict.fromkeys(GROUPS, 2),
        reads=OWN_SHARED,
        trains=OWN_SHARED,
        gate_inputs={stream: (stream,) for stream in OWN_SHARED},
        expert_hidden=(5,),
        gate_hidden=(3,),
    )
    outputs = layer({group: torch.randn(8, 4) for group in GROUPS})
    (outputs["like"].sum() + outputs["share"].sum() * torch.inf).backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all() == (".like." in name), name
