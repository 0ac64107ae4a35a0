"""How often each id occurs in each split and with which labels: one grouping of the rows, which the report reads.

A table of counts has a row for each id, and for each label i the columns `positives_i_SPLIT` and `labels_i_SPLIT`::

    id    rows_train  rows_valid  rows_test  positives_0_train  labels_0_train  positives_0_valid  labels_0_valid
    7     120         11          9          30                 120             4                  11
    null  2           0           0          0                  2               0                  0
"""

from collections.abc import Mapping, Sequence

import ibis
import ibis.expr.types as ir

from stem_torchrec.data.new_log import SPLITS
from stem_torchrec.preparation.engines.engine import in_order
from stem_torchrec.preparation.writing.encoding import is_positive

LABELED = ("train", "valid")
"""Splits whose labels are counted: rates are fitted on the first and judged on the second."""
_LEAST_POWER = 500
"""Added to a power of ten, which is above -324 in a double."""


def count_ids(parts: Mapping[str, ir.Table], tasks: int) -> ir.Table:
    """The counts of ids.

    Args:
        parts: for each split, a row for each id of a row, with the columns `id` and `label_0`, `label_1`, ....
        tasks: how many labels there are.
    """
    counted = [_counted(part, split, tasks) for split, part in parts.items()]
    # Each row is grouped once; what is grouped again is one row for each id and split.
    together = in_order(counted)
    sums = {name: together[name].sum().cast("int64") for name in count_columns(tasks)}
    return together.group_by("id").aggregate(**sums)


def count_columns(tasks: int) -> list[str]:
    """The columns of a table of counts besides `id`."""
    labels = [f"{kind}_{i}_{split}" for i in range(tasks) for split in LABELED for kind in ("positives", "labels")]
    return [*(f"rows_{split}" for split in SPLITS), *labels]


def _counted(part: ir.Table, split: str, tasks: int) -> ir.Table:
    sums: dict[str, ir.Value] = {f"rows_{split}": part.count()}
    for i in range(tasks) if split in LABELED else ():
        label = part[f"label_{i}"]
        sums |= {f"positives_{i}_{split}": label.sum(), f"labels_{i}_{split}": label.count()}
    grouped = part.group_by("id").aggregate(**sums)
    zero = ibis.literal(0, "int64")
    columns = {
        name: grouped[name].fill_null(0).cast("int64") if name in sums else zero for name in count_columns(tasks)
    }
    return grouped.select(id=grouped["id"], **columns)


def with_labels(table: ir.Table, id_column: ir.Value, labels: Sequence[str]) -> ir.Table:
    """The ids of rows, one row for each id of a list, with the labels at these columns.

    A row whose list is empty or missing has no ids.
    """
    values = {f"label_{i}": is_positive(table[name]) for i, name in enumerate(labels)}
    return table.select(id=id_column.unnest() if id_column.type().is_array() else id_column, **values)


def leading_digits(number: ir.Value) -> ir.Value:
    """A whole number that rises with a number and has its sign, its power of ten and its first three digits, rounded.

    So a column of any number of values has some thousand ids, in the order of the values, and whole numbers below 1000
    each have their own. `number_of_digits` is the way back.

    Example::

        # 17.0 -> 1000 * (1 + 500) + 170;  0.12345 -> 1000 * (-1 + 500) + 123;  -0.12345 -> the negative of that
    """
    number = number.cast("float64")  # Of true and false as well.
    size = number.abs()
    exponent = size.nullif(0.0).log10().floor().fill_null(0.0)
    digits = (size * ibis.literal(10.0).pow(2.0 - exponent) + 0.5).floor()
    key = ((exponent + _LEAST_POWER) * 1000 + digits).cast("int64")
    return ibis.cases((number > 0, key), (number < 0, -key), (number.notnull(), 0), else_=ibis.null("int64"))


def number_of_digits(key: int) -> float:
    """The number that `leading_digits` gave this id, rounded to three digits."""
    exponent, digits = divmod(abs(key), 1000)
    # 999.6 has the digits 1000, which are 0 of the next power.
    mantissa = digits if digits >= 100 else 1000 + digits
    power = exponent - _LEAST_POWER - 2 - (digits < 100)
    return (-1 if key < 0 else 1) * float(f"{mantissa}e{power}") if key else 0.0
