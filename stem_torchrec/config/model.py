"""What all models share of a run's configuration; the options of one model stand beside it, in `models/`."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Annotated, Any, Literal, TypeVar

import tyro
from annotated_types import Interval

from stem_torchrec.runtime.errors import UserError, nearest

Layout = Literal["split", "packed"]
Arch = Annotated[str, tyro.conf.arg(help="The model between tables and towers, by its name in the list above.")]
Width = Annotated[int, Interval(ge=1, le=65_536)]
Share = Annotated[float, Interval(ge=0, le=0.999)]
TaskWeight = Annotated[float, Interval(gt=0, le=1e6)]


@dataclass(frozen=True)
class ModelConfig:
    """The model between tables and towers, and what all models share.

    Each model extends this by options of its own, as `STEMOptions` does. By itself it stands for the model that `arch`
    names, with the defaults of that model's own options.
    """

    arch: Arch = "stem"
    embedding_dim: Annotated[int, Interval(ge=1, le=16_384)] = 16
    """Width D of every group's embedding of a feature."""
    layout: Layout = "split"
    """split keeps a table of width D for every group and feature; packed keeps one table for each feature, which holds
    the columns of all groups side by side and is looked up once. packed needs an optimizer that treats every element
    on its own."""
    tower_hidden: tuple[Width, ...] = (128, 64)
    """Hidden layer widths of a tower."""
    dropout: Share = 0.0
    """Share of units dropped after each hidden layer of experts, gates and towers."""
    embedding_dropout: Share = 0.0
    """Share of pooled embedding values dropped before the first layer."""
    embedding_l2: Annotated[float, Interval(ge=0, le=1e6)] = 0.0
    """L2 regularisation of embeddings: the weight of half their squared norm in the loss, mean over a batch. Only rows
    that train a table decay it, so tasks stay isolated; on any device, unlike --sparse.weight-decay."""
    embedding_std: Annotated[float, Interval(ge=0, le=100)] = 1e-4
    """Standard deviation of the normal distribution that tables start from."""
    # The planner's benchmark keys a cache by a model's options, which a dict cannot be part of.
    task_weights: tuple[TaskWeight, ...] | dict[str, TaskWeight] = field(default=(), hash=False)
    """Weight of each task's loss, in the order of the labels, or by task: `like 3`, where `*` stands for every task
    that is not named. None means 1 for each."""


Models = Mapping[str, type[ModelConfig]]
"""The options class of every model, by the name that `--model.arch` takes."""
ModelT = TypeVar("ModelT", bound=ModelConfig)


def options_class(models: Models, arch: Any, place: str = "--model.arch") -> type[ModelConfig]:
    """The options class of a model; raises UserError for a name that no model has."""
    if not isinstance(arch, str) or arch not in models:
        hint = nearest(arch, list(models)) if isinstance(arch, str) else "."
        raise UserError(f"{place} is {arch!r}, but must be one of {', '.join(models)}{hint or '.'}")
    return models[arch]


def with_options_of(model: ModelConfig, kind: type[ModelT], **changes: Any) -> ModelT:
    """The options of another model, with the values of the fields that both have, but for those that are defaults.

    Where the two have other defaults, each keeps its own.

    Example::

        with_options_of(STEMOptions(num_layers=2, reads="own_shared"), PLEOptions)  # PLEOptions(num_layers=2)
        with_options_of(ESCM2Options(), DCMTOptions).counterfactual_weight          # 1.0, and not ESCM2's 0.1
    """
    both, default = {field.name for field in fields(kind)} - {"arch"}, type(model)()
    values = {field.name: getattr(model, field.name) for field in fields(model) if field.name in both}
    set_here = {name: value for name, value in values.items() if value != getattr(default, name)}
    return kind(**{**set_here, **changes})


def owners(models: Models, option: str) -> list[str]:
    """The models that have an option, by its name with underscores."""
    return [arch for arch, kind in models.items() if option in {field.name for field in fields(kind)}]


def check_owned(models: Models, arch: str, options: Iterable[str], prefix: str) -> None:
    """Raises UserError for the first option that only other models have.

    Args:
        models: see `Models`.
        arch: the model.
        options: names with underscores.
        prefix: what stands before an option in the error; "--model." writes it as on a command line.
    """
    for option in options:
        having = owners(models, option)
        if having and arch not in having:
            name = option.replace("_", "-") if prefix.startswith("--") else option
            raise UserError(f"{prefix}{name} is an option of {', '.join(having)}, not of {arch}.")
