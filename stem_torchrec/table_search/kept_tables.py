"""Which tables of tasks are kept within a memory budget, and the options of a model that has only these."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from stem_torchrec.models.options import OwnTableOptions
from stem_torchrec.runtime.errors import UserError
from stem_torchrec.table_search.table_worth import TableWorth
from stem_torchrec.tables import SHARED, table_feature, table_group


def keep_tables(measured: Sequence[TableWorth], *, shared_bytes: int, budget: float | None) -> list[TableWorth]:
    """The tables to keep, by their worth for each byte, as long as they fit beside the shared ones.

    With a budget every table counts that is worth anything, without one those that are worth more than two standard
    errors. Worths are measured one table at a time and added up here; the training of the choice puts that to the
    test.

    Args:
        measured: all tables of tasks.
        shared_bytes: of the shared tables and their states.
        budget: bytes for all tables; None for no limit.

    Raises UserError for a budget below the shared tables.
    """
    if budget is not None and budget < shared_bytes:
        raise UserError(
            f"--budget-gb is {budget / 1e9:g}, but the shared tables alone take {shared_bytes / 1e9:.3g}; give more, "
            "or a smaller --model.embedding-dim."
        )
    kept, taken = [], shared_bytes
    for each in sorted(measured, key=lambda each: -each.worth / each.bytes):
        counts = each.counts if budget is None else each.worth > 0 and taken + each.bytes <= budget
        if counts:
            kept.append(each)
            taken += each.bytes
    return kept


def model_to_take(choice_is: Mapping[str, Collection[str]], fitting: Sequence[str]) -> str:
    """The model that is trained further: the choice, unless one beside which it is worse and nowhere better also fits.

    Args:
        choice_is: by another model, the verdicts on the choice beside it, of each task and measure.
        fitting: the other models that fit the budget, the smallest first.

    Example::

        model_to_take({"all": ["worse", "within noise"], "shared": ["better", "better"]}, ["shared"])         # "chosen"
        model_to_take({"all": ["worse", "within noise"], "shared": ["better", "better"]}, ["shared", "all"])  # "all"
    """
    return next((other for other in fitting if _loses(choice_is.get(other, ()))), "chosen")


def _loses(verdicts: Collection[str]) -> bool:
    return "worse" in verdicts and "better" not in verdicts


def sentence_of(taken: str, choice_is: Mapping[str, Collection[str]]) -> str:
    """What best.yaml trains, and where the choice loses to what does not fit the budget."""
    names = {"chosen": "the tables that are kept", "shared": "shared tables alone", "all": "all tables"}
    if taken != "chosen":
        return f"best.yaml trains with {names[taken]}: beside these those that are kept are worse, and nowhere better."
    too_large = [name for name, verdicts in choice_is.items() if _loses(verdicts)]
    beside = f"; {names[too_large[0]]} are better, and do not fit --budget-gb" if too_large else ""
    return f"best.yaml trains with {names['chosen']}{beside}."


def with_kept(
    model: OwnTableOptions, measured: Collection[str], kept: Collection[str], tasks: Sequence[str]
) -> OwnTableOptions:
    """The options of a model that has, of the tables of tasks in `measured`, only those in `kept`.

    Example::

        with_kept(STEMOptions(), ["like/uid", "like/tags"], ["like/uid"], ["like"])  # STEMOptions(own_tables=("uid",))
    """
    groups = list(dict.fromkeys(table_group(table) for table in measured))
    features = list(dict.fromkeys(table_feature(table) for table in measured))
    left = {group: [f for f in features if f"{group}/{f}" in kept] for group in groups}
    choice, sets = model.table_choice(), [set(of_group) for of_group in left.values() if of_group]
    # A group without a table is said so; one set of features for all others is their list.
    alone = {task: SHARED for task in tasks if not left.get(choice.groups.get(task, task))}
    present = {SHARED, *(group for group in left if left[group])}
    widths = {name: width for name, width in model.table_widths.items() if name.partition("/")[0] in present}
    chosen = replace(model, table_groups={**model.table_groups, **alone})
    if sets and all(each == sets[0] for each in sets) and not widths and not model.own_tables:
        own = tuple(feature for feature in features if feature in sets[0])
        return replace(chosen, own_tables=own if len(own) < len(features) else (), table_widths={})
    gone = {table: 0 for table in measured if table not in kept and table_group(table) in present}
    return replace(chosen, table_widths=widths | gone)
