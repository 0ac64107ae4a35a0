"""The leak check: how well the rate of each feature alone, fitted on train, ranks the rows of valid.

The rate of an id is the share of positive labels among its rows in train, with SMOOTHING rows of the mean rate besides:
(positives + SMOOTHING * mean) / (labels + SMOOTHING). A list of ids has the mean of their rates; an id that train lacks
has the mean rate. A number has the rate of its bucket, one of BUCKETS with about equally many rows of train.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import ibis
import ibis.expr.types as ir

from stem_torchrec.preparation.engines.engine import in_order
from stem_torchrec.preparation.report.counts import count_columns
from stem_torchrec.preparation.report.leak_rule import BUCKETS, LEAST_ROWS, SMOOTHING, leaks_of

_DIGITS = 12
"""Of a mean of rates: the last ones depend on the order in which an engine adds, and would untie equal lists."""


@dataclass(frozen=True)
class LoneAuc:
    """The AUC of one feature for one label on valid."""

    auc: float
    positives: int
    negatives: int


def scores_of_ids(counts: ir.Table, rates: Sequence[float]) -> ir.Table:
    """Columns task, score, positives and negatives: what the rows of valid with one id have.

    Args:
        counts: of ids, as `count_ids` makes them.
        rates: the mean of each label in train.
    """
    return in_order([_scores(counts, i, _rate(counts, i, rate)) for i, rate in enumerate(rates)])


def scores_of_lists(lists: ir.Table, counts: ir.Table, rates: Sequence[float]) -> ir.Table:
    """As scores_of_ids, of rows that have a list of ids each.

    Args:
        lists: the different lists of the rows of valid, in `id`, with their labels as `count_ids` counts them.
        counts: of the ids in lists.
        rates: the mean of each label in train.
    """
    table = counts.select(one="id", **{f"rate_{i}": _rate(counts, i, rate) for i, rate in enumerate(rates)})
    elements = lists.filter(lists["id"].length() > 0).select("id")
    elements = elements.select(list="id", element=elements["id"].unnest())
    joined = elements.left_join(table, elements["element"] == table["one"])
    means = {f"mean_{i}": joined[f"rate_{i}"].fill_null(rate).mean().round(_DIGITS) for i, rate in enumerate(rates)}
    by_list = joined.group_by("list").aggregate(**means)
    scored = lists.left_join(by_list, lists["id"] == by_list["list"])
    return in_order([_scores(scored, i, scored[f"mean_{i}"].fill_null(rate)) for i, rate in enumerate(rates)])


def in_buckets(counts: ir.Table, tasks: int, rows: int) -> ir.Table:
    """The counts of buckets of neighbouring ids, with about equally many rows of train each; null stays by itself.

    Args:
        counts: of ids whose order means something.
        tasks: how many labels there are.
        rows: of train that have an id.
    """
    window = ibis.cumulative_window(group_by=counts["id"].isnull(), order_by="id")
    before = counts["rows_train"].sum().over(window) - counts["rows_train"]
    bucket = (before * BUCKETS / max(rows, 1)).floor().cast("int64")
    table = counts.mutate(bucket=ibis.ifelse(counts["id"].isnull(), ibis.literal(-1, "int64"), bucket))
    sums = {name: table[name].sum().cast("int64") for name in count_columns(tasks)}
    return table.group_by("bucket").aggregate(**sums)


def _rate(counts: ir.Table, task: int, rate: float) -> ir.Value:
    positives, labels = counts[f"positives_{task}_train"], counts[f"labels_{task}_train"]
    return (positives + SMOOTHING * rate) / (labels + SMOOTHING)


def _scores(counts: ir.Table, task: int, score: ir.Value) -> ir.Table:
    positives, labels = counts[f"positives_{task}_valid"], counts[f"labels_{task}_valid"]
    table = counts.select(task=ibis.literal(task), score=score, positives=positives, negatives=labels - positives)
    return table.filter(table["positives"] + table["negatives"] > 0)


def auc_of_scores(scores: ir.Table) -> ir.Table:
    """Columns task, won, positives and negatives; AUC = won / (positives * negatives).

    `won` counts the pairs of a positive and a negative row in which the positive one has the greater score, and half
    of those that tie: sum over scores s of positives(s) * (negatives below s + negatives(s) / 2).
    """
    sums = {name: scores[name].sum().cast("float64") for name in ("positives", "negatives")}
    table = scores.group_by("task", "score").aggregate(**sums)
    window = ibis.cumulative_window(group_by="task", order_by="score")
    below = table["negatives"].sum().over(window) - table["negatives"] / 2
    table = table.mutate(won=table["positives"] * below)
    names = ("won", "positives", "negatives")
    return table.group_by("task").aggregate(**{name: table[name].sum() for name in names})


def leak_warnings(aucs: Mapping[str, Mapping[str, LoneAuc]], group: Sequence[str] = ()) -> list[str]:
    """A sentence for each feature that leaks a label, or looks like it, by the rule of `leaks_of`.

    Args:
        aucs: by label, and by feature.
        group: features that are the group of gAUC.
    """
    sentences = []
    for label, by_feature in aucs.items():
        enough = {
            name: lone.auc for name, lone in by_feature.items() if min(lone.positives, lone.negatives) >= LEAST_ROWS
        }
        for name, leak in leaks_of(enough, group).items():
            verb = "leaks" if leak.certain else "may leak"
            usual = f"the median of the other {leak.others} features is {leak.usual:.3f}"
            beside = f", where {usual}" if leak.others else ""
            sentences.append(
                f"feature {name!r} {verb} the label {label!r}: its rate of train alone has an AUC of {leak.auc:.3f} on "
                f"valid{beside}. Leave it out unless it is known before the exposure."
            )
    return sentences
