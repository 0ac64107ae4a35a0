"""The variants that every comparison may name: the table of models, and methods and ablations by what they set."""

from collections.abc import Mapping
from typing import Any

from stem_torchrec.comparison.variants import ALONE, ARCH, RECIPE, Variant, variant
from stem_torchrec.models.table import MODELS

_STEM: Mapping[str, Mapping[str, Any]] = {
    "stem_reads_own": {"model.reads": "own_shared"},
    "stem_trains_all": {"model.trains": "all"},
    "stem_gate_task": {"model.gate_input": "task"},
    "stem_gate_shared": {"model.gate_input": "shared"},
    "stem_alone": {ALONE: True},
    "stem_norm": {"model.expert": "norm"},
    "stem_cross": {"model.expert": "cross"},
    "stem_cross_norm": {"model.expert": "cross_norm"},
    "stem_feature_gate": {"model.feature_gate": True},
    "stem_self_gate": {"model.self_gate": True},
    "stem_gates": {"model.feature_gate": True, "model.self_gate": True},
    "stem_covariance": {"model.covariance_weight": 1.0},
    "stem_focal": {"loss.kinds": {"*": "focal"}},
    "stem_smoothed": {"loss.kinds": {"*": "smoothed"}},
    "stem_pairs": {"loss.kinds": {"*": "pairs"}},
    "stem_jrc": {"loss.kinds": {"*": "jrc"}},
    "stem_positives": {"loss.positive_weights": {"*": 10.0}},
    "stem_uncertainty": {"balance.weights": "uncertainty"},
    "stem_dwa": {"balance.weights": "dwa", "balance.period": 0},
    "stem_pareto": {"balance.weights": "pareto"},
    "stem_pcgrad": {"balance.gradients": "pcgrad"},
    "stem_cagrad": {"balance.gradients": "cagrad"},
    "stem_gradcraft": {"balance.gradients": "gradcraft"},
    "stem_mgda": {"balance.gradients": "mgda"},
    "stem_by_task": {"train.best_by_task": True},
}
"""Ablations of STEM, and STEM with each method that is an option, by what they set. A loss trains at most what its gate
reads, so a STEM that reads own and shared and trains all is stem_reads_own. stem_alone is a STEM for each task by
itself, which has the capacity of one, and no label of another task."""


_BASELINE_RATE = {"sparse.learning_rate": 1e-4, "dense.learning_rate": 1e-4}
VARIANTS: Mapping[str, Variant] = {
    **{name: variant(name, {ARCH: "stem", **values}) for name, values in _STEM.items()},
    "duet_mlp": variant("duet_mlp", {ARCH: "duet", "model.expert": "mlp"}),
    "duet_by_task": variant("duet_by_task", {ARCH: "duet", "train.best_by_task": True}),
    "stem_published": variant("stem_published", {RECIPE: "published", ARCH: "stem"}),
    "single_task_published": variant(
        "single_task_published",
        {RECIPE: "published", ARCH: "single_task", "model.tower_hidden": [128, 128], **_BASELINE_RATE},
    ),
    "escm2_dr": variant("escm2_dr", {ARCH: "escm2", "model.estimator": "dr"}),
}
"""The variants that are built in, by name. A choice of tables, domain features and spaces are those of one log, so they
take a file."""


def built_in() -> dict[str, Variant]:
    """The models that every comparison may name: all of the table of models, and VARIANTS.

    The table is read at each call: a program may have added a model of its own (docs/add_a_model.md).
    """
    return {**{arch: variant(arch, {ARCH: arch}) for arch in MODELS}, **VARIANTS}
