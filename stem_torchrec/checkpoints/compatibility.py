"""Whether a run can go on from a checkpoint: the same model, optimizer of tables, log and order of rows."""

from collections.abc import Mapping
from typing import Any

from stem_torchrec.runtime.errors import UserError

_SAME = ("model", "sparse.name", "data.features", "data.labels", "data.shuffle_rows", "seed")
_FREE = ("model.layout",)
"""Weights and states carry over to the other layout."""
_SAME_IN_SCHEMA = ("sparse_features", "dense_features", "labels", "splits.train.rows", "row_groups")


def check_same_run(
    path: str,
    there: tuple[Mapping[str, Any], Mapping[str, Any]],
    here: tuple[Mapping[str, Any], Mapping[str, Any]],
) -> None:
    """Raises UserError that names the fields in which what is at `path` is another run's.

    Args:
        path: of the checkpoint or run.
        there: its configuration and its log's schema, as plain values.
        here: those of this run.
    """
    old, new = (
        {**_fields(config, _SAME), **_fields(schema, _SAME_IN_SCHEMA, "schema.")} for config, schema in (there, here)
    )
    differing = [
        f"{name} is {old.get(name)} there and {new.get(name)} here"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name) and name not in _FREE
    ]
    if differing:
        raise UserError(
            f"{path} is another run's: {'; '.join(differing)}; give another --output-dir, or the same options."
        )


def _fields(values: Mapping[str, Any], names: tuple[str, ...], prefix: str = "") -> dict[str, Any]:
    """The leaves below `names`, by dotted name."""
    found: dict[str, Any] = {}
    for name in names:
        value: Any = values
        for part in name.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        if isinstance(value, Mapping):
            found |= {f"{prefix}{name}.{leaf}": inner for leaf, inner in value.items()}
        else:
            found[f"{prefix}{name}"] = value
    return found
