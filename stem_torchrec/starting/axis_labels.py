"""What the axes of dense weights mean: names of their positions, by which the weights of two models are matched.

The first layer of an expert has a column for each column of its group's input, which belongs to a feature; the last
layer of a gate has a row for each expert. So a model with one feature or task more has other columns or rows, and the
names tell which of them are the same:

    yesterday   layers.0.experts.like.0.weight   ("uid", 0) ... ("uid", 15)
    today       layers.0.experts.like.0.weight   ("uid", 0) ... ("uid", 15), ("city", 0) ... ("city", 15)

Which layers read the input is asked of the model itself.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchrec.modules.crossnet import LowRankCrossNet

from stem_torchrec.models.frame import MultiTaskModel
from stem_torchrec.models.gated_experts import GatedExperts
from stem_torchrec.models.gates import FeatureGate, Gate, PriorGate, SelfGate
from stem_torchrec.models.layers import BatchedLinear, NormedSwish
from stem_torchrec.models.loss import MultiTaskTrain
from stem_torchrec.tables import table_of

KeepsColumns = LowRankCrossNet | FeatureGate | PriorGate
"""Layers whose output has the columns of their first input."""
_CROSS_AXES = {"W_kernels": 0, "V_kernels": 1, "bias": 0}
"""The axis of a cross layer's weights that has its columns."""
CLOSED = -1e4
"""A gate's bias at which the softmax gives an expert the weight 0, exactly."""


@dataclass(frozen=True)
class Axis:
    """An axis whose positions have names."""

    what: str
    """What a position is, as `input column`."""
    names: tuple[Hashable, ...]
    """Of the positions."""
    start: float | None = None
    """What the positions start from that another model does not have; as they are initialised if None."""


Axes = tuple[Axis | None, ...]
"""Of a weight; None for an axis whose positions have no names, as hidden units."""


def axes_of_weights(train: MultiTaskTrain, dense: Sequence[str], *, gate_bias: float = CLOSED) -> dict[str, Axes]:
    """The axes of every weight that is not a table, by name.

    Args:
        train: a model with its loss, before it is sharded; its tables may be on the meta device. It is left in eval
            mode.
        dense: names of the dense features.
        gate_bias: logit that an expert starts from in a gate that did not read it.

    Example::

        axes_of_weights(train, ["age"])["model.layers.0.gates.like.mlp.4.bias"]
        # (Axis("expert", (("finish", 0), ("like", 0), ("shared", 0), ...), -1e4),)
    """
    model = train.model
    assert isinstance(model, MultiTaskModel)
    axes: dict[str, list[Axis | None]] = {
        name: [None] * weight.dim() for name, weight in train.state_dict().items() if table_of(name) is None
    }
    for name, layer in train.named_modules():
        match layer:
            case BatchedLinear() | NormedSwish():
                for kind in ("weight", "bias"):
                    axes[f"{name}.{kind}"][0] = Axis("expert", tuple(range(len(layer.weight))))
            case GatedExperts():
                for stream, last in last_layers_of_gates(layer).items():
                    experts = names_of_experts(layer, layer.reads[stream])
                    axes[f"{name}.{last}.weight"][0] = Axis("expert", experts, start=0.0)
                    axes[f"{name}.{last}.bias"][0] = Axis("expert", experts, start=gate_bias)
                for stream, gate in layer.self_gates.items():
                    own = names_of_experts(layer, [stream])
                    axes[f"{name}.self_gates.{stream}.{_last_layer(gate)}.weight"][0] = Axis("expert", own, start=0.0)
                    axes[f"{name}.self_gates.{stream}.{_last_layer(gate)}.bias"][0] = Axis("expert", own, gate_bias)
    for group in model.dense_arch:
        name = f"model.dense_arch.{group}"
        axes[f"{name}.weight"][1] = Axis("dense feature", tuple(dense), start=0.0)
        projected = Axis("projected column", tuple(range(train.get_parameter(f"{name}.bias").shape[0])))
        axes[f"{name}.weight"][0] = axes[f"{name}.bias"][0] = projected
    columns = _names_of_input(model)
    for name, (layer, read) in _layers_that_read_the_input(train, model).items():
        what = "input column" if len(read) == len(columns) else "prior column"
        for weight, axis in _axes_of_columns(layer):
            axes[f"{name}.{weight}"][axis] = Axis(what, tuple(columns[j] for j in read), start=0.0)
    return {name: tuple(of_weight) for name, of_weight in axes.items()}


