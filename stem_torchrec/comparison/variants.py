"""What a comparison may name as a model: a variant, by the options that it sets.

A variant is a name with options of train.py over those of the command line, or over those of a recipe. Those of
built_in.py are there in any case; `--variants FILE` adds others, of the same form.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from stem_torchrec.config import TrainConfig
from stem_torchrec.models.table import with_arch
from stem_torchrec.runtime.errors import UserError
from stem_torchrec.training.configuration import known_option, with_values
from stem_torchrec.training.recipes import RECIPES

ARCH, ALONE, SPACES, RECIPE = "model.arch", "alone", "data.spaces", "recipe"
_OF_A_MODEL = ("balance", "dense", "loss", "model", "schedule", "sharding", "sparse", "train")
"""The sections whose options a variant may set."""
_OF_ALL = ("sharding.plan", "train.timeout")
"""Options of these sections that it may not set."""
_OTHERS = ("data.batch_size", "data.shuffle_rows", SPACES)
"""Options of other sections that it may set."""
_OF_A_RECIPE = ("balance", "dense", "loss", "model", "schedule", "sparse")
"""The sections whose options a variant with a recipe takes from it, and not from the command line."""
_LOOP = ("epochs", "eval_every", "fresh_tables", "patience", "best_by_task", "freeze", "rate_factors", "clip_norm")
"""The options of the training loop that it takes from it as well."""


@dataclass(frozen=True)
class Variant:
    """A model that a comparison may name."""

    name: str
    options: Mapping[str, Any] = field(hash=False)
    """Values by option, such as `model.arch`, over those of the command line."""
    alone: bool = False
    """Whether it is a model for each task, trained by itself."""
    file: str = ""
    """The file that defines it; empty for one that is built in."""
    recipe: str = ""
    """The recipe that takes the place of the command line's model, losses, optimizers and training, if any."""

    @property
    def place(self) -> str:
        """Where it stands, for errors: `variants.yaml: stem_wide`, or its name alone."""
        return f"{self.file}: {self.name}" if self.file else self.name

    @property
    def text(self) -> str:
        """Its options in a line, for the report."""
        values = [f"{option} {value}" for option, value in self.options.items()]
        recipe = [f"recipe {self.recipe}"] if self.recipe else []
        return ", ".join([*recipe, *values, *(["for each task alone"] if self.alone else [])])

    def configure(self, config: TrainConfig) -> TrainConfig:
        """The configuration with the model of the variant, if it names one, and its options.

        Raises UserError that names the variant, for an option that its model does not have or a value that the option
        does not take.

        Example::

            Variant("stem_wide", {"model.embedding_dim": 32}).configure(tiny()).model.embedding_dim  # 32
        """
        try:
            if self.recipe:
                config = _with_recipe(config, RECIPES[self.recipe]())
            arch = self.options.get(ARCH, config.model.arch)
            config = replace(config, model=with_arch(config.model, arch))
            return with_values(config, {option_of_model(name, config): each for name, each in self.options.items()})
        except UserError as error:
            raise UserError(f"{self.place}: {error}") from error

    def sets(self, *options: str) -> str | None:
        """The first of these options that the variant sets, or that its recipe does."""
        of_recipe = _OF_A_RECIPE if self.recipe else ()
        return next((each for each in options if each in self.options or each.partition(".")[0] in of_recipe), None)


def variant(name: str, values: Mapping[str, Any], file: str = "", *, arch: str = "") -> Variant:
    """The variant that a mapping describes: options, `recipe` and `alone`, by default true for single-task models.

    `arch` is the model of one that names none, nor a recipe.

    Example::

        variant("stem_alone", {"model.arch": "stem", "alone": True})  # Variant("stem_alone", ..., alone=True)

    Raises UserError if `alone` is neither true nor false, or there is no such recipe.
    """
    # As in --help an option may have hyphens.
    options = {str(option).removeprefix("--").replace("-", "_"): value for option, value in values.items()}
    recipe = options.pop(RECIPE, "")
    if recipe and recipe not in RECIPES:
        raise UserError(f"{file}: {name}: recipe is {recipe!r}, but must be one of {', '.join(RECIPES)}.")
    arch = RECIPES[recipe]().model.arch if recipe else arch
    alone = options.pop(ALONE, options.get(ARCH, arch) == "single_task")
    if not isinstance(alone, bool):
        raise UserError(f"{file}: {name}: alone is {alone!r}, but must be true or false.")
    return Variant(name, options, alone, file, recipe)


def _with_recipe(config: TrainConfig, recipe: TrainConfig) -> TrainConfig:
    """`config` with what a recipe has for a model, its losses, its optimizers and its training."""
    # The user has allowed it of this log, whatever the optimizer.
    sparse = replace(recipe.sparse, update_unlabeled_rows=config.sparse.update_unlabeled_rows)
    return replace(
        config,
        **{section: getattr(recipe, section) for section in _OF_A_RECIPE if section != "sparse"},
        sparse=sparse,
        sharding=replace(config.sharding, kernel=recipe.sharding.kernel),
        data=replace(config.data, batch_size=recipe.data.batch_size, shuffle_rows=recipe.data.shuffle_rows),
        train=replace(config.train, **{name: getattr(recipe.train, name) for name in _LOOP}),
    )


def forms_by_task(variants: Mapping[str, Variant], config: TrainConfig) -> dict[str, str]:
    """The models that are there in two forms: by that with one set of weights, that with those of each task.

    Args:
        variants: the models by name.
        config: what the command line has for all models.

    Example::

        forms_by_task({name: built_in()[name] for name in ("duet", "duet_by_task", "stem")}, tiny())
        # {"duet": "duet_by_task"}
    """
    # A model for each task alone has the weights of each task in any case.
    configs = {name: each.configure(config) for name, each in variants.items() if not each.alone}
    of_one = {
        name: replace(each, train=replace(each.train, best_by_task=True))
        for name, each in configs.items()
        if not each.train.best_by_task
    }
    return {name: form for name, each in of_one.items() for form, other in configs.items() if other == each}


def option_of_model(name: str, config: TrainConfig) -> str:
    """The option of this name; raises UserError if there is none, or if it is not one of a single model."""
    option = known_option(name, config)
    if (option.partition(".")[0] in _OF_A_MODEL and option not in _OF_ALL) or option in _OTHERS:
        return option
    raise UserError(
        f"{option} is not an option of one model, as those of {', '.join(_OF_A_MODEL)} and {', '.join(_OTHERS)} are; "
        "leave it out."
    )
