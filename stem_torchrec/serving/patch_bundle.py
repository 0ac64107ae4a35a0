"""Brings a bundle to a later state of the trainer by deltas, without the run, TorchRec or FBGEMM."""

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch
from safetensors.torch import load
from torch import Tensor

from stem_torchrec.calibration.calibration_file import CALIBRATION_FILE
from stem_torchrec.config.json_text import parse_json
from stem_torchrec.config.serialization import from_dict
from stem_torchrec.data.new_log import VOCABULARY
from stem_torchrec.data.schema import load_schema, save_schema
from stem_torchrec.deltas.chain import Applied
from stem_torchrec.deltas.log_files import write_log_file, write_vocabulary
from stem_torchrec.deltas.manifest import Delta, pieces_by_file
from stem_torchrec.deltas.row_files import Rows, decode, quantized, whole_rows
from stem_torchrec.preparation.transforms import TRANSFORMS_FILE
from stem_torchrec.runtime.errors import UserError, reason_of
from stem_torchrec.runtime.paths import write_json
from stem_torchrec.serving.manifest import (
    DELTA,
    PROGRAM_FILE,
    TABLES_FILE,
    Manifest,
    TableEntry,
    file_entries,
    read_manifest,
    write_manifest,
)
from stem_torchrec.serving.new_folder import exchanged_folder
from stem_torchrec.serving.run_log import columns_in, cut_transforms
from stem_torchrec.serving.table_file import create_tables, open_tables


def applied_to_bundle(manifest: Manifest) -> Applied | None:
    """The delta that a bundle is at; None for one that was exported from a run, whose weights are of no delta."""
    recorded = manifest.run.get(DELTA)
    return None if recorded is None else from_dict(Applied, recorded)


def apply_to_bundle(bundle: Path, manifest: Manifest, deltas: Sequence[Delta], *, take_over: bool) -> None:
    """Puts a new bundle in the place of `bundle`, which scores with the weights of the last delta.

    In fp32 they are those of the trainer, to the bit, and otherwise what stem-export makes of them. The new bundle is
    written beside, and the folders are exchanged at once: a server that loads either gets a whole one.

    Args:
        bundle: its folder.
        manifest: of the bundle.
        deltas: as `missing_deltas` returns them.
        take_over: takes the new folder from another process.

    Raises UserError for a bundle that deltas cannot change: one with several models or a compiled program, with tables
    or weights that the deltas do not have, or whose tables are in another precision than theirs, or that another
    process has replaced; DamagedError for a file that was changed.
    """
    last = deltas[-1]
    _check(bundle, manifest, deltas)
    entries = [replace(entry, rows=_parts_of(entry, last, bundle)[0][2]) for entry in manifest.tables]
    # The curves of earlier weights do not fit these.
    files = [name for name in manifest.files if name != CALIBRATION_FILE or name in last.manifest.log]
    with exchanged_folder(bundle, take_over=take_over) as folder:
        # Tables that are kept get a new checksum, so the one that they have is compared whatever their size.
        if read_manifest(bundle, verify=not deltas[0].manifest.full) != manifest:
            raise UserError(f"{bundle} was replaced by another process meanwhile; run the same command again.")
        for name in files:
            if name not in (TABLES_FILE, PROGRAM_FILE):
                (folder / name).parent.mkdir(exist_ok=True)
                shutil.copyfile(bundle / name, folder / name)
        _write_tables(folder, bundle, manifest, entries, deltas)
        _write_program(folder / PROGRAM_FILE, bundle / PROGRAM_FILE, last)
        _write_log_files(folder, files, entries, deltas)
        run = {"folder": last.manifest.run, "step": last.manifest.step, DELTA: asdict(Applied.of(last))}
        new = replace(manifest, tables=tuple(entries), run=run, files=file_entries(folder, files))
        write_manifest(folder, new)


def _check(bundle: Path, manifest: Manifest, deltas: Sequence[Delta]) -> None:
    """Raises UserError for what deltas cannot change."""
    steps = manifest.run.get("steps", {})
    if len({steps.get(task) for task in manifest.tasks}) > 1:
        raise UserError(
            f"{bundle} has several models, as its run kept weights of each task's best evaluation, and deltas have "
            "those of one; apply them to a copy, and export that."
        )
    if manifest.compiled is not None:
        raise UserError(
            f"{bundle} has a compiled program, in which weights cannot be replaced; apply the deltas to a copy, and "
            "export that with --compile."
        )
    for delta in deltas:
        if delta.manifest.precision not in ("fp32", manifest.precision):
            raise UserError(
                f"the deltas in {delta.folder.parent} are in {delta.manifest.precision}, and the tables of {bundle} in "
                f"{manifest.precision}; export it with --tables {delta.manifest.precision}, or ship fp32."
            )


