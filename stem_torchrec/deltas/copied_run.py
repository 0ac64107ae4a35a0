"""A copy of a run that deltas keep at the state of the trainer: a run folder without its checkpoints and metrics.

config.yaml, schema.json       of the run
transforms.json, vocabulary/   of its log, if it has them
best/                          the weights, as a run folder has its best ones, and delta.json, which tells their delta
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load
from torch import Tensor

from stem_torchrec.checkpoints.storage import check_parts, failure_of, reader_from, without_warnings
from stem_torchrec.checkpoints.weights import find_weights, save_tensors, saved_tensors
from stem_torchrec.config.formats import FormatError, with_format, without_format
from stem_torchrec.config.json_text import parse_json
from stem_torchrec.config.serialization import from_dict
from stem_torchrec.data.new_log import VOCABULARY
from stem_torchrec.deltas.chain import Applied
from stem_torchrec.deltas.log_files import OF_RUN, write_log_file, write_vocabulary
from stem_torchrec.deltas.manifest import Delta, pieces_by_file
from stem_torchrec.deltas.row_files import decode
from stem_torchrec.runtime.errors import DamagedError, UserError, reason_of
from stem_torchrec.runtime.store_path import AnyPath
from stem_torchrec.tables import TableTensor, table_of

WEIGHTS = "best"
"""The folder of the weights in a copy, as in a run folder."""
APPLIED_FILE = "delta.json"
APPLIED_FORMAT = 1
"""Format version of delta.json."""


def applied_to_copy(copy: Path) -> Applied | None:
    """The delta that a copy is at; None if it does not exist.

    Raises UserError for a folder that is no copy, DamagedError for one whose delta.json cannot be read.
    """
    if not copy.exists() or not any(copy.iterdir()):
        return None
    try:
        applied = applied_to_weights(find_weights(copy / WEIGHTS))
    except DamagedError:
        raise
    except UserError:
        if not (copy / OF_RUN[0]).exists() or (copy / "plan.json").exists():
            raise UserError(f"{copy} is neither a copy nor a bundle; give a folder that does not exist.") from None
        # Making it was interrupted before its weights were complete.
        return None
    if applied is None:
        raise UserError(f"{copy} is a run that trained, not a copy made of deltas; give a folder that does not exist.")
    return applied


def applied_to_weights(folder: AnyPath) -> Applied | None:
    """The delta that the weights in a folder are at; None for those of a run. Raises DamagedError or FormatError."""
    path = folder / APPLIED_FILE
    if not path.exists():
        return None
    try:
        return from_dict(Applied, without_format(parse_json(path.read_text()), APPLIED_FORMAT, str(path)))
    except FormatError:
        raise
    except (OSError, ValueError) as error:
        raise DamagedError(
            f"{path} cannot be read ({reason_of(error)}); delete {folder.parent}, and apply the deltas anew."
        ) from error


def apply_to_copy(copy: Path, deltas: Sequence[Delta]) -> None:
    """Brings a copy to the state of the trainer at the last of `deltas`, to the bit.

    All tables are in memory meanwhile. The weights are exchanged at once, so that a reader finds the earlier or the
    later ones, and a call that was interrupted may be made again.

    Args:
        copy: its folder, which is made if the first delta has all rows.
        deltas: as `missing_deltas` returns them.

    Raises UserError for rows that are not in fp32, DamagedError for a file that was changed.
    """
    for delta in deltas:
        if delta.manifest.precision != "fp32":
            raise UserError(
                f"the deltas in {delta.folder.parent} are in {delta.manifest.precision}, and a copy has fp32; apply "
                f"them to a bundle with {delta.manifest.precision} tables, or ship fp32 by --delta.precision."
            )
    copy.mkdir(parents=True, exist_ok=True)
    weights = {} if deltas[0].manifest.full else _read_tables(find_weights(copy / WEIGHTS))
    for delta in deltas:
        weights = _with_sizes(weights, delta)
        for file, pieces in pieces_by_file(delta.manifest.pieces).items():
            for rows in decode(delta.read(file), pieces, delta.manifest.row_format):
                columns = slice(rows.column, rows.column + rows.weights.shape[1])
                weights[rows.table][rows.numbers, columns] = rows.weights
    last = deltas[-1]
    tensors = {f"model.{TableTensor(last.manifest.prefix, name).name}": weight for name, weight in weights.items()}
    tensors |= {f"model.{name}": weight for name, weight in load(last.read(last.manifest.dense)).items()}
    # All rows and weights have been read: a damaged file has changed nothing.
    _write_log_files(copy, deltas)
    record = json.dumps(with_format(asdict(Applied.of(last)), APPLIED_FORMAT), indent=1)
    save_tensors(tensors, copy / WEIGHTS, {APPLIED_FILE: record + "\n"})


def _write_log_files(copy: Path, deltas: Sequence[Delta]) -> None:
    """Brings the files beside the weights to those of the last delta."""
    for delta in deltas:
        for name in sorted(delta.manifest.log):
            write_log_file(copy / name, delta)
        for name in delta.manifest.vocabularies:
            write_vocabulary(copy / VOCABULARY / f"{name}.parquet", delta)
    for name in OF_RUN:
        # As curves that were fitted to earlier weights.
        if name not in deltas[-1].manifest.log:
            (copy / name).unlink(missing_ok=True)


def _with_sizes(weights: Mapping[str, Tensor], delta: Delta) -> dict[str, Tensor]:
    """The tables of a delta, with the rows that they had before; the delta has the others."""
    sized = {}
    for table in delta.manifest.tables:
        before = weights.get(table.name)
        if before is None or before.shape != (table.rows, table.columns):
            sized[table.name] = torch.zeros(table.rows, table.columns)
            if before is not None and before.shape[1] == table.columns:
                kept = min(len(before), table.rows)
                sized[table.name][:kept] = before[:kept]
        else:
            sized[table.name] = before
    return sized


def _read_tables(folder: AnyPath) -> dict[str, Tensor]:
    """The tables of a copy by name; raises DamagedError if they cannot be read."""
    names = {name: table_of(name) for name in saved_tensors(folder)}
    tensors = {
        name: torch.empty(saved.size, dtype=saved.properties.dtype)
        for name, saved in saved_tensors(folder).items()
        if names[name] is not None
    }
    try:
        with without_warnings():
            check_parts(str(folder), reader_from(str(folder)).read_metadata(), part=0, parts=1)
            dcp.load(tensors, storage_reader=reader_from(str(folder)), no_dist=True)
    # Damaged bytes make its readers raise almost any error.
    except (Exception, dcp.CheckpointException) as error:
        raise DamagedError(
            f"{folder} cannot be read ({failure_of(error)}); delete {folder.parent}, and the same command makes it "
            "anew."
        ) from error
    return {table_of(name) or "": tensor for name, tensor in tensors.items()}
