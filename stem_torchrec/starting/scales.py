"""How a log made its numbers and buckets, so that another log's can be compared with them.

Preparation fits means, deviations, quantiles and the edges of buckets. A model that was trained on a log misreads
another one whose fitted constants differ, even by a day.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

from stem_torchrec.config.formats import without_format
from stem_torchrec.config.json_text import parse_json
from stem_torchrec.data.columns import Columns
from stem_torchrec.data.new_log import TRANSFORMS_FILE, TRANSFORMS_FORMAT
from stem_torchrec.runtime.errors import UserError
from stem_torchrec.runtime.store_path import path_of


def calls_of(tree: Any) -> Iterator[Mapping[str, Any]]:
    """The calls in a tree of transforms.json, the outermost first."""
    if isinstance(tree, Mapping) and "call" in tree:
        yield tree
        for argument in tree.get("arguments", []):
            yield from calls_of(argument)


def read_scales(log: str, columns: Columns) -> dict[str, str]:
    """A fingerprint of how each dense feature, and each feature of buckets, is made from the raw values, by feature.

    {} for a log without a transforms.json that can be read, which a run can do without.

    Args:
        log: folder of the log.
        columns: of the run.

    Example::

        read_scales("data/monday", columns)  # {"price": "5f0c1e22a90b7d34", "age_bucket": "b1946ac92492d234"}
    """
    path = path_of(log) / TRANSFORMS_FILE
    try:
        content = without_format(parse_json(path.read_text()), TRANSFORMS_FORMAT, str(path)) if path.exists() else {}
        dense, features = dict(content.get("dense", {})), dict(content.get("features", {}))
    except (UserError, OSError, ValueError, TypeError, AttributeError):
        return {}
    trees = {name: dense.get(columns.column_of(name)) for name in columns.dense}
    for name in columns.sparse:
        tree = features.get(columns.column_of(name))
        if any(call["call"] == "bucket" for call in calls_of(tree)):
            trees[name] = tree
    return {name: _fingerprint(tree) for name, tree in trees.items() if tree is not None}


def _fingerprint(tree: Any) -> str:
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()[:16]


def note_of_other_scales(
    before: Mapping[str, str], now: Mapping[str, str], *, run: str, old_log: str, log: str
) -> str | None:
    """A sentence for the features that a log scales otherwise than that of a run; None if there is none.

    Args:
        before: what `read_scales` returned for the run's log.
        now: the same for the other log.
        run: its name in the sentence.
        old_log: folder of the run's log.
        log: folder of the other one.
    """
    names = [name for name, scale in now.items() if before.get(name, scale) != scale]
    if not names:
        return None
    many = len(names) > 1
    fix = (
        f"prepare it again with stem-prepare ... --vocabularies {old_log} --grow, which keeps scales, edges and ids"
        if old_log != log
        else f"{log} has replaced the log of the run, so nothing has the old scale; keep the log of each day for "
        "--vocabularies"
    )
    return (
        f"{', '.join(names)} {'are' if many else 'is'} scaled otherwise in {log} than in the log of {run}, so "
        f"predictions from {'them' if many else 'it'} are off until the model has learned the new scale; {fix}"
    )
