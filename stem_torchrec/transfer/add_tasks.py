"""Adding tasks to a trained STEM: what it has learned is taken over, what belongs to a new task starts fresh."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from stem_torchrec.config.files import load_config
from stem_torchrec.data.schema import load_schema
from stem_torchrec.models.layers import Gate
from stem_torchrec.models.stem import STEM, STEMLayer
from stem_torchrec.runtime.errors import UserError, nearest
from stem_torchrec.sharding.placement import some
from stem_torchrec.tables import TableTensor, groups_of, table_feature, table_group, table_name
from stem_torchrec.training.run_folder import CONFIG_FILE
from stem_torchrec.transfer.weight_source import Source, match_tables, open_source, size_of, weights_of

CLOSED = -1e4
"""A gate's bias at which the softmax gives an expert a weight of exactly 0."""

T = TypeVar("T")


@torch.no_grad()
def add_tasks(
    model: nn.Module,
    source: Source,
    *,
    trained: Sequence[str] | None = None,
    gate_bias: float = CLOSED,
    tables_from: str | None = None,
) -> tuple[str, ...]:
    """Gives a STEM the weights of a trained one that lacks some of its tasks; returns those.

    All ranks call it, between sharding and the first batch. The tables, experts, gates and towers of the trained tasks
    and the shared ones are taken over bit for bit, wherever a task stands now; what belongs to a new task keeps the
    weights it has. Only the last layer of a trained gate grows, if it reads all experts: by a row of zeros and
    `gate_bias` for each new expert. Optimizer states are not taken over.

    By default these gates are closed: a new expert has a weight of exactly 0 in a trained task. So trained tasks
    predict what they did, but for the last bits, as products and sums over more experts may be rounded in another
    order. And they never come to read the new experts, as a weight of exactly 0 has no gradient. A larger bias opens
    the gates: at -5 a new expert starts with e^-5 = 0.7 % of the weight of one whose logit is 0, which moves the
    predictions by about as much, and learns from there.

    Training on the labels of the new task alone leaves all that is the trained tasks' own as it is. It does train the
    shared tables and experts, so that the trained tasks' predictions change.

    Args:
        model: a module with one STEM in the split layout, sharded by any plan or not.
        source: a run folder, a checkpoint folder or a state dict.
        trained: the tasks of the trained model in the order of its logits, which its gates' rows follow; only a run
            folder tells them by itself.
        gate_bias: logit of a new expert in the trained gates.
        tables_from: a trained task, or shared, whose tables the new tasks' start from; fresh if None.

    Raises UserError, before it changes a weight, where the two models differ in more than their tasks.

    Example::

        add_tasks(model, "runs/finish-and-like", tables_from="shared")  # ("share",)
    """
    if not math.isfinite(gate_bias):
        raise UserError(f"the gate bias is {gate_bias}, but must be finite; {CLOSED:g} closes a gate.")
    stem = _only_stem(model)
    saved, weights = open_source(source), weights_of(model)
    prefix, here = _weights_of_stem(weights, "this model")
    saved_prefix, there = _weights_of_stem(saved.sizes, saved.where)
    trained = tuple(trained or _tasks_of_run(source))
    towers = {name.split(".")[1] for name in there if name.startswith("towers.")}
    if towers != set(trained):
        raise UserError(f"{saved.where} was trained on {some(sorted(towers))}, not on {some(trained)}.")
    if lost := [task for task in trained if task not in stem.tasks]:
        raise UserError(f"{saved.where} was trained on {some(trained)}; this model must keep {some(lost)}.")
    new = tuple(task for task in stem.tasks if task not in trained)
    _check_layout(here, stem.tasks, "this model")
    _check_layout(there, trained, saved.where)

    gates = _gates_of_trained(stem, trained)
    for name in sorted(there.keys() | here.keys()):
        size = size_of(here[name]) if name in here else None
        if size and name in gates:
            size = (len(gates[name]), *size[1:])
        if there.get(name) != size and not (name not in there and _group(name) in new):
            raise UserError(
                f"{saved.where} holds another model: {name} is {there.get(name, 'missing')} there and, without the "
                f"new tasks, {size or 'missing'} in this model."
            )
    grown = {name: here[name].new_empty(there[name]) for name in gates}
    targets = [(saved_prefix + name, grown.get(name, here[name])) for name in there]
    if tables_from is not None:
        groups = groups_of(trained)
        if tables_from not in groups:
            known = f"{some(groups)}{nearest(tables_from, groups)}"
            raise UserError(f"{saved.where} has no tables of {tables_from!r}, only of {known}")
        for tensor in _tables(here):
            if table_group(tensor.table) in new:
                source_tensor = replace(tensor, table=table_name(tables_from, table_feature(tensor.table)))
                target = match_tables(saved, weights, prefix + tensor.name, saved_prefix + source_tensor.name)
                targets.append(target)
    saved.read(targets)
    for name, old in grown.items():
        here[name].fill_(gate_bias if name.endswith("bias") else 0.0)
        here[name][gates[name]] = old
    return new