def last_layers_of_gates(layer: GatedExperts) -> dict[str, str]:
    """By stream, the name of the gate's last layer, whose weight and bias have a row for each expert that is read."""
    names = {}
    for stream, gate in layer.gates.items():
        names[stream] = f"gates.{stream}.{_last_layer(gate)}"
    return names


def _last_layer(gate: nn.Module) -> str:
    assert isinstance(gate, Gate | SelfGate)
    return f"mlp.{len(gate.mlp) - 1}"


def names_of_experts(layer: GatedExperts, groups: Sequence[str]) -> tuple[tuple[str, int], ...]:
    """The experts of some groups, in the order in which a gate that reads these groups has them."""
    return tuple((group, k) for group in groups for k in range(layer.num_experts[group]))


def _names_of_input(model: MultiTaskModel) -> tuple[Hashable, ...]:
    """Feature and number of each column of a group's input; the projected dense features, at its end, have no name."""
    names: list[Hashable] = [(feature, j) for feature, width in model.inputs.columns for j in range(width)]
    return (*names, *((None, j) for j in range(model.in_features - len(names))))


def _axes_of_columns(layer: nn.Module) -> list[tuple[str, int]]:
    """The weights of a layer that have an axis for the columns of its input, and which axis it is."""
    match layer:
        case LowRankCrossNet():
            numbers = range(len(layer.bias))
            return [(f"{kind}.{i}", axis) for kind, axis in _CROSS_AXES.items() for i in numbers]
        case FeatureGate():
            # Its first layer is a linear one that reads the input.
            return [("up.weight", 0)]
        case PriorGate():
            return [("last.weight", 0), ("last.bias", 0)]
    return [("weight", 1)]


@torch.no_grad()
def _layers_that_read_the_input(
    train: MultiTaskTrain, model: MultiTaskModel
) -> dict[str, tuple[nn.Module, Sequence[int]]]:
    """By name, the layers whose input is that of a group, a sum of those of several, or some columns of one.

    With each are the columns that it reads, in its order. All groups get the same input, whose numbers all differ, so
    what these layers see is a multiple of it, or some of its numbers. Cross layers and gates of columns, whose output
    has the columns of their input, hand it on as it is.
    """
    order = torch.randperm(model.in_features, generator=torch.Generator().manual_seed(0))
    x = 0.5 + (order + 0.5).unsqueeze(0) / model.in_features
    places = {number: j for j, number in enumerate(x.flatten().tolist())}
    layers: dict[str, tuple[nn.Module, Sequence[int]]] = {}

    def look_at(name: str, layer: nn.Module, seen: Tensor) -> None:
        if seen.shape[-1] == model.in_features:
            times = (seen / x).flatten()
            if times[0] > 0 and torch.allclose(times, times[0]):
                layers[name] = layer, range(model.in_features)
                return
        numbers = seen.flatten().tolist()
        # No names would tell apart the columns of a feature that --model.prior has twice.
        if all(number in places for number in numbers) and len(set(numbers)) == len(numbers):
            layers[name] = layer, [places[number] for number in numbers]

    handles = []
    for name, layer in train.named_modules():
        if isinstance(layer, nn.Linear | BatchedLinear | KeepsColumns):
            handles.append(
                layer.register_forward_pre_hook(lambda layer, inputs, name=name: look_at(name, layer, inputs[0]))
            )
        if isinstance(layer, KeepsColumns):
            handles.append(layer.register_forward_hook(lambda _, inputs, output: inputs[0]))
    model.eval().arch(dict.fromkeys(model.groups, x))
    for handle in handles:
        handle.remove()
    return layers
