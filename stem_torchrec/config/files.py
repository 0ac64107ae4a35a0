"""A run's configuration as YAML, and from the command line: a recipe or a file, then `--section.field value`."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from stem_torchrec.config.command_line import parse_arguments, parse_known_arguments
from stem_torchrec.config.delta import DeltaConfig
from stem_torchrec.config.formats import with_format, without_format
from stem_torchrec.config.loop import CheckpointConfig, LoopConfig
from stem_torchrec.config.model import (
    ModelConfig,
    Models,
    check_owned,
    options_class,
    owners,
    with_options_of,
)
from stem_torchrec.config.narrowed import narrowed, widened
from stem_torchrec.config.run import TrainConfig
from stem_torchrec.config.serialization import from_dict, to_dict
from stem_torchrec.config.start import StartConfig, StartFrom
from stem_torchrec.config.yaml_text import parse_yaml, to_yaml
from stem_torchrec.runtime.errors import UserError, nearest, reason_of
from stem_torchrec.runtime.launch_environment import is_first_on_host
from stem_torchrec.runtime.path_options import InputFile, OutputFolder
from stem_torchrec.runtime.store_path import path_of

Recipes = Mapping[str, Callable[[], TrainConfig]]
OptionsOfSource = Callable[[str, str | None], TrainConfig | None]
"""From what `--start-from` and `--output-dir` name to the options of the source."""

CONFIG_FILE = "config.yaml"
"""The configuration in the folder of a run."""
CONFIG_FORMAT = 1
"""Format version of config.yaml."""


def dump_config(config: TrainConfig) -> str:
    """The configuration as YAML that starts another run: without the run's folders and what it was resumed from."""
    return to_yaml(with_format(to_dict(_without_folders(config)), CONFIG_FORMAT))


def _without_folders(config: TrainConfig) -> TrainConfig:
    checkpoint, delta = replace(config.checkpoint, folder=None), replace(config.delta, out=None)
    return replace(
        config, checkpoint=checkpoint, delta=delta, resume="auto", output_dir=None, take_over=False, dry_run=False
    )


def for_the_next_run(config: TrainConfig) -> TrainConfig:
    """The options of a run that the one after it takes over: without its folders and what it started from itself."""
    return replace(_without_folders(config), start_from=None, start=StartConfig())


def what_is_trained(config: TrainConfig) -> TrainConfig:
    """The configuration with the defaults of all fields that do not change what a run learns, to tell runs apart."""
    default = LoopConfig()
    loop = replace(config.train, timeout=default.timeout, log_every=default.log_every, profile=default.profile)
    start = config.start if config.start_from is not None else StartConfig()
    folders = replace(config, checkpoint=CheckpointConfig(), resume="auto", output_dir=None, take_over=False)
    return replace(folders, recipe="", train=loop, start=start, delta=DeltaConfig(), dry_run=False)


def read_config(path: str, models: Models) -> TrainConfig:
    """Reads what `dump_config` wrote.

    Args:
        path: of config.yaml.
        models: the options that each model has.

    Raises UserError with the file and the field that is unknown or has a value that it does not take, or for a file in
    a newer format.
    """
    file = path_of(path)
    if not file.is_file():
        raise UserError(f"there is no configuration {path!r}; a run writes one as config.yaml in its folder.")
    try:
        content = parse_yaml(file.read_text())
    # ValueError: not text, or not YAML.
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as a configuration ({reason_of(error)}).") from error
    values = without_format(content, CONFIG_FORMAT, path)
    try:
        # Before files had a format, they had all models' options.
        return config_from_dict(values, models, of_all_models=values is content)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def config_from_dict(values: Any, models: Models, *, of_all_models: bool = False) -> TrainConfig:
    """The configuration that `to_dict` took, with the options of the model that it names.

    Args:
        values: nested dictionaries.
        models: the options that each model has.
        of_all_models: leaves out the options that only other models have, instead of refusing them.

    Raises UserError with the field that is unknown, of the wrong type or outside of its limits.
    """
    section = values.get("model", {}) if isinstance(values, dict) else None
    if not isinstance(section, dict):
        return from_dict(TrainConfig, values)  # Raises for what is not a mapping.
    arch = section.get("arch", ModelConfig.arch)
    kind = options_class(models, arch, "model.arch")
    if of_all_models:
        others = {name for name in section if arch not in (having := owners(models, str(name))) and having}
        section = {name: value for name, value in section.items() if name not in others}
    check_owned(models, arch, map(str, section), "model.")
    values = {**values, "model": section}
    return widened(from_dict(narrowed(TrainConfig, {"model": kind}), values), TrainConfig)


