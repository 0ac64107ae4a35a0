"""The table of models: each has one line here, from which `--model.arch`, `--help`, checks and the pages derive."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from stem_torchrec.config import ModelConfig
from stem_torchrec.config.model import options_class, with_options_of
from stem_torchrec.models.dcmt import DCMT, DCMTOptions
from stem_torchrec.models.duet import Duet, DuetOptions
from stem_torchrec.models.escm2 import ESCM2, ESCM2Options
from stem_torchrec.models.frame import MultiTaskModel
from stem_torchrec.models.home import HoME, HoMEOptions
from stem_torchrec.models.moe import MEMMoE, MEMMoEOptions, MMoE, MMoEOptions, OMoE, OMoEOptions
from stem_torchrec.models.options import OwnTableOptions
from stem_torchrec.models.pepnet import PEPNet, PEPNetOptions
from stem_torchrec.models.ple import MEPLE, PLE, MEPLEOptions, PLEOptions
from stem_torchrec.models.sequential import AITM, ESMM, AITMOptions, ESMMOptions
from stem_torchrec.models.shared_bottom import SharedBottom, SharedBottomOptions, SingleTask, SingleTaskOptions
from stem_torchrec.models.stem import STEM, STEMOptions
from stem_torchrec.runtime.errors import UserError
from stem_torchrec.tables import ALL_TABLES, SHARED, TableChoice, groups_of


@dataclass(frozen=True)
class Model:
    """A line of the table."""

    model: Callable[..., MultiTaskModel]
    """Takes the tables, the tasks and its options by name."""
    options: type[ModelConfig]
    """Its `arch` is the model's name; the other fields that it adds are the model's options."""
    groups: Callable[[Sequence[str]], Sequence[str]]
    """From the tasks, the groups that have tables, unless the options choose some."""
    about: str
    """Its source, or what it is."""


def shared_only(tasks: Sequence[str]) -> Sequence[str]:
    """The groups of a model with shared tables alone."""
    return (SHARED,)


_LINES = (
    Model(STEM, STEMOptions, groups_of, "STEM-Net, AAAI 2024; ablations by reads, trains and gate-input"),
    Model(Duet, DuetOptions, groups_of, "STEM and a single-task model on each task's tables, with a loss each"),
    Model(SingleTask, SingleTaskOptions, tuple, "a model for each task, trained side by side"),
    Model(SharedBottom, SharedBottomOptions, shared_only, "Caruana, Machine Learning 1997"),
    Model(OMoE, OMoEOptions, shared_only, "Ma et al., KDD 2018, with one gate for all tasks"),
    Model(MMoE, MMoEOptions, shared_only, "Ma et al., KDD 2018"),
    Model(PLE, PLEOptions, shared_only, "Tang et al., RecSys 2020, any depth"),
    Model(HoME, HoMEOptions, shared_only, "Wang et al., KDD 2025, reduced; categories by --model.categories"),
    Model(PEPNet, PEPNetOptions, shared_only, "Chang et al., KDD 2023; gates by --model.prior and --model.domain"),
    Model(AITM, AITMOptions, shared_only, "Xi et al., KDD 2021; tasks are steps in the order of the labels"),
    Model(ESMM, ESMMOptions, shared_only, "Ma et al., SIGIR 2018; tasks are steps in the order of the labels"),
    Model(ESCM2, ESCM2Options, shared_only, "Wang et al., SIGIR 2022: ESMM and a loss of each step by itself"),
    Model(DCMT, DCMTOptions, shared_only, "Zhu et al., ICDE 2023: ESMM and a twin of each step"),
    Model(MEMMoE, MEMMoEOptions, groups_of, "MMoE on multiple embeddings"),
    Model(MEPLE, MEPLEOptions, groups_of, "PLE on multiple embeddings"),
)
MODELS: dict[str, Model] = {line.options.arch: line for line in _LINES}
"""Every model by its name."""


def all_options() -> dict[str, type[ModelConfig]]:
    """The options class of every model by its name."""
    return {arch: line.options for arch, line in MODELS.items()}


def options_of(config: ModelConfig) -> ModelConfig:
    """The options of the model that `config.arch` names: `config`, or for a bare ModelConfig with the other defaults.

    Raises UserError for a name that no model has, or for the options of another model.

    Example::

        options_of(ModelConfig(arch="ple", embedding_dim=8))  # PLEOptions(embedding_dim=8)
    """
    kind = options_class(all_options(), config.arch)
    if type(config) is ModelConfig:
        return with_options_of(config, kind)
    if type(config) is not kind:
        raise UserError(
            f"the model is {config.arch!r} with the options {type(config).__name__}, but must have {kind.__name__}; "
            f"with_arch(options, {config.arch!r}) converts them."
        )
    return config


def with_arch(config: ModelConfig, arch: str, **changes: Any) -> ModelConfig:
    """The options of another model, with the values of the fields that both have, and with changes.

    Example::

        with_arch(STEMOptions(num_layers=2), "ple", gate_hidden=(8,))  # PLEOptions(num_layers=2, gate_hidden=(8,))
    """
    return with_options_of(config, options_class(all_options(), arch), **changes)


def table_choice_of(options: ModelConfig) -> TableChoice:
    """Which groups have a table of which feature."""
    return options.table_choice() if isinstance(options, OwnTableOptions) else ALL_TABLES


def groups_with_tables(config: ModelConfig, tasks: Sequence[str]) -> Sequence[str]:
    """The groups that have tables in a model.

    Example::

        groups_with_tables(STEMOptions(), ["finish", "like"])                          # ("finish", "like", "shared")
        groups_with_tables(STEMOptions(table_groups={"like": "shared"}), ["finish", "like"])  # ("finish", "shared")
    """
    return table_choice_of(config).groups_of_tables(MODELS[config.arch].groups(tasks))
