"""Whether a run may go on in a folder of deltas, and what has changed since the newest of them."""

import torch
from torch import Tensor

from stem_torchrec.config.delta import DeltaConfig
from stem_torchrec.deltas.began import Began
from stem_torchrec.deltas.manifest import Delta, DeltaTable, delta_path, pieces_by_file, read_delta
from stem_torchrec.deltas.row_files import decode
from stem_torchrec.runtime.errors import UserError
from stem_torchrec.tables import table_feature


def check_chain(last: Delta | None, config: DeltaConfig, *, run: str, run_id: str, began: Began | None) -> bool:
    """Whether the state that the run began with is that of the newest delta; False for a run whose own delta that is.

    Args:
        last: the newest delta of the folder.
        config: of the run.
        run: the run folder.
        run_id: of the run.
        began: None for a run that began with fresh weights.

    Raises UserError for the deltas of a run that this one did not start from, also of an earlier run in the same run
    folder, and for another precision.
    """
    if last is None:
        return False
    manifest, folder = last.manifest, last.folder.parent
    if manifest.precision != config.precision:
        raise UserError(
            f"the deltas in {folder} are in {manifest.precision}, not {config.precision}; give --delta.precision "
            f"{manifest.precision}, or another --delta.out."
        )
    if manifest.run_id == run_id:
        return False
    if began is None or began.run_id != manifest.run_id:
        if manifest.run == run:
            raise UserError(
                f"the deltas in {folder} are of an earlier run in {run}, which was deleted and made again; give "
                f"another --delta.out, or delete {folder}, and make copies and bundles anew."
            )
        started = "fresh weights" if began is None else began.run
        raise UserError(
            f"the deltas in {folder} are of the run {manifest.run}, and this one began with {started}; start from that "
            "run to go on with them, or give another --delta.out."
        )
    return began.step == manifest.step


def tables_that_differ(last: Delta, tables: tuple[DeltaTable, ...]) -> set[str]:
    """The tables that a delta does not have, or has with other columns or more rows."""
    known = {table.name: table for table in last.manifest.tables}
    return {
        table.name
        for table in tables
        if table.name not in known or known[table.name].columns != table.columns or known[table.name].rows > table.rows
    }


def rows_after(last: Delta, *, number: int, chain: int) -> dict[str, Tensor] | None:
    """The rows by feature of the deltas that came after a checkpoint that the run resumes from.

    The steps are made again, and on other ranks they need not change the same rows.

    Args:
        last: the newest delta of the folder.
        number: of the newest one when the checkpoint was written; -1 if all rows were to be shipped next.
        chain: of the deltas then, by `chain_number`.

    Returns None where that is not known: one of the deltas has all rows, is missing, is of another chain or damaged.
    """
    newest, folder = last.manifest.number, last.folder.parent
    if number < 0 or number > newest or chain != chain_number(last.manifest.chain):
        return None
    rows: dict[str, list[Tensor]] = {}
    try:
        for later in range(number + 1, newest + 1):
            delta = read_delta(delta_path(folder, later))
            if delta.manifest.full:
                return None
            for file, pieces in pieces_by_file(delta.manifest.pieces).items():
                for each in decode(delta.read(file), pieces, delta.manifest.row_format):
                    rows.setdefault(table_feature(each.table), []).append(each.numbers)
    except UserError:
        return None
    return {feature: torch.cat(parts).unique() for feature, parts in rows.items()}


def chain_number(chain: str) -> int:
    """A chain as a number that a tensor holds."""
    return int(chain[:15] or "0", 16)
