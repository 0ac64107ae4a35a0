"""What an earlier log has fitted, for the log of another day: the same ids, edges, means and deviations."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from stem_torchrec.config.formats import without_format
from stem_torchrec.config.json_text import parse_json
from stem_torchrec.config.serialization import to_dict
from stem_torchrec.config.yaml_text import parse_yaml
from stem_torchrec.data.new_log import TRANSFORMS_FILE, TRANSFORMS_FORMAT, VOCABULARY, WAITING
from stem_torchrec.expressions.expression import Expression, from_json
from stem_torchrec.preparation.fitting.id_spaces import IdSpace
from stem_torchrec.preparation.specs.spec import Spec
from stem_torchrec.preparation.specs.spec_expressions import SpecExpressions
from stem_torchrec.preparation.specs.spec_file import SPEC_FILE, read_spec
from stem_torchrec.runtime.errors import UserError, reason_of


@dataclass(frozen=True)
class EarlierLog:
    """A prepared log whose ids another log takes over."""

    folder: Path
    features: Mapping[str, Expression]
    """The fitted step of each feature, over its value."""
    dense: Mapping[str, Expression]
    spaces: Mapping[str, Mapping[str, Any]]
    """Of each vocabulary the type of its values, its features, and the ids of the first and the missing value."""
    spec: Spec
    """What the log was made by."""
    grows: bool
    """Whether new values get ids behind the old ones, and new features are fitted."""

    def vocabulary(self, name: str) -> Path:
        """The file of a vocabulary."""
        return self.folder / VOCABULARY / f"{name}.parquet"

    def waiting(self, name: str) -> Path | None:
        """The file of the values that wait for an id; None in a log of a version that wrote none."""
        file = self.folder / WAITING / f"{name}.parquet"
        return file if file.is_file() else None


def read_earlier_log(path: str, *, grows: bool) -> EarlierLog:
    """Reads what a log has fitted.

    Args:
        path: of a log, or of a run, which names its log.
        grows: see EarlierLog.

    Raises UserError if it is neither, or the log was not prepared by `stem-prepare`.
    """
    folder = Path(path)
    config = folder / "config.yaml"
    if config.is_file():
        folder = _log_of_run(config)
    file = folder / TRANSFORMS_FILE
    try:
        content = without_format(parse_json(file.read_bytes()), TRANSFORMS_FORMAT, str(file))
        fitted = content["fitted"]
        features, dense = (
            {name: from_json(tree, f"fitted.{kind}.{name}") for name, tree in fitted[kind].items()}
            for kind in ("features", "dense")
        )
        spaces = dict(content["vocabularies"])
        earlier = EarlierLog(folder, features, dense, spaces, read_spec(folder / SPEC_FILE), grows)
        for name in spaces:
            pq.read_schema(earlier.vocabulary(name)).field("id")
            if (waiting := earlier.waiting(name)) is not None:
                pq.read_schema(waiting).field("missed")
        return earlier
    except FileNotFoundError as error:
        if file.is_file():
            raise UserError(f"{folder} lacks a file ({reason_of(error)[:200]}); prepare that log again.") from error
        raise UserError(
            f"--vocabularies {path}: {folder} has no {TRANSFORMS_FILE}, which stem-prepare writes into a log; give a "
            "log or a run."
        ) from error
    except UserError:
        raise
    except (OSError, ValueError, LookupError, TypeError, AttributeError, pa.ArrowException) as error:
        raise UserError(f"{folder} cannot be read ({reason_of(error)[:200]}); prepare that log again.") from error


def _log_of_run(config: Path) -> Path:
    try:
        path = parse_yaml(config.read_text())["data"]["path"]
        assert isinstance(path, str)
    except (OSError, ValueError, LookupError, TypeError, AssertionError) as error:
        raise UserError(f"{config} names no log of a path; give the log itself to --vocabularies.") from error
    return Path(path)


def check_earlier_log(
    earlier: EarlierLog, spec: Spec, expressions: SpecExpressions, spaces: Mapping[str, IdSpace]
) -> None:
    """Raises UserError for a feature that the earlier log lacks, or has with other ids."""
    for kind, names, known in (
        ("features", spec.features, earlier.features),
        ("dense", spec.dense, earlier.dense),
    ):
        new = [name for name in names if name not in known]
        if new and not earlier.grows:
            raise UserError(f"{kind}[{new[0]}] is not in {earlier.folder}; add --grow to fit it anew, or leave it out.")
    _check_steps(earlier, spec)
    for name, space in spaces.items():
        if name not in earlier.spaces:
            if name in earlier.features and not (earlier.grows and earlier.spec.id_features[name].hash):
                raise UserError(f"features[{name}] has a vocabulary, but none in {earlier.folder}; keep its ids.")
            continue
        old, kind = earlier.spaces[name], str(expressions.features[name].type)
        if (old_missing := old.get("missing_id")) != space.missing_id:
            # All other ids begin one later with it.
            now, before = ("no" if each is None else "an" for each in (space.missing_id, old_missing))
            raise UserError(
                f"features[{name}] gives a missing value {now} id of its own, but {before} id of its own in "
                f"{earlier.folder}, whose ids are taken over; give the same missing."
            )
        new_entry = space_entry(space, kind)
        for field, value in new_entry.items():
            if field != "features" and old.get(field) != value:
                raise UserError(
                    f"features[{name}] has {field} {value}, but {old.get(field)} in {earlier.folder}: that is the "
                    "vocabulary of another feature."
                )


def _check_steps(earlier: EarlierLog, spec: Spec) -> None:
    """Raises UserError for a feature whose ids or numbers would not be made as in the earlier log."""
    for kind, new, old, fields in (
        ("features", spec.id_features, earlier.spec.id_features, ("buckets", "hash", "identity")),
        ("dense", spec.numbers, earlier.spec.numbers, ("log", "clip", "quantiles", "standardize", "missing")),
    ):
        for name in [name for name in new if name in old]:
            given, known = to_dict(new[name]), to_dict(old[name])
            for field in fields:
                # More ids of the same kind are new rows of the tables; a vocabulary may become a hash, and a hash a
                # vocabulary, which a run takes with --start.hash-ids alone.
                more = field == "identity" and given[field] and known[field]
                hashed = field == "hash" and earlier.grows and None in (given[field], known[field])
                if given[field] != known[field] and not more and not hashed:
                    raise UserError(
                        f"{kind}[{name}].{field} is {_words(given[field])}, but {_words(known[field])} in "
                        f"{earlier.folder}, whose ids and constants are taken over; give the same."
                    )


def _words(value: Any) -> str:
    return "left out" if value is None else str(value)


def space_entry(space: IdSpace, kind: str) -> dict[str, Any]:
    """What transforms.json says of a vocabulary; `kind` is the type of the feature's value."""
    return {
        "type": kind.removeprefix("list<").removesuffix(">"),
        "first_id": space.first_id,
        "missing_id": space.missing_id,
        "features": list(space.features),
    }
