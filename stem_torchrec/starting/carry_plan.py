"""What a run carries over from its source, decided before a weight is read, from configurations and logs alone."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from stem_torchrec.checkpoints.dropout_names import names_with_dropout
from stem_torchrec.checkpoints.weights import check_weights, saved_tensors
from stem_torchrec.config import NewRows, TrainConfig
from stem_torchrec.config.serialization import to_dict
from stem_torchrec.data.columns import Columns
from stem_torchrec.runtime.store_path import path_of
from stem_torchrec.starting.axis_labels import CLOSED
from stem_torchrec.starting.carried import Carried, Line, States, together
from stem_torchrec.starting.id_maps import IdMap
from stem_torchrec.starting.match_modules import closed_experts, match_modules
from stem_torchrec.starting.match_tables import match_tables
from stem_torchrec.starting.model_weights import Matches, ModelWeights
from stem_torchrec.starting.source import StartSource
from stem_torchrec.tables import table_feature, table_of

_ONE_COUNT = ("adam", "partial_rowwise_adam")
"""Optimizers of tables that count steps, not those of a row. So does LAMB, which makes steps of any length alike."""


@dataclass(frozen=True)
class CarryPlan:
    """Which weights of the model continue which of the source, and the table that says so."""

    matches: Matches
    carried: Carried
    saved: Mapping[str, TensorStorageMetadata]
    """What the folder of the source has, by name."""


def plan_carry(
    source: StartSource,
    *,
    config: TrainConfig,
    columns: Columns,
    id_maps: Mapping[str, IdMap],
    new_rows: NewRows = "initial",
    gate_bias: float = CLOSED,
    tables_from: str | None = None,
) -> CarryPlan:
    """Compares the model of the source with that of the run; needs no model with memory, and no other rank.

    See `carry` for the arguments and the errors.

    Example::

        print(plan_carry(source, config=config, columns=columns, id_maps={}).carried.format())
    """
    was = source.config or config
    assert was.model.arch == config.model.arch, "open_source refuses another architecture"
    folder = path_of(source.weights)
    saved = saved_tensors(folder)
    old = ModelWeights(was.model, source.columns or _with_rows_of(saved, columns))
    new = ModelWeights(config.model, columns, gate_bias=gate_bias)
    check_weights(old.train.state_dict(), folder)
    notes = []
    if not source.has_states:
        notes.append(f"{source.name} has no optimizer states, so all of them are fresh")
    elif config.sparse.name != was.sparse.name:
        notes.append(
            f"the states of tables are fresh: {source.name} has those of {was.sparse.name}, not of {config.sparse.name}"
        )
    if source.has_states and config.dense.name != was.dense.name:
        notes.append(
            f"the states of dense parts are fresh: {source.name} has those of {was.dense.name}, not of "
            f"{config.dense.name}"
        )
    notes += [*_other_pooling(old.columns, new.columns), *closed_experts(old, new)]
    of_tables: States = "carried" if source.has_states and config.sparse.name == was.sparse.name else "fresh"
    of_modules: States = "carried" if source.has_states and config.dense.name == was.dense.name else "fresh"
    tables, lines = match_tables(
        old, new, id_maps,
        source=source.name, new_rows=new_rows, tables_from=tables_from,
        states="" if config.sparse.name == "sgd" else of_tables,
    )  # fmt: skip
    modules, of_parts = match_modules(old, new, states=of_modules)
    notes += _without_effect(tables_from, old, new) + _other_sizes(source, config, of_parts)
    # Under the names of layers that were saved when dropout was a layer.
    renamed = names_with_dropout([name.removeprefix("model.") for name in saved], old.sizes)
    modules = {name: replace(match, old=renamed.get(match.old, match.old)) for name, match in modules.items()}
    steps = 0
    if of_tables == "carried":
        # The source counts on from the run that it started from.
        steps = (source.step or 0) + (source.lineage.table_steps if source.lineage is not None else 0)
    if steps and config.sparse.name in _ONE_COUNT and any(line.new_rows for line in lines):
        notes.append(
            f"{config.sparse.name} corrects its moments by one count of steps, {steps:,}, also in new rows, whose "
            f"first step is {first_step_of_a_new_row(steps, config.sparse.betas):.2g} times as long as in a new run"
        )
    carried = Carried(source.name, tuple(together([*lines, *of_parts])), tuple(notes), steps)
    return CarryPlan({**tables, **modules}, carried, saved)


def first_step_of_a_new_row(steps: int, betas: tuple[float, float]) -> float:
    """The length of Adam's first step in a row whose moments are 0, divided by the learning rate.

    It is 1 in a new run, whose count is then 1: m = (1 - b1) g and v = (1 - b2) g^2 are divided by 1 - b1^t and
    1 - b2^t, with the count t of the whole table (torch) or of all tables of a lookup (FBGEMM).

    Args:
        steps: the count before this step.
        betas: of the moments, b1 and b2.

    Example::

        first_step_of_a_new_row(10_000, (0.9, 0.999))  # 3.16, and 0.48 after 9 steps
    """
    (b1, b2), t = betas, steps + 1
    return ((1 - b1) / (1 - b1**t)) / math.sqrt((1 - b2) / (1 - b2**t))


def _without_effect(tables_from: str | None, old: ModelWeights, new: ModelWeights) -> list[str]:
    if tables_from is None or set(new.groups) - set(old.groups):
        return []
    return [f"--start.tables-from {tables_from} has no effect, as the run has no new task"]


def _other_sizes(source: StartSource, config: TrainConfig, lines: Sequence[Line]) -> list[str]:
    """A sentence where parts start fresh because options of the model give them other sizes than the source has."""
    fresh = [line.item for line in lines if line.status == "fresh" and line.details != "new"]
    before, now = (to_dict(each.model) for each in (source.config or config, config))
    options = [f"--model.{name.replace('_', '-')}" for name, value in now.items() if value != before[name]]
    if not fresh or not options:
        return []
    return [
        f"{', '.join(dict.fromkeys(fresh))} start fresh, as the model has other options than that of {source.name}: "
        f"{', '.join(options)}; without --recipe and --config it has those"
    ]


def _other_pooling(old: Columns, new: Columns) -> Iterator[str]:
    """A sentence for each feature whose rows are pooled otherwise than in the source."""
    for name, feature in new.sparse.items():
        before = old.sparse.get(name)
        if before is None:
            continue
        if before.pooling != feature.pooling:
            yield f"the rows of {name} are carried, but pooled by the {feature.pooling}, not by the {before.pooling}"
        if (before.weights is None) != (feature.weights is None):
            words = ("have weights", "had none") if before.weights is None else ("have no weights", "had some")
            yield f"the ids of {name} {words[0]}, but {words[1]} in the source"


def _with_rows_of(saved: Mapping[str, TensorStorageMetadata], columns: Columns) -> Columns:
    """The columns of this run's log with the rows that bare weights have for them, of which nothing else is known."""
    rows = {table_feature(table): item.size[0] for name, item in saved.items() if (table := table_of(name)) is not None}
    sparse = {
        name: replace(feature, num_embeddings=rows.get(name, feature.num_embeddings))
        for name, feature in columns.sparse.items()
    }
    return replace(columns, sparse=sparse)
