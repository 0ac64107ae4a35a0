"""What counts as a leak: the constants and the rule of the report's leak check and of guessing."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from statistics import median

SMOOTHING = 10.0
"""Rows of the mean rate that each id has besides its own."""
BUCKETS = 100
"""Buckets of a number, with about equally many rows of train each."""
LEAK_AUC = 0.95
"""AUC of one feature from which on it leaks the label."""
HIGH_AUC = 0.88
"""AUC from which on a feature may leak the label, if it is far above the others."""
TIMES = 3.0
"""How many times the median lift of the others is far above; the lift is the AUC less 0.5."""
LEAST_OTHERS = 3
"""Other features without which none is far above them."""
LEAST_ROWS = 20
"""Positive and negative rows below which an AUC says nothing."""


@dataclass(frozen=True)
class Leak:
    """A feature that leaks a label, or may do so."""

    auc: float
    certain: bool
    """Whether it leaks by its AUC alone."""
    others: int
    usual: float
    """Median AUC of the other features, at least 0.5."""


def leaks_of(aucs: Mapping[str, float], groups: Collection[str] = ()) -> dict[str, Leak]:
    """The features that leak a label, or look like it.

    These are a feature with an AUC of at least LEAK_AUC, and one with at least HIGH_AUC and TIMES times the median lift
    of the other features. The latter does not hold for what tells groups apart: users differ by nature.

    Args:
        aucs: of each feature alone.
        groups: features that are the group of gAUC.

    Example::

        leaks_of({"user": 0.7, "item": 0.6, "tag": 0.55, "stage": 0.9})  # {"stage": Leak(0.9, False, 3, 0.6)}
    """
    leaks = {}
    for name, auc in aucs.items():
        others = [other for each, other in aucs.items() if each != name]
        usual = max(median(others), 0.5) if others else 0.5
        far = len(others) >= LEAST_OTHERS and auc - 0.5 >= TIMES * (usual - 0.5) and name not in groups
        if auc >= LEAK_AUC or (auc >= HIGH_AUC and far):
            leaks[name] = Leak(auc, auc >= LEAK_AUC, len(others), usual)
    return leaks
