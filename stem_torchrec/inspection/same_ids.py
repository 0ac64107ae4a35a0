"""Whether the ids of two runs mean the same, by what their start.json and their logs tell."""

import torch

from stem_torchrec.run_report.run_record import RunRecord
from stem_torchrec.run_report.vocabularies import read_values, vocabularies_of_run
from stem_torchrec.runtime.errors import UserError, reason_of
from stem_torchrec.starting.id_maps import LogIds, map_ids
from stem_torchrec.starting.id_spaces import read_id_spaces


def ids_of(run: RunRecord) -> LogIds:
    """The ids of a run's log when it was trained; of a run without start.json, those of the log now, if it is there."""
    if run.start is not None:
        return LogIds(run.start.log.path, run.start.ids)
    path = run.config.data.path
    try:
        return LogIds(path, {} if path is None else read_id_spaces(path, run.columns))
    except UserError:
        return LogIds(path, {})


def other_value(run: RunRecord, other: RunRecord, feature: str) -> str:
    """What tells that the ids of two runs mean something else, in words; "" if they mean the same, or nothing tells.

    Vocabularies are compared by the fingerprints of their values, and read only if these differ.

    Example::

        other_value(run, other, "color")  # "id 3 of 'color' is 'red', not 'green'"
    """
    ids = {each.folder: ids_of(each) for each in (run, other)}
    spaces = {folder: each.spaces[feature] for folder, each in ids.items() if feature in each.spaces}
    kinds = {space.kind for space in spaces.values()}
    if len(spaces) < 2 or kinds & {"unknown", "identity"}:
        return ""
    # A larger vocabulary may begin with the smaller one.
    old, new = sorted((run, other), key=lambda each: spaces[each.folder].values)
    pair = [LogIds(ids[each.folder].log, {feature: spaces[each.folder]}) for each in (old, new)]
    try:
        rows = map_ids(*pair, name=str(old.folder), hashed=False)[feature].rows
    except UserError as error:
        # Without the advice for a run that is to start.
        return reason_of(error).partition(";")[0]
    if rows is None:
        return ""
    if kinds == {"hash"}:
        return f"a value of {feature!r} has several ids, by other hashes"
    common = min(space.rows for space in spaces.values())
    different = (rows[:common] != torch.arange(common)).nonzero().flatten().tolist()
    values = [_value(each, feature, different[0]) for each in (run, other)]
    return f"id {different[0]} of {feature!r} is {values[0]}, not {values[1]}"


def _value(run: RunRecord, feature: str, row: int) -> str:
    file = vocabularies_of_run(run).get(feature)
    values = [] if file is None else read_values(file, [("id", "=", row)]).values
    return repr(values[0]) if values else "a missing value"