def _tasks_of_run(source: Source) -> Sequence[str]:
    folder = None if isinstance(source, Mapping) else Path(source)
    if folder is None or not (folder / CONFIG_FILE).exists():
        raise UserError("say which tasks the trained model has, in the order of its logits: trained=[...].")
    return load_config(str(folder / CONFIG_FILE)).data.labels or load_schema(str(folder)).labels


def _only_stem(model: nn.Module) -> STEM:
    stems = [module for module in model.modules() if isinstance(module, STEM)]
    if len(stems) != 1:
        raise UserError(f"the model holds {len(stems) or 'no'} STEM, but tasks are added to exactly one.")
    return stems[0]


def _weights_of_stem(weights: Mapping[str, T], where: str) -> tuple[str, dict[str, T]]:
    """What stands before a STEM's own names of its weights, and the weights by those names."""
    found = {match[1] for name in weights if (match := re.fullmatch(r"((?:.*\.)?)towers\.[^.]+\.0\.weight", name))}
    if len(found) != 1:
        raise UserError(f"{where} holds {len(found) or 'no'} models with towers, but must hold one STEM.")
    prefix = found.pop()
    own = tuple(f"{prefix}{part}." for part in ("sparse_arch", "dense_arch", "layers", "towers"))
    return prefix, {name.removeprefix(prefix): weight for name, weight in weights.items() if name.startswith(own)}


def _tables(names: Iterable[str]) -> list[TableTensor]:
    return [tensor for name in sorted(names) if (tensor := TableTensor.parse(name)) is not None]


def _check_layout(names: Iterable[str], tasks: Sequence[str], where: str) -> None:
    for tensor in _tables(names):
        if table_group(tensor.table) not in groups_of(tasks):
            raise UserError(
                f"{where} has the table {tensor.table!r}, of no single group; tasks are added in the split layout."
            )


def _group(name: str) -> str:
    """The group that a weight of a STEM belongs to, by its name."""
    tensor = TableTensor.parse(name)
    if tensor is not None:
        return table_group(tensor.table)
    match = re.match(r"(?:layers\.\d+\.)?(?:dense_arch|experts|gates|towers)\.([^.]+)\.", name)
    assert match, f"{name} belongs to no group"
    return match[1]


def _gates_of_trained(stem: STEM, trained: Sequence[str]) -> dict[str, list[int]]:
    """The weights of the last layers of the gates that there were before, and where their rows are now, in order."""
    rows = {}
    for name, layer in stem.named_modules():
        if isinstance(layer, STEMLayer):
            for stream, gate in layer.gates.items():
                assert isinstance(gate, Gate)
                if stream in groups_of(trained):
                    for kind in ("weight", "bias"):
                        rows[f"{name}.gates.{stream}.mlp.{len(gate.mlp) - 1}.{kind}"] = _rows(layer, stream, trained)
    return rows


def _rows(layer: STEMLayer, stream: str, trained: Sequence[str]) -> list[int]:
    """Where a gate has the experts of the groups that there were before."""
    rows, start = {}, 0
    for group in layer.reads[stream]:
        rows[group] = range(start, start + layer.num_experts[group])
        start += layer.num_experts[group]
    return [row for group in groups_of(trained) if group in rows for row in rows[group]]