def _parts_of(entry: TableEntry, delta: Delta, bundle: Path) -> list[tuple[str, int, int, int]]:
    """The tables of the deltas in a table of a bundle: their names, columns of it that they start with, rows, columns.

    Raises UserError if the deltas lack it.
    """
    tables = delta.manifest.tables
    parts = [(table.name, 0, table.rows, table.columns) for table in tables if table.name == entry.name]
    parts = parts or [(t.name, t.packed_at, t.rows, t.columns) for t in tables if t.packed_in == entry.name]
    if sum(columns for *_, columns in parts) != entry.columns:
        raise UserError(
            f"{bundle} has the table {entry.name} of {entry.columns} columns, and the deltas in {delta.folder.parent} "
            "have not; apply them to a copy, and export that."
        )
    return parts


def _write_tables(
    folder: Path, bundle: Path, manifest: Manifest, entries: Sequence[TableEntry], deltas: Sequence[Delta]
) -> None:
    filled = create_tables(folder / TABLES_FILE, entries, manifest.precision)
    if not deltas[0].manifest.full:
        before = open_tables(bundle / TABLES_FILE, manifest.tables, manifest.precision)
        for entry, table in zip(manifest.tables, before, strict=True):
            kept = min(len(table), len(filled[entry.name]))
            filled[entry.name][:kept] = table[:kept]
    places: dict[str, tuple[Tensor, int, int]] = {}
    for entry in entries:
        for name, start, _, columns in _parts_of(entry, deltas[-1], bundle):
            places[name] = filled[entry.name], start, columns
    for delta in deltas:
        for rows in _rows_of(delta, places, whole=manifest.precision == "int8"):
            table, start, _ = places[rows.table]
            weights = rows.weights
            if delta.manifest.precision != manifest.precision:
                weights = quantized(weights, manifest.precision)
            first = start + rows.column
            # Where a later delta has fewer rows of a table, it has all of them.
            is_kept = rows.numbers < len(table)
            table[rows.numbers[is_kept], first : first + weights.shape[1]] = weights[is_kept]


def _rows_of(delta: Delta, places: dict[str, tuple[Tensor, int, int]], *, whole: bool) -> Iterator[Rows]:
    """The rows of a delta in the tables of a bundle, with all their columns if `whole`, as int8 needs them."""
    parts: dict[str, list[Rows]] = {}
    for file, pieces in pieces_by_file(delta.manifest.pieces).items():
        cut = {piece.table for piece in pieces if piece.table in places and piece.columns < places[piece.table][2]}
        if not any(piece.table in places for piece in pieces):
            continue
        for rows in decode(delta.read(file), pieces, delta.manifest.row_format):
            if whole and rows.table in cut:
                parts.setdefault(rows.table, []).append(rows)
            elif rows.table in places:
                yield rows
    for table, of_table in parts.items():
        yield whole_rows(of_table, places[table][2])


def _write_program(file: Path, before: Path, last: Delta) -> None:
    """Writes the program with other weights.

    Raises UserError for a program that this torch cannot read, or whose weights the deltas do not have.
    """
    dense = load(last.read(last.manifest.dense))
    try:
        program = torch.export.load(before)
    # A program of another version of torch makes its reader raise almost any error.
    except Exception as error:
        raise UserError(f"{before} cannot be read by torch {torch.__version__} ({reason_of(error)[:200]}).") from error
    for name, weight in program.state_dict.items():
        if name not in dense or dense[name].shape != weight.shape:
            size = tuple(dense[name].shape) if name in dense else "missing"
            raise UserError(
                f"{before} has {name} of {tuple(weight.shape)}, which is {size} in the deltas in "
                f"{last.folder.parent}; apply them to a copy, and export that."
            )
        with torch.no_grad():
            weight.copy_(dense[name])
    torch.export.save(program, file)


def _write_log_files(
    folder: Path, files: Sequence[str], entries: Sequence[TableEntry], deltas: Sequence[Delta]
) -> None:
    """Brings the columns, transforms, vocabularies and curves of a bundle to those of the last delta."""
    rows = {entry.feature: entry.rows for entry in entries}
    schema = load_schema(str(folder))
    features = tuple(
        replace(feature, num_embeddings=rows.get(feature.name, feature.num_embeddings))
        for feature in schema.sparse_features
    )
    save_schema(replace(schema, sparse_features=features), str(folder))
    for delta in deltas:
        if CALIBRATION_FILE in files:
            write_log_file(folder / CALIBRATION_FILE, delta)
        if TRANSFORMS_FILE in files:
            kept = columns_in(parse_json((folder / TRANSFORMS_FILE).read_bytes()))
            write_log_file(folder / TRANSFORMS_FILE, delta)
            content = parse_json((folder / TRANSFORMS_FILE).read_bytes())
            write_json(folder / TRANSFORMS_FILE, cut_transforms(content, kept))
        for name in files:
            if name.startswith(f"{VOCABULARY}/"):
                write_vocabulary(folder / name, delta)
