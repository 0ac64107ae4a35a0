"""TensorBoard's projector of a run: the first rows of some tables, with the raw values of their ids."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from google.protobuf import text_format
from numpy.typing import NDArray
from tensorboard.plugins.projector.projector_config_pb2 import ProjectorConfig

from stem_torchrec.checkpoints.first_rows import first_rows, tables_on_disk
from stem_torchrec.checkpoints.weights import find_weights
from stem_torchrec.data.new_log import TRANSFORMS_FILE, VOCABULARY
from stem_torchrec.preparation.transforms import read_transforms, vocabularies_of
from stem_torchrec.run_report.run_record import RunRecord
from stem_torchrec.runtime.errors import UserError, nearest, reason_of
from stem_torchrec.runtime.paths import remove_tree, write_text
from stem_torchrec.sharding.placement import some
from stem_torchrec.tables import table_feature
from stem_torchrec.training.run_folder import BEST_WEIGHTS

CONFIG = "projector_config.pbtxt"
"""Where TensorBoard looks for it in a folder of charts."""
_FOLDER = "projector"
_UNSEEN = "(unseen)"
"""In place of the raw value of id 0."""


@dataclass(frozen=True)
class Values:
    """Raw values by id, as a vocabulary of the log has them."""

    ids: NDArray[np.int64]
    values: Sequence[str]
    counts: Sequence[int]
    """Rows of the training split with the value."""


def write_projector(run: RunRecord, tables: Sequence[str], *, rows: int) -> str:
    """Writes tables of a run's best weights for the projector; returns the sentence that tells where.

    In the run folder are then:

    tensorboard/projector_config.pbtxt   names the files below
    tensorboard/projector/table_0.tsv    a row of the first table in a line, ids 0, 1, 2, ...
    tensorboard/projector/values_0.tsv   the id of each line and, where the log has a vocabulary, its value and count

    An earlier projector is replaced. Ids fall by their count in the training split, so the first ones are the most
    frequent; the ids that later logs have added to a vocabulary follow behind.

    Args:
        run: which has weights.
        tables: as `like/user_id`.
        rows: of each table, at most.

    Raises UserError for a table that the run does not have, and where it has no weights.
    """
    weights = find_weights(run.folder / BEST_WEIGHTS)
    known = tables_on_disk(weights)
    for table in tables:
        if table not in known:
            near = nearest(table, list(known)) or "; give some of them."
            raise UserError(f"--projector {table} is no table of {run.folder}, which has {some(list(known))}{near}")
    board = run.folder / "tensorboard"
    remove_tree(board / _FOLDER)
    (board / _FOLDER).mkdir(parents=True, exist_ok=True)
    config = ProjectorConfig()
    without: list[str] = []
    for number, table in enumerate(tables):
        of_table = first_rows(weights, known[table], rows).double().numpy()
        values = values_of(run, table_feature(table), len(of_table))
        without += [] if values else [table]
        paths = {kind: f"{_FOLDER}/{kind}_{number}.tsv" for kind in ("table", "values")}
        write_text(board / paths["table"], "".join("\t".join(f"{x:.6g}" for x in row) + "\n" for row in of_table))
        write_text(board / paths["values"], values_file(len(of_table), values))
        config.embeddings.add(
            tensor_name=table, tensor_path=paths["table"], metadata_path=paths["values"], tensor_shape=of_table.shape
        )
    # Last, so that it names files that are whole.
    write_text(board / CONFIG, text_format.MessageToString(config))
    note = f"; ids without raw values, as the log has no vocabulary for {', '.join(without)}" if without else ""
    return f"projector: {board}, {', '.join(tables)}, {rows:,} rows at most{note}; tensorboard --logdir {run.folder}"


def values_of(run: RunRecord, feature: str, rows: int) -> Values | None:
    """The raw values of the first ids of a feature; None where its log has moved, or has no vocabulary for it.

    Raises UserError for a log whose files cannot be read.
    """
    path = run.config.data.path
    if path is None or "://" in path or not (Path(path) / TRANSFORMS_FILE).exists():
        return None
    tree = read_transforms(Path(path)).columns.get(run.columns.column_of(feature))
    names = vocabularies_of(tree)
    if len(names) != 1:
        return None
    file = Path(path) / VOCABULARY / f"{names[0]}.parquet"
    try:
        table = pq.read_table(file, columns=["id", "value", "count"], filters=[("id", "<", rows)])
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{file} cannot be read ({reason_of(error)}); prepare the log again.") from error
    values = [str(value) for value in table["value"].to_pylist()]
    return Values(table["id"].to_numpy(), values, table["count"].to_pylist())


def values_file(rows: int, values: Values | None) -> str:
    """A line for each id, below the names of the columns where there are several, as TensorBoard wants it.

    Example::

        values_file(3, Values(np.array([2, 1]), ["b", "a"], [3, 7]))
        # "id\\tvalue\\tcount\\n0\\t(unseen)\\t\\n1\\ta\\t7\\n2\\tb\\t3\\n"
    """
    if values is None:
        return "".join(f"{i}\n" for i in range(rows))
    named = {i: (value, f"{n}") for i, value, n in zip(values.ids.tolist(), values.values, values.counts, strict=True)}
    lines = ["id\tvalue\tcount"]
    for i in range(rows):
        value, count = named.get(i, (_UNSEEN if i == 0 else "", ""))
        # A value may have tabs and ends of lines of its own.
        lines.append(f"{i}\t{' '.join(value.split())}\t{count}")
    return "\n".join(lines) + "\n"
