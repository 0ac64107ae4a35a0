"""The command `stem-prepare`: reads a spec, makes the log beside its place, and moves it there when it is complete."""

import hashlib
import json
import os
from pathlib import Path

from tabulate import tabulate

from stem_torchrec.config.formats import with_format
from stem_torchrec.config.serialization import to_dict
from stem_torchrec.config.yaml_text import to_yaml
from stem_torchrec.data.new_log import WORK, check_out, new_log
from stem_torchrec.data.schema import Schema
from stem_torchrec.preparation.engines.duckdb_engine import DuckDBEngine
from stem_torchrec.preparation.engines.engine import Engine
from stem_torchrec.preparation.engines.spark_engine import SparkEngine
from stem_torchrec.preparation.fitting.earlier_log import read_earlier_log
from stem_torchrec.preparation.guessing.command import (
    SPEC_FILE,
    check_no_guess,
    guess_with_labels,
    naming_guess_only,
    raw_inputs,
    write_guess,
)
from stem_torchrec.preparation.guessing.inputs import is_spec
from stem_torchrec.preparation.make_log import make_log
from stem_torchrec.preparation.options import PrepareOptions
from stem_torchrec.preparation.raw_files.listing import find_files
from stem_torchrec.preparation.specs.installed_specs import installed_specs, spec_path
from stem_torchrec.preparation.specs.spec import Spec
from stem_torchrec.preparation.specs.spec_file import SPEC_FORMAT, spec_of, spec_text
from stem_torchrec.runtime.errors import UserError


def prepare_log(options: PrepareOptions) -> str:
    """Makes the log and returns its sizes to print.

    Raises UserError for what is wrong in the options, the spec or the sources; nothing is left of such a log. What an
    interrupted call has done, another one with the same spec and files goes on with.
    """
    if not options.out:
        raise UserError("--out is missing; name the folder of the log, as in --out DIR.")
    out = Path(options.out)
    if not is_spec(raw_inputs(options), installed_specs()):
        if options.guess_only:
            return write_guess(options)
        check_out(out, overwrite=options.overwrite)
        guess = guess_with_labels(options)
        with naming_guess_only():
            return "\n\n".join([_prepared(guess.text, "the guessed spec", options), *guess.notes])
    check_no_guess(options)
    path = spec_path(options.spec)
    return _prepared(spec_text(path), path, options)


def _prepared(text: str, path: str | Path, options: PrepareOptions) -> str:
    """Makes the log of the text of a spec and returns its sizes to print."""
    spec, out = spec_of(text, options.set, path), Path(options.out)
    check_out(out, overwrite=options.overwrite)
    if options.grow and not options.vocabularies:
        raise UserError("--grow needs --vocabularies, the log whose ids grow.")
    earlier = read_earlier_log(options.vocabularies, grows=options.grow) if options.vocabularies else None
    work = _work(spec, options)
    with new_log(out, overwrite=options.overwrite, take_over=options.take_over, work=work) as folder:
        kept = folder.with_name(WORK)
        for each in (folder, kept):
            each.mkdir(exist_ok=True)
        if options.set or "${" in text:
            text = to_yaml(with_format(to_dict(spec), SPEC_FORMAT))
        # Else with the comments that it has.
        (folder / SPEC_FILE).write_text(text)
        engine = _engine(options, kept)
        try:
            schema = make_log(spec, engine, folder, earlier, report=options.report)
        finally:
            engine.close()
    return summary(schema)


def _work(spec: Spec, options: PrepareOptions) -> str:
    """Tells a spec, the engine and the files apart, by their names, sizes and times."""
    files = [file for name, source in spec.sources.items() for file in find_files(name, source)]
    if options.vocabularies:
        files += sorted(map(str, Path(options.vocabularies).rglob("*.parquet")))
    local = [(file, os.stat(file).st_size, os.stat(file).st_mtime_ns) for file in files if "://" not in file]
    content = json.dumps([to_dict(spec), options.engine, options.grow, files, local], default=str)
    return hashlib.sha256(content.encode()).hexdigest()


def _engine(options: PrepareOptions, folder: Path) -> Engine:
    if options.engine == "spark":
        return SparkEngine(folder, memory=max(options.memory, 1.0), threads=options.threads)
    return DuckDBEngine(folder, memory=f"{options.memory}GiB", threads=options.threads)


def summary(schema: Schema) -> str:
    """The rows and labels of each split, and the size of each feature."""
    splits = [
        (name, split.rows, *(f"{each.positives} ({each.positives / split.rows:.2%})" for each in split.labels.values()))
        for name, split in schema.splits.items()
    ]
    features = [(feature.name, feature.num_embeddings) for feature in schema.sparse_features]
    tables = (tabulate(splits, headers=("split", "rows", *schema.label_names)), tabulate(features, ("feature", "ids")))
    return "\n\n".join(filter(None, (schema.description, *tables)))
