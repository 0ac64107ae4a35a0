"""The models that a comparison may name: all of the table of models, and STEM with one option changed."""

from collections.abc import Mapping
from typing import Any

from stem_torchrec.models.table import MODELS

_VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "stem_reads_own": {"arch": "stem", "reads": "own_shared"},
    "stem_trains_all": {"arch": "stem", "trains": "all"},
    "stem_gate_task": {"arch": "stem", "gate_input": "task"},
    "stem_gate_shared": {"arch": "stem", "gate_input": "shared"},
    "stem_alone": {"arch": "stem"},
    "stem_norm": {"arch": "stem", "expert": "norm"},
    "stem_cross": {"arch": "stem", "expert": "cross"},
    "stem_gates": {"arch": "stem", "feature_gate": True, "self_gate": True},
    "stem_covariance": {"arch": "stem", "covariance_weight": 1.0},
}
"""Ablations of STEM, and its options, by what they set. A loss trains at most what its gate reads, so a STEM that reads
own and shared and trains all is stem_reads_own. stem_alone is a STEM for each task by itself, which has the capacity of
one, and no label of another task."""
ALONE = ("single_task", "stem_alone")
"""Models that are one run for each task."""


def comparable_models() -> dict[str, Mapping[str, Any]]:
    """The models that can be compared, by name, with the model options that each sets: all models, and variants."""
    return {**{arch: {"arch": arch} for arch in MODELS}, **_VARIANTS}
