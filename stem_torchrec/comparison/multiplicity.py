"""Many comparisons at once: p-values adjusted for the number of comparisons that are made together.

Of twenty comparisons without a difference, one has an interval of 95 % that excludes 0. So a report names a difference
better or worse by its adjusted p-value. Holm's method bounds the probability that any comparison of a family is wrongly
called different, Benjamini and Hochberg's the expected share of wrong ones among those that are.
"""

import math
from collections.abc import Hashable, Mapping
from dataclasses import replace
from typing import Literal, TypeVar

import numpy as np

from stem_torchrec.comparison.intervals import Interval

Correction = Literal["holm", "benjamini_hochberg"]
_METHODS: Mapping[Correction, str] = {"holm": "holm", "benjamini_hochberg": "fdr_bh"}
_NAMES: Mapping[Correction, str] = {"holm": "Holm's method", "benjamini_hochberg": "Benjamini and Hochberg's method"}
_LEAST_DRAWS, _MOST_DRAWS = 1000, 20_000

KeyT = TypeVar("KeyT", bound=Hashable)


def adjust(family: Mapping[KeyT, Interval], correction: Correction) -> dict[KeyT, Interval]:
    """The comparisons of a family with adjusted p-values; those without an interval do not count.

    Example::

        adjust({"a": Interval(p=0.01, ...), "b": Interval(p=0.04, ...)}, "holm")["a"].adjusted  # 0.02
    """
    # Imported late, as it takes a second.
    from statsmodels.stats.multitest import multipletests

    compared = [key for key, interval in family.items() if not np.isnan(interval.p)]
    if not compared:
        return dict(family)
    _, adjusted, *_ = multipletests([family[key].p for key in compared], method=_METHODS[correction])
    by_key = dict(zip(compared, adjusted.tolist(), strict=True))
    return {key: replace(each, adjusted=by_key[key]) if key in by_key else each for key, each in family.items()}


def draws_needed(comparisons: int, confidence: float) -> int:
    """Draws of users with which a difference can stand out from so many comparisons on its own.

    The smallest p-value of B draws is 2 / (B + 1), and a correction multiplies it by the number of comparisons.
    """
    return math.ceil(round(2 * comparisons / (1 - confidence), 6))


def draws_for(comparisons: int, confidence: float) -> int:
    """The draws that so many comparisons need, but at least 1000, and at most 20,000, which take minutes."""
    return min(max(_LEAST_DRAWS, draws_needed(comparisons, confidence)), _MOST_DRAWS)


def describe_family(family: Mapping[KeyT, Interval], correction: Correction, *, draws: int, confidence: float) -> str:
    """Sentences on the number of comparisons in a family, and on the smallest p-value that its draws allow."""
    number = sum(not np.isnan(interval.p) for interval in family.values())
    text = (
        f"The family has {number:,} comparison{'s' * (number != 1)}, whose p-values are adjusted by "
        f"{_NAMES[correction]}; intervals and p-values come from {draws:,} draws."
    )
    if not number:
        return text
    smallest = 2 / (draws + 1)
    text += f" The smallest p-value that so many draws allow is {smallest:.2g}, times {number:,} it is "
    if number * smallest <= 1 - confidence:
        return f"{text}{number * smallest:.2g}."
    return (
        f"{text}{number * smallest:.2g} and above {1 - confidence:.2g}, so with so few draws none stands out on its "
        f"own; give --resamples {draws_needed(number, confidence)} or more."
    )