@dataclass(frozen=True)
class _Model:
    """The model, whose options the other fields of `--model` are."""

    arch: str | None = None


@dataclass(frozen=True)
class _Start:
    """The source of the defaults, and the model."""

    recipe: str | None = None
    config: InputFile | None = None
    start_from: StartFrom | None = None
    output_dir: OutputFolder | None = None
    model: _Model = _Model()


def config_from_arguments(
    args: Sequence[str] | None,
    *,
    models: Models,
    recipes: Recipes,
    about: Mapping[str, str],
    options_of_source: OptionsOfSource = lambda source, run: None,
) -> TrainConfig:
    """The configuration that `--recipe`, `--config` or `--start-from` names, with the fields of other options replaced.

    Args:
        args: the command line, `sys.argv[1:]` if None.
        models: the options that each model has.
        recipes: configurations by name.
        about: a line for each model, for `--help`.
        options_of_source: the options of what a run starts from; None if nothing tells them.

    Raises UserError for an unknown recipe, model or option, a wrong type or choice, a number outside of its limits, or
    an option that only other models have.
    """
    start, rest = parse_known_arguments(_Start(), args)
    if start.recipe is not None and start.config is not None:
        raise UserError("give --recipe or --config, not both; options change single fields of either.")
    named, default = _default(start, rest, models, recipes, options_of_source)
    given = {name: value for name in ("start_from", "output_dir") if (value := getattr(start, name)) is not None}
    default = replace(default, **given)
    if start.start_from is not None and default.train.fresh_tables:
        # What the tables have from the other run is to stay. They see each row once, as in an epoch where they begin
        # anew: a second pass would make them worse, and the run after this one starts from its last state.
        default = replace(default, train=replace(default.train, fresh_tables=False, epochs=1))
    if start.model.arch is not None:
        kind = options_class(models, start.model.arch)
        default = replace(default, model=with_options_of(default.model, kind))
    options = [option.partition("=")[0] for option in rest if option.startswith("--model.")]
    names = [option.removeprefix("--model.").replace("-", "_") for option in options]
    check_owned(models, default.model.arch, names, "--model.")
    description = _description(named, default.model.arch, recipes, about)
    return parse_arguments(default, rest, description=description)


def _default(
    start: _Start, rest: Sequence[str], models: Models, recipes: Recipes, options_of_source: OptionsOfSource
) -> tuple[str, TrainConfig]:
    """What the defaults come from, and the defaults."""
    if start.config is not None:
        return start.config, read_config(start.config, models)
    # A log of one's own has a recipe of its own; without a log a run trains on the synthetic one.
    has_log = "--data.path" in {option.partition("=")[0] for option in rest}
    if start.recipe is None and start.start_from is not None:
        options = options_of_source(start.start_from, start.output_dir)
        if options is not None:
            if is_first_on_host(os.environ):
                print(_note_of_source(start.start_from, options, has_log=has_log))
            return start.start_from, options
    recipe = start.recipe if start.recipe is not None else "log" if has_log else "synthetic"
    if recipe not in recipes:
        known = ", ".join(recipes)
        raise UserError(f"there is no recipe {recipe!r}, only {known}{nearest(recipe, list(recipes))}")
    return recipe, recipes[recipe]()


def _note_of_source(source: str, options: TrainConfig, *, has_log: bool) -> str:
    log = "the synthetic log" if options.data.path is None else f"the log of {source} again, {options.data.path}"
    note = "" if has_log else f"\nnote: --data.path is not given, so the run trains on {log}"
    return f"the options are those of {source}, but for those given here; --recipe or --config takes others{note}"


def _description(start: str, arch: str, recipes: Recipes, about: Mapping[str, str]) -> str:
    recipe_lines = "\n".join(f"  {name}: {(recipe.__doc__ or '').splitlines()[0]}" for name, recipe in recipes.items())
    model_lines = "\n".join(f"  {name}: {line}" for name, line in about.items())
    return (
        f"Trains a model, STEM by default. The defaults below are those of {start}.\n\n"
        f"--recipe NAME starts from another recipe; with --data.path the default is log:\n{recipe_lines}\n\n"
        "--config FILE starts from the config.yaml of a run; without it and a recipe so does --start-from RUN.\n\n"
        f"--model.arch NAME trains another model; the other --model options below are those of {arch}:\n{model_lines}"
    )
