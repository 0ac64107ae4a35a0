"""Whether a run is the one of a checkpoint or run folder: the same model, table optimizer, log and order of rows."""

from collections.abc import Mapping, Sequence
from typing import Any

from stem_torchrec.runtime.errors import UserError

_SAME = (
    "model", "loss", "balance", "sparse.name",
    "data.features", "data.labels", "data.spaces", "data.shuffle_rows", "seed",
)  # fmt: skip
Rows = Mapping[str, Mapping[str, str]]
"""What the files' footers tell about the rows of each split: `data.footers.contents`."""
_NAMED = 3
"""Differences in the rows that a message names."""
_FIELDS = 6
"""Differences in fields that a message names."""
_FREE = ("model.layout",)
"""Weights and optimizer states load into the other layout."""
_SAME_IN_SCHEMA = (
    *("sparse_features", "dense_features", "labels", "weight", "label_weights"),
    "splits.train.rows",
)
_OF_A_DAY = ("schema.sparse_features", "schema.splits.train.rows", "data.path")
"""What differs in the log of another day."""


def check_same_run(
    path: str,
    saved: tuple[Mapping[str, Any], Mapping[str, Any]],
    current: tuple[Mapping[str, Any], Mapping[str, Any]],
) -> None:
    """Raises UserError, which names all differing fields, if the checkpoint or run at `path` is not of this run.

    Args:
        path: of the checkpoint or run, for the message.
        saved: its configuration and its log's schema, as plain values.
        current: those of this run.

    Example::

        saved = {"model": {"embedding_dim": 8}, "seed": 0}, schema
        check_same_run("runs/a", saved, ({"model": {"embedding_dim": 16}, "seed": 0}, schema))
        # UserError: runs/a is of another run: model.embedding_dim was 8 and is 16; give another --output-dir, or ...
    """
    old, new = (
        {**_fields(config, _SAME), **_fields(schema, _SAME_IN_SCHEMA, "schema.")} for config, schema in (saved, current)
    )
    _refuse_differences(f"{path} is of another run", old, new, free=_FREE)


def check_same_options(
    path: str, saved: Mapping[str, Any], current: Mapping[str, Any], *, other: str = "--output-dir"
) -> None:
    """Raises UserError, which names all differing options, where a run would replace one of other options.

    Args:
        path: of the run, for the message.
        saved: its configuration, as plain values.
        current: that of this run.
        other: the option with which this run gets another path.
    """
    old, new = (_fields(config, tuple(config)) for config in (saved, current))
    _refuse_differences(f"{path} holds a run of other options, which this one would replace", old, new, other=other)


def _refuse_differences(
    problem: str,
    old: Mapping[str, Any],
    new: Mapping[str, Any],
    *,
    free: tuple[str, ...] = (),
    other: str = "--output-dir",
) -> None:
    differing = [
        f"{name} was {old.get(name)} and is {new.get(name)}"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name) and name not in free
    ]
    if differing:
        new_log = any(old.get(name) != new.get(name) for name in old.keys() | new.keys() if name.startswith(_OF_A_DAY))
        new_day = ", for a new day's log with --start-from and this run (docs/day_two.md)" if new_log else ""
        raise UserError(
            f"{problem}: {_some(differing, '; ', _FIELDS)}; give another {other}{new_day}, or the same options."
        )


def check_same_rows(path: str, saved: Rows, current: Rows) -> None:
    """Raises UserError, which names what differs, if the log has other rows than the checkpoint at `path` was made of.

    Compares what the files' footers tell at both times, so that a program or writer that knows less differs in nothing.

    Args:
        path: of the checkpoint, for the message.
        saved: `data.footers.contents` of the splits that it was made of.
        current: those of this run.
    """
    for split, contents in saved.items():
        differing = [entry for entry, value in contents.items() if current[split].get(entry, value) != value]
        if differing:
            raise UserError(
                f"{split}/ of the log does not hold the rows that {path} was made of (not the same: "
                f"{_some(differing)}); give the log as it was, or, for a new day's, another --output-dir with "
                "--start-from and this run, see docs/day_two.md."
            )


def entries_left_out(saved: Rows, current: Rows) -> str:
    """The first of the entries, and how many more, that the log's files told before and do not tell now; or nothing."""
    entries = [entry for split, contents in saved.items() for entry in contents if entry not in current[split]]
    return _some(list(dict.fromkeys(entries)))


def _some(entries: Sequence[str], comma: str = ", ", named: int = _NAMED) -> str:
    return comma.join(entries[:named]) + (f" and {len(entries) - named} more" if len(entries) > named else "")


def _fields(values: Mapping[str, Any], names: tuple[str, ...], prefix: str = "") -> dict[str, Any]:
    """The fields `names`, and those inside them one level down, by dotted name; of features each by its name.

    Example::

        _fields({"model": {"arch": "stem"}, "seed": 0}, ("model", "seed"))  # {"model.arch": "stem", "seed": 0}
        _fields({"sparse_features": [{"name": "uid", "num_embeddings": 9}]}, ("sparse_features",))
        # {"sparse_features": ["uid"], "sparse_features.uid.num_embeddings": 9}
    """
    fields: dict[str, Any] = {}
    for name in names:
        value: Any = values
        for part in name.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        if isinstance(value, Mapping):
            fields |= {f"{prefix}{name}.{leaf}": inner for leaf, inner in value.items()}
        elif name == "sparse_features" and value:
            fields[f"{prefix}{name}"] = [each["name"] for each in value]
            for each in value:
                of_feature = {leaf: inner for leaf, inner in each.items() if leaf != "name"}
                fields |= {f"{prefix}{name}.{each['name']}.{leaf}": inner for leaf, inner in of_feature.items()}
        else:
            fields[f"{prefix}{name}"] = value
    return fields
