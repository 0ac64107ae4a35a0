"""TensorBoard's projector of a run: the first rows of some tables, with the raw values of their ids."""

from collections.abc import Sequence

from google.protobuf import text_format
from tensorboard.plugins.projector.projector_config_pb2 import ProjectorConfig

from stem_torchrec.checkpoints.first_rows import first_rows, tables_on_disk
from stem_torchrec.checkpoints.weights import find_weights
from stem_torchrec.run_report.run_record import RunRecord
from stem_torchrec.run_report.vocabularies import Values, read_values, vocabularies_of_run
from stem_torchrec.runtime.errors import UserError, nearest
from stem_torchrec.runtime.paths import remove_tree, write_text
from stem_torchrec.sharding.placement import some
from stem_torchrec.tables import table_feature
from stem_torchrec.training.best_by_task import note_of_mean
from stem_torchrec.training.run_folder import BEST_WEIGHTS

CONFIG = "projector_config.pbtxt"
"""Where TensorBoard looks for it in a folder of charts."""
_FOLDER = "projector"
_UNSEEN = "(unseen)"
"""In place of the raw value of id 0."""


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
    vocabularies = vocabularies_of_run(run)
    for number, table in enumerate(tables):
        of_table = first_rows(weights, known[table], rows).double().numpy()
        file = vocabularies.get(table_feature(table))
        values = None if file is None else read_values(file, [("id", "<", len(of_table))])
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
    if (of_mean := note_of_mean(run.folder, "the projector has")) is not None:
        note += f"; {of_mean}"
    return f"projector: {board}, {', '.join(tables)}, {rows:,} rows at most{note}; tensorboard --logdir {run.folder}"


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
