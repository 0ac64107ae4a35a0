"""The raw values of ids, from the vocabularies of a run's log."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from stem_torchrec.data.new_log import TRANSFORMS_FILE, VOCABULARY
from stem_torchrec.preparation.transforms import read_transforms, vocabularies_of
from stem_torchrec.run_report.run_record import RunRecord
from stem_torchrec.runtime.errors import UserError, reason_of


@dataclass(frozen=True)
class Values:
    """Raw values by id, as a vocabulary of the log has them."""

    ids: NDArray[np.int64]
    values: Sequence[str]
    counts: Sequence[int]
    """Rows of the training split with the value."""


def vocabularies_of_run(run: RunRecord) -> dict[str, Path]:
    """The file of the vocabulary of each feature that has one; {} where the log has moved.

    Raises UserError for a transforms.json that cannot be read.
    """
    path = run.config.data.path
    if path is None or "://" in path or not (Path(path) / TRANSFORMS_FILE).exists():
        return {}
    columns = read_transforms(Path(path)).columns
    names = {feature: vocabularies_of(columns.get(run.columns.column_of(feature))) for feature in run.columns.sparse}
    # Ids of several vocabularies in one column have no file of their own.
    return {feature: Path(path) / VOCABULARY / f"{own[0]}.parquet" for feature, own in names.items() if len(own) == 1}


def read_values(file: Path, filters: Sequence[tuple[str, str, Any]]) -> Values:
    """The rows of a vocabulary that the filters of Parquet select, as `[("id", "<", 100)]`; raises UserError."""
    try:
        table = pq.read_table(file, columns=["id", "value", "count"], filters=list(filters))
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{file} cannot be read ({reason_of(error)}); prepare the log again.") from error
    values = [str(value) for value in table["value"].to_pylist()]
    return Values(table["id"].to_numpy(), values, table["count"].to_pylist())
