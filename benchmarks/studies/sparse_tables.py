"""A bundle with as many rows as wanted, of zeros that take no room on the disk."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from safetensors.torch import load_file

from stem_torchrec.data.schema import SCHEMA_FILE, load_schema, save_schema
from stem_torchrec.serving.bundle import Bundle
from stem_torchrec.serving.manifest import TABLES_FILE, file_entries, read_manifest, write_manifest


def grow_tables(folder: Path, feature: str, rows: int) -> None:
    """Gives the fp32 tables of a feature more rows, and lets rows of ids have all of their ids.

    The first rows stay. The file has holes for the others, which a file system reads as zeros.
    """
    manifest, file = read_manifest(folder), folder / TABLES_FILE
    assert manifest.precision == "fp32"
    tables = [replace(table, rows=rows) if table.feature == feature else table for table in manifest.tables]
    content, end = load_file(file), 0
    header: dict[str, dict[str, Any]] = {}
    file.unlink()  # A process may have it mapped.
    for table in tables:
        start, end = end, end + 4 * table.rows * table.columns
        header[table.name] = {"dtype": "F32", "shape": [table.rows, table.columns], "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % 64)
    with file.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for name, entry in header.items():
            stream.seek(8 + len(text) + entry["data_offsets"][0])
            stream.write(content[name].numpy().tobytes())
        stream.truncate(8 + len(text) + end)
    schema = load_schema(str(folder))
    features = tuple(replace(f, num_embeddings=rows) if f.name == feature else f for f in schema.sparse_features)
    save_schema(replace(schema, sparse_features=features), str(folder))
    # The checksum of the tables is not that of the file, and is not compared for more than 1 GiB.
    of_tables = replace(manifest.files[TABLES_FILE], size=file.stat().st_size)
    files = manifest.files | file_entries(folder, [SCHEMA_FILE]) | {TABLES_FILE: of_tables}
    write_manifest(folder, replace(manifest, tables=tuple(tables), files=files))


def random_ids(bundle: Bundle, rows: int) -> pa.Table:
    """Rows for a bundle of ids: one id of each table at random, and zeros for numbers."""
    generator, columns = torch.Generator().manual_seed(0), bundle.columns
    names = {name: columns.column_of(name) for name in columns.names}
    table = {names[name]: pa.array([0.0] * rows) for name in columns.names}
    for name, feature in columns.sparse.items():
        table[names[name]] = pa.array(torch.randint(feature.num_embeddings, (rows,), generator=generator).numpy())
    return pa.table(table)
