"""Checks of a spec before any file is read: fields that exclude each other, and names that nothing has."""

from collections.abc import Iterator

from stem_torchrec.preparation.specs.spec import Feature, Source, Spec
from stem_torchrec.preparation.specs.splits import Split
from stem_torchrec.runtime.errors import UserError, nearest

MAX_NAME = 200
"""Bytes of the name of a column of a log."""


def check_spec(spec: Spec) -> None:
    """Raises UserError for fields that exclude each other, and names that nothing has."""
    if not spec.sources:
        raise UserError("sources is empty; name the log as the first.")
    for section in ("labels", "features"):
        if not getattr(spec, section):
            raise UserError(f"{section} is empty; a log needs one.")
    _check_split(spec.split)
    _check_sources(spec)
    for name, label in spec.tasks.items():
        if (label.kind == "ordinal") != (label.levels is not None):
            fix = "give" if label.kind == "ordinal" else "leave out"
            raise UserError(f"labels[{name}] is {label.kind}; {fix} levels, the number of an ordinal label's.")
    for name, feature in spec.id_features.items():
        _check_feature(name, feature, spec)
    check_columns(spec)


def check_columns(spec: Spec) -> None:
    """Raises UserError for two columns of the log with one name, in which capitals do not count."""
    roles: dict[str, str] = {each: "a column of this program's own" for each in ("__row", "__split", "__order")}
    names: dict[str, str] = {}
    for name, role in _columns(spec):
        if not 1 <= len(name.encode("utf-8", "replace")) <= MAX_NAME or not name.isprintable() or "/" in name:
            raise UserError(
                f"{name[:MAX_NAME]!r} is {role}, but a name has 1 to {MAX_NAME} bytes of printable text without `/`."
            )
        other = roles.setdefault(name.lower(), role)
        if name.lower() in names or other is not role:
            twin = "" if names.get(name.lower(), name) == name else f", as {names[name.lower()]!r} with other capitals"
            raise UserError(f"{name!r} is {other} and {role}{twin}; give one of them another name.")
        names[name.lower()] = name


def _columns(spec: Spec) -> Iterator[tuple[str, str]]:
    """The columns of the log, each with what it is."""
    yield from ((name, "a label") for name in spec.labels)
    yield from ((name, "a feature") for name in spec.features)
    yield from ((name, "a dense feature") for name in spec.dense)
    yield from ((name, "kept") for name in spec.keep)
    yield from ((f"{name}_weight", f"the weight of {name}") for name, label in spec.tasks.items() if label.weight)
    yield from (
        (f"{name}_weights", f"the weights of {name}") for name, each in spec.id_features.items() if each.weights
    )
    yield from ((f"{name}_missing", f"the flag of {name}") for name, each in spec.numbers.items() if each.missing.flag)
    if spec.weight is not None:
        yield "weight", "the weight of the row"
    if spec.group is not None:
        yield (f"group_{spec.group}" if spec.group.isidentifier() else "group"), "the group"


def _check_split(split: Split) -> None:
    given = [name for name in ("time", "random", "column") if getattr(split, name) is not None]
    if len(given) != 1:
        raise UserError(f"split has {' and '.join(given) or 'no way'}, but must have one of time, random and column.")
    if split.random is not None and split.random.valid + split.random.test >= 1:
        raise UserError("split.random leaves nothing for train: valid and test must be below 1 together.")
    if split.column is not None:
        names: dict[int | str, str] = {}
        for name in ("train", "valid", "test"):
            for value in getattr(split.column, name):
                if names.setdefault(value, name) != name:
                    raise UserError(f"split.column has {value!r} in {names[value]} and {name}; leave one of them out.")


