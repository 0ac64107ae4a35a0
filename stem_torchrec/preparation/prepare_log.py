"""The command `stem-prepare`: reads a spec, makes the log beside its place, and moves it there when it is complete."""

import hashlib
import json
import os
from pathlib import Path

import fsspec
from tabulate import tabulate

from stem_torchrec.config.formats import with_format
from stem_torchrec.config.serialization import to_dict
from stem_torchrec.config.yaml_text import to_yaml
from stem_torchrec.data.new_log import TRANSFORMS_FILE, WORK, check_out, new_log
from stem_torchrec.data.schema import Schema
from stem_torchrec.preparation.engines.duckdb_engine import DuckDBEngine
from stem_torchrec.preparation.engines.engine import Engine
from stem_torchrec.preparation.engines.spark_engine import SparkEngine
from stem_torchrec.preparation.fitting.earlier_log import EarlierLog, read_earlier_log
from stem_torchrec.preparation.guessing.command import (
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
from stem_torchrec.preparation.specs.spec_file import SPEC_FILE, SPEC_FORMAT, spec_of, spec_text
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
    _check_apart(spec, out)
    work = _work(spec, options, earlier)
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
    return summary(schema, earlier)


def _check_apart(spec: Spec, out: Path) -> None:
    """Raises UserError for a log in a folder whose files are all read, as its own files would be among them."""
    for name, source in spec.sources.items():
        for pattern in source.patterns:
            folder = Path(os.path.expanduser(pattern.partition("**")[0] or "."))
            reads_all = source.type in ("parquet", "json") and ("**" in pattern or folder.is_dir())
            if reads_all and out.resolve().is_relative_to(folder.resolve()):
                raise UserError(
                    f"--out {out} is in {folder}, all of whose files sources[{name}] has; give another folder."
                )


def _work(spec: Spec, options: PrepareOptions, earlier: EarlierLog | None) -> str:
    """Tells a spec, the engine and the files apart, by their names, sizes and times."""
    files = [file for name, source in spec.sources.items() for file in find_files(name, source)]
    if earlier is not None:
        files += [str(earlier.folder / TRANSFORMS_FILE), *sorted(map(str, earlier.folder.rglob("*.parquet")))]
    content = [to_dict(spec), options.engine, options.grow, [(file, _state(file)) for file in files]]
    return hashlib.sha256(json.dumps(content, default=str).encode()).hexdigest()


def _state(file: str) -> object:
    """What changes when a file does: its size and time, or what its store tells of them."""
    if "://" not in file:
        return os.stat(file).st_size, os.stat(file).st_mtime_ns
    store, path = fsspec.url_to_fs(file)
    info = store.info(path)
    return [info.get(key) for key in ("size", "mtime", "LastModified", "last_modified", "updated", "ETag", "etag")]


def _engine(options: PrepareOptions, folder: Path) -> Engine:
    if options.engine == "spark":
        return SparkEngine(folder, memory=max(options.memory, 1.0), threads=options.threads)
    return DuckDBEngine(folder, memory=f"{options.memory}GiB", threads=options.threads)


def summary(schema: Schema, earlier: EarlierLog | None) -> str:
    """The rows and labels of each split, and the ids of each feature; of vocabularies that grow, how many are new."""
    splits = [
        (name, split.rows, *(f"{each.positives} ({each.positives / split.rows:.2%})" for each in split.labels.values()))
        for name, split in schema.splits.items()
    ]
    features = {feature.name: [feature.name, feature.num_embeddings] for feature in schema.sparse_features}
    head = ["feature", "ids"]
    if earlier is not None and earlier.grows:
        head.append("new ids")
        before = {name: space["ids"] for space in earlier.spaces.values() for name in space["features"]}
        for name, row in features.items():
            row.append(row[1] - before[name] if name in before else "")
    tables = (tabulate(splits, headers=("split", "rows", *schema.label_names)), tabulate(features.values(), head))
    return "\n\n".join(filter(None, (schema.description, *tables)))
