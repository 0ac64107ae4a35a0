"""The models of ours that take part, by name: those that every comparison may name, and STEM with a prior gate."""

from collections.abc import Sequence
from dataclasses import replace

from stem_torchrec.comparison.built_in import built_in
from stem_torchrec.comparison.variants import Variant
from stem_torchrec.config import BalanceConfig, TrainConfig
from stem_torchrec.models.table import MODELS, shared_only
from stem_torchrec.tables import groups_of

EXPERTS = (
    "stem_norm",
    "stem_cross",
    "stem_cross_norm",
    "stem_feature_gate",
    "stem_self_gate",
    "stem_prior_gate",
    "stem_covariance",
)
"""STEM with other experts, with gates in front of them or behind, and with a penalty on what they read."""


def models() -> dict[str, Variant]:
    """Every model that may take part."""
    stem = built_in()["stem"]
    # A comparison has none, as each log has features of its own.
    prior = replace(stem, name="stem_prior_gate", options={**stem.options, "model.prior": ["feature_0"]})
    return {**built_in(), prior.name: prior}


def with_model(config: TrainConfig, name: str, tasks: Sequence[str]) -> TrainConfig:
    """`config` with the model of this name, and with its options.

    If all its tables are shared, their rows are as long as those of all groups of STEM together, so that it has as many
    weights in tables. `single_task` lacks the shared tables of STEM, and has those of the tasks.

    Example::

        with_model(TrainConfig(), "mmoe", ["finish", "like"]).model.embedding_dim  # 48
    """
    config = models()[name].configure(config)
    # Without a log there is no epoch.
    config = replace(config, balance=replace(config.balance, period=config.balance.period or BalanceConfig.period))
    if MODELS[config.model.arch].groups is not shared_only:
        return config
    width = config.model.embedding_dim * len(groups_of(tasks))
    return replace(config, model=replace(config.model, embedding_dim=width))


def beside_stem() -> dict[str, tuple[str, ...]]:
    """The models that take turns with STEM, by contest.

    They are all other models of the table, in two contests, as all at once would take much memory; and STEM with each
    kind of experts, of losses and of balance that is built in.
    """
    shared = tuple(name for name, line in MODELS.items() if line.groups is shared_only)
    own = tuple(name for name in MODELS if name not in ("stem", *shared))
    return {
        "architectures, own tables": (*own, "duet_mlp"),
        "architectures, shared tables": shared,
        "experts": EXPERTS,
        "losses": _setting("loss.kinds"),
        "balance": _setting("balance.weights", "balance.gradients"),
    }


def _setting(*options: str) -> tuple[str, ...]:
    """The built-in models that set one of these options."""
    return tuple(name for name, each in built_in().items() if each.options.keys() & set(options))