def _check_sources(spec: Spec) -> None:
    for i, join in enumerate(spec.joins):
        if join.source not in spec.sources or join.source == spec.log:
            sides = [name for name in spec.sources if name != spec.log]
            hint = nearest(join.source, sides) or f"; it has {', '.join(sides) or 'none'}."
            raise UserError(f"joins[{i}].source is {join.source!r}, which is no side table of the sources{hint}")
    for name, source in spec.sources.items():
        if source.type == "csv" and not source.header and not source.columns:
            raise UserError(f"sources[{name}] has no header, so columns must name all of its columns, in order.")
        check_source(f"sources[{name}]", source)


def check_source(place: str, source: Source) -> None:
    """Raises UserError for fields of a source that do not fit its type."""
    if not source.files:
        raise UserError(f"{place}.files is empty; name a file, a pattern or a folder.")
    if source.type == "json" and not source.columns:
        raise UserError(f"{place} has JSON lines, so columns must name the fields that are read, with their types.")
    if source.type != "csv":
        return
    if not 1 <= len(source.delimiter.encode("utf-8", "replace")) <= 4 or set(source.delimiter) & {"\n", "\r"}:
        raise UserError(f"{place}.delimiter is {source.delimiter!r}, but must have 1 to 4 bytes and no line break.")
    if len(source.quote) > 1 or not source.quote.isascii() or source.quote in ("\n", "\r"):
        raise UserError(f"{place}.quote is {source.quote!r}, but must be one character of ASCII, or empty.")
    if source.quote and source.quote in source.delimiter:
        raise UserError(f"{place}.quote is {source.quote!r}, which the delimiter has as well; say quote: '' for none.")
    check_encoding(source.encoding, f"{place}.encoding")
    for column, kind in source.columns.items():
        if kind.startswith("list"):
            raise UserError(
                f"{place}.columns[{column}] is {kind}, but a cell of CSV is one value; call it text and split it under "
                f"columns, as in ints(split({column}, ','))."
            )
    if not source.header:
        check_names(f"{place}.columns", list(source.columns))


def check_names(path: str, names: list[str]) -> None:
    """Raises UserError for names that a file has twice, also if they differ in case alone."""
    known: dict[str, str] = {}
    for name in names:
        other = known.get(name.lower())
        if other == name:
            raise UserError(f"{path} names the column {name!r} twice; give its columns names of their own.")
        if other is not None:
            raise UserError(f"{path} names the columns {other!r} and {name!r}, which differ in case alone; rename one.")
        known[name.lower()] = name


def check_encoding(encoding: str, place: str) -> None:
    """Raises UserError for the name of an encoding that Python does not have."""
    try:
        "a\n".encode(encoding).decode(encoding)
    except (LookupError, ValueError) as error:
        hint = nearest(encoding, ("utf-8", "latin-1", "gb18030", "gbk", "utf-16", "cp1252", "shift_jis", "euc_kr"))
        raise UserError(f"{place} is {encoding!r}, which Python does not know{hint or '; latin-1 is one.'}") from error


def _check_feature(name: str, feature: Feature, spec: Spec) -> None:
    place, given = f"features[{name}]", [kind for kind in ("vocabulary", "hash", "identity") if getattr(feature, kind)]
    if len(given) > 1:
        raise UserError(f"{place} has {' and '.join(given)}, but must have one of them.")
    if feature.buckets is not None and (feature.buckets.edges is None) == (feature.buckets.quantiles is None):
        raise UserError(f"{place}.buckets must have either edges or quantiles.")
    if feature.buckets is not None and (feature.hash or feature.identity):
        raise UserError(f"{place} has buckets, which get ids by a vocabulary, and {given[0]}; leave one of them out.")
    if feature.vocabulary is not None and feature.vocabulary.of is not None:
        other = spec.id_features.get(feature.vocabulary.of)
        if other is None or other.hash or other.identity or (other.vocabulary and other.vocabulary.of):
            raise UserError(
                f"{place}.vocabulary.of is {feature.vocabulary.of!r}, which is no feature with a vocabulary of its own"
                f"{nearest(feature.vocabulary.of, list(spec.features)) or '.'}"
            )
