"""Adds tasks to a trained STEM: the weights of its tasks are copied, those of the new tasks start fresh."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor, nn

from stem_torchrec.data.schema import load_schema
from stem_torchrec.models.gated_experts import GatedExperts
from stem_torchrec.models.stem import STEM
from stem_torchrec.models.weight_groups import group_of
from stem_torchrec.runtime.errors import UserError, nearest
from stem_torchrec.runtime.store_path import path_of
from stem_torchrec.sharding.placement import some
from stem_torchrec.starting.axis_labels import CLOSED, last_layers_of_gates, names_of_experts
from stem_torchrec.tables import TableTensor, groups_of, table_feature, table_group, table_groups, table_name
from stem_torchrec.training.configuration import load_config
from stem_torchrec.training.run_folder import CONFIG_FILE
from stem_torchrec.transfer.weight_source import Source, match_tables, open_source, read_into, size_of, weights_by_name

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
    """Fills a STEM from a trained one that lacks some of its tasks; returns the new tasks.

    All ranks call it, between sharding and the first batch. The tables, experts, gates and towers of the trained tasks
    and of the shared group are copied bit for bit, also if the tasks are in another order; the weights of a new task
    stay as they are. The last layer of a trained gate that reads all experts grows: for each new expert by a row of
    zeros and `gate_bias`. Optimizer states are not copied.

    By default the gates are closed: a new expert has a weight of exactly 0 in a trained task. So trained tasks predict
    the same as before except for the last bits, because products and sums over more experts may be rounded in another
    order. They also never learn to read the new experts, as a weight of exactly 0 has no gradient. A larger bias opens
    the gates: at -5 a new expert starts with e^-5 = 0.7 % of the weight of one whose logit is 0, which moves the
    predictions by about as much, and its gate learns from there.

    Training on the labels of the new task alone does not change the trained tasks' own weights. It does change the
    shared tables and experts, and with them the trained tasks' predictions.

    Args:
        model: a module with one STEM in the split layout, sharded by any plan or not.
        source: a run folder, a checkpoint folder or a state dict.
        trained: the tasks of the trained model in the order of its logits, which its gates' rows follow; not needed for
            a run folder, which records them.
        gate_bias: logit of a new expert in the trained gates.
        tables_from: a trained task, or shared, whose tables are copied into those of the new tasks; fresh if None.

    Raises UserError, before it changes a weight, if the two models differ in more than their tasks.

    Example::

        # "runs/finish-and-like" has the tasks finish and like, model has finish, like and share.
        add_tasks(model, "runs/finish-and-like", tables_from="shared")  # ("share",)
    """
    if not math.isfinite(gate_bias):
        raise UserError(f"the gate bias is {gate_bias}, but must be finite; {CLOSED:g} closes a gate.")
    stem = _only_stem(model)
    weight_source, weights = open_source(source), weights_by_name(model)
    prefix, stem_weights = _weights_of_stem(weights, "this model")
    source_prefix, source_sizes = _weights_of_stem(weight_source.sizes, weight_source.name)
    trained = tuple(trained or _tasks_of_run(source))
    _check_tasks(stem, trained, source_sizes, where=weight_source.name)
    new = tuple(task for task in stem.tasks if task not in trained)
    _check_layout(stem_weights, "this model")
    _check_layout(source_sizes, weight_source.name)
    gates = _gates_of_trained(stem, trained)
    _check_sizes(stem_weights, source_sizes, new=new, gates=gates, where=weight_source.name)

    # A gate that grows is read into a tensor of its old size first.
    grown = {name: stem_weights[name].new_empty(source_sizes[name]) for name in gates}
    targets = [(source_prefix + name, grown.get(name, stem_weights[name])) for name in source_sizes]
    if tables_from is not None:
        groups = groups_of(trained)
        if tables_from not in groups:
            known = f"{some(groups)}{nearest(tables_from, groups)}"
            raise UserError(f"{weight_source.name} has no tables of {tables_from!r}, only of {known}")
        for tensor in _tables(stem_weights):
            if table_group(tensor.table) in new:
                trained_tensor = replace(tensor, table=table_name(tables_from, table_feature(tensor.table)))
                target, name = prefix + tensor.name, source_prefix + trained_tensor.name
                targets.append(match_tables(weight_source, weights, table=target, source_table=name))
    read_into(model, weight_source, targets)
    for name, trained_rows in grown.items():
        stem_weights[name].fill_(gate_bias if name.endswith("bias") else 0.0)
        stem_weights[name][gates[name]] = trained_rows
    return new


def _check_tasks(stem: STEM, trained: Sequence[str], source_names: Iterable[str], *, where: str) -> None:
    towers = {name.split(".")[1] for name in source_names if name.startswith("towers.")}
    if towers != set(trained):
        raise UserError(f"{where} was trained on {some(sorted(towers))}, not on {some(trained)}.")
    if missing := [task for task in trained if task not in stem.tasks]:
        raise UserError(f"{where} was trained on {some(trained)}; this model must keep {some(missing)}.")


def _check_sizes(
    weights: Mapping[str, Tensor],
    source_sizes: Mapping[str, tuple[int, ...]],
    *,
    new: Sequence[str],
    gates: Mapping[str, Sequence[int]],
    where: str,
) -> None:
    """Raises UserError if the models differ in a weight that is not of the new tasks; `gates` have grown."""
    for name in sorted(source_sizes.keys() | weights.keys()):
        size = size_of(weights[name]) if name in weights else None
        if size and name in gates:
            size = (len(gates[name]), *size[1:])
        if source_sizes.get(name) != size and not (name not in source_sizes and group_of(name, new) in new):
            raise UserError(
                f"{where} is another model: {name} is {source_sizes.get(name, 'missing')} in it and, without the new "
                f"tasks, {size or 'missing'} in this model."
            )


def _tasks_of_run(source: Source) -> Sequence[str]:
    folder = None if isinstance(source, Mapping) else path_of(str(source))
    if folder is None or not (folder / CONFIG_FILE).exists():
        raise UserError(
            "only a run folder records its tasks; give those of the trained model, in the order of its logits: "
            "trained=[...]."
        )
    return load_config(str(folder / CONFIG_FILE)).data.labels or load_schema(str(folder)).label_names


def _only_stem(model: nn.Module) -> STEM:
    stems = [module for module in model.modules() if isinstance(module, STEM)]
    if len(stems) != 1:
        raise UserError(
            f"the model has {len(stems) or 'no'} STEM modules, but tasks can be added only to a model with one."
        )
    return stems[0]


def _weights_of_stem(weights: Mapping[str, T], where: str) -> tuple[str, dict[str, T]]:
    """The prefix of the names of a STEM's weights, and the weights by the names within the STEM."""
    prefixes = {m[1] for name in weights if (m := re.fullmatch(r"((?:.*\.)?)towers\.[^.]+\.0\.weight", name))}
    if len(prefixes) != 1:
        raise UserError(f"{where} has {len(prefixes) or 'no'} models with towers, but must have one STEM.")
    prefix = prefixes.pop()
    own = tuple(f"{prefix}{part}." for part in ("sparse_arch", "dense_arch", "layers", "towers"))
    return prefix, {name.removeprefix(prefix): weight for name, weight in weights.items() if name.startswith(own)}


def _tables(names: Iterable[str]) -> list[TableTensor]:
    return [tensor for name in sorted(names) if (tensor := TableTensor.parse(name)) is not None]


def _check_layout(names: Iterable[str], where: str) -> None:
    for tensor in _tables(names):
        if len(table_groups(tensor.table)) > 1:
            raise UserError(
                f"{where} has the table {tensor.table!r} of several groups; tasks can be added only in the split "
                "layout."
            )


def _gates_of_trained(stem: STEM, trained: Sequence[str]) -> dict[str, list[int]]:
    """The weights of the trained gates' last layers, with the positions of the rows that belong to experts of trained
    groups, in the order of the trained gate.
    """
    rows: dict[str, list[int]] = {}
    for name, layer in stem.named_modules():
        if isinstance(layer, GatedExperts):
            for stream, last in last_layers_of_gates(layer).items():
                if stream in groups_of(trained):
                    experts = names_of_experts(layer, layer.reads[stream])
                    groups = [group for group in groups_of(trained) if group in layer.reads[stream]]
                    of_trained = [experts.index(expert) for expert in names_of_experts(layer, groups)]
                    rows |= {f"{name}.{last}.{kind}": of_trained for kind in ("weight", "bias")}
    return rows
