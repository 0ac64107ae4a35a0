"""A run beside a log whose vocabularies have grown since: which ids are new to the run's tables, and how many."""

from dataclasses import replace

import torch

from stem_torchrec.config.formats import without_format
from stem_torchrec.config.json_text import parse_json
from stem_torchrec.data.batch import Exposures
from stem_torchrec.data.columns import Columns
from stem_torchrec.expressions.expression import from_json
from stem_torchrec.metrics.collectives import gather
from stem_torchrec.preparation.transforms import TRANSFORMS_FILE, TRANSFORMS_FORMAT, vocabularies_of
from stem_torchrec.runtime.errors import UserError, reason_of
from stem_torchrec.runtime.progress import log_rank0
from stem_torchrec.runtime.store_path import path_of


def without_new_ids(log: str, columns: Columns, of_run: Columns) -> Columns:
    """The columns of a log, with the sizes of the run's tables where the log's vocabularies are larger.

    Readers give the ids beyond them the id of unseen values, as preparation with the run's vocabularies would have.

    Args:
        log: its folder.
        columns: of the log.
        of_run: of the same features.

    Raises UserError where transforms.json of the log cannot be read.
    """
    rows = {name: feature.num_embeddings for name, feature in columns.sparse.items()}
    larger = {name: count for name, count in rows.items() if count > of_run.sparse[name].num_embeddings}
    by_vocabulary = _columns_by_vocabulary(log) if larger else set()
    grown = {name: count for name, count in larger.items() if columns.column_of(name) in by_vocabulary}
    sizes = {name: (of_run if name in grown else columns).sparse[name].num_embeddings for name in columns.sparse}
    sparse = {name: replace(feature, num_embeddings=sizes[name]) for name, feature in columns.sparse.items()}
    return replace(columns, sparse=sparse, ids_of_log=grown)


class UnseenIds:
    """Counts the ids that a rank reads as unseen.

    Args:
        columns: that it reads.
        device: of the rank.
    """

    def __init__(self, columns: Columns, device: torch.device) -> None:
        self._columns, self._device = columns, device
        self._counts = torch.zeros(len(columns.sparse), dtype=torch.int64)

    def add(self, item: Exposures) -> None:
        """Counts those of a batch."""
        if item.unseen is not None:
            self._counts += item.unseen

    def note(self) -> None:
        """Prints how many there were on all ranks, which all call it."""
        if self._columns.ids_of_log:
            counts = gather(self._counts.to(self._device)).sum(dim=0).tolist()
            of_features = dict(zip(self._columns.sparse, counts, strict=True))
            named = ", ".join(f"{of_features[name]:,} of {name}" for name in self._columns.ids_of_log)
            log_rank0(f"note: ids that the log has added to the run's vocabularies were read as unseen: {named}")


def _columns_by_vocabulary(log: str) -> set[str]:
    """The columns of ids that stem-prepare made by a vocabulary; none of a log that it did not make."""
    path = path_of(log) / TRANSFORMS_FILE
    if not path.exists():
        return set()
    try:
        content = without_format(parse_json(path.read_text()), TRANSFORMS_FORMAT, str(path))
        trees = {column: from_json(tree, f"features.{column}") for column, tree in content["features"].items()}
    # KeyError, AttributeError: a section is missing, or is no mapping.
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise UserError(f"{path} cannot be read ({reason_of(error)}); prepare the log again.") from error
    return {column for column, tree in trees.items() if vocabularies_of(tree)}
