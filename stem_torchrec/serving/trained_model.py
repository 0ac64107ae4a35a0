"""The weights of a run: its model with dense weights, cut down to what is served, and its tables, from file to file."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from stem_torchrec.checkpoints.weights import check_weights, find_weights, load_state
from stem_torchrec.config import TrainConfig
from stem_torchrec.data.columns import Columns
from stem_torchrec.models.build import build_model
from stem_torchrec.models.frame import MultiTaskModel
from stem_torchrec.runtime.store_path import AnyPath
from stem_torchrec.serving.manifest import TableEntry, TablePrecision
from stem_torchrec.serving.served_model import ServedModel
from stem_torchrec.serving.table_file import bytes_of, read_targets, write_rows
from stem_torchrec.tables import TableTensor, split_columns, table_configs, table_feature, table_group, table_of

_AT_ONCE = 2**28
"""Bytes of fp32 tables that are read into memory at a time, to be quantized; a larger table is read alone."""


@dataclass(frozen=True)
class TrainedModel:
    """A model whose tables are still on disk."""

    served: ServedModel
    weights: AnyPath
    """The folder of the weights."""
    prefix: str
    """What the names of tables begin with in the weights."""
    precision: TablePrecision
    table_bytes: int
    """Of the tables that are served."""
    dense_bytes: int
    """Of the other weights that are served."""
    run_table_bytes: int
    """Of all tables of the run, in the same precision."""
    run_dense_bytes: int
    """Of all other weights of the run."""

    def bytes_of_groups(self, groups: Sequence[str]) -> int:
        """Bytes of the served tables that belong to groups."""
        names = {name for group in groups for name in self.served.parts[group]}
        parts = [
            replace(entry, columns=len(columns))
            for entry in self.served.tables
            for name, columns in split_columns(entry.name, entry.columns).items()
            if name in names
        ]
        return bytes_of(parts, self.precision)

    def fill(self, tables: Mapping[str, Tensor]) -> None:
        """Fills the tables of a file, by name; fp32 tables go from file to file, others by way of memory."""
        for names in _parts(self.served.tables):
            part = {name: tables[name] for name in names}
            targets = read_targets(part, self.precision)
            state = {TableTensor(self.prefix, name).name: target for name, target in targets.items()}
            load_state({"model": state}, self.weights)
            if self.precision != "fp32":
                for name, weight in targets.items():
                    write_rows(part[name], weight, self.precision)


def open_trained_model(
    config: TrainConfig, columns: Columns, folder: AnyPath, *, tasks: Sequence[str], precision: TablePrecision
) -> TrainedModel:
    """The model of a run for some of its tasks.

    Args:
        config: of the run.
        columns: that the run reads.
        folder: of its weights.
        tasks: to be served.
        precision: of the tables that are written.

    Raises UserError if the folder has no weights or those of another model, or the model cannot be cut down to `tasks`.
    """
    weights = find_weights(folder)
    train = build_model(config.model, columns)
    state = train.state_dict()
    check_weights(state, weights)
    dense = {name: weight for name, weight in state.items() if table_of(name) is None}
    load_state({"model": dense}, weights)
    train.load_state_dict(dense, strict=False)
    model = train.model
    assert isinstance(model, MultiTaskModel)
    entries = [
        TableEntry(c.name, table_feature(c.name), c.num_embeddings, c.embedding_dim) for c in table_configs(train)
    ]
    groups = model.sparse_arch.groups
    served = ServedModel(model, tasks, columns.sparse, precision)
    # A table of several groups is cut where a group is left out, and for int8, where each group gets its own scale.
    cut = precision == "int8" or len(served.groups) < len(groups)
    served.take_tables(_cut(entries, served.groups) if cut else entries)
    prefix = next(tensor.prefix for name in state if (tensor := TableTensor.parse(name)) is not None)
    return TrainedModel(
        served, weights, prefix, precision,
        table_bytes=bytes_of(served.tables, precision), dense_bytes=_bytes(served.parameters()),
        run_table_bytes=bytes_of(entries, precision), run_dense_bytes=_bytes(dense.values()),
    )  # fmt: skip


def _cut(entries: Sequence[TableEntry], groups: Sequence[str]) -> list[TableEntry]:
    """The tables of some groups, each of one group."""
    parts = [
        replace(entry, name=name, columns=len(columns))
        for entry in entries
        for name, columns in split_columns(entry.name, entry.columns).items()
    ]
    return [part for group in groups for part in parts if table_group(part.name) == group]


def _bytes(weights: Iterable[Tensor]) -> int:
    return sum(weight.nbytes for weight in weights)


def _parts(entries: Sequence[TableEntry]) -> list[list[str]]:
    """The names of the tables in parts of about `_AT_ONCE` bytes."""
    parts: list[list[str]] = [[]]
    size = 0
    for entry in entries:
        of_entry = bytes_of([entry], "fp32")
        if parts[-1] and size + of_entry > _AT_ONCE:
            parts.append([])
            size = 0
        parts[-1].append(entry.name)
        size += of_entry
    return parts
