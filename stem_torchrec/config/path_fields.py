"""The paths of a configuration: fields whose type is one of `runtime.path_options`."""

from dataclasses import fields, is_dataclass, replace
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

from stem_torchrec.runtime.errors import UserError
from stem_torchrec.runtime.path_options import PathOption, checked_path

ConfigT = TypeVar("ConfigT")


def with_paths(config: ConfigT, prefix: str = "--") -> ConfigT:
    """The configuration with its paths as the program takes them; see `checked_path`.

    A field that is None or has its default, as an empty text may be, is left to the command.

    Raises UserError with the option.

    Example::

        with_paths(TrainConfig(output_dir="~/runs/a")).output_dir  # "/home/me/runs/a"
    """
    assert is_dataclass(config)
    assert not isinstance(config, type)
    annotations = get_type_hints(type(config), include_extras=True)
    changed: dict[str, Any] = {}
    for field in fields(config):
        value, name = getattr(config, field.name), prefix + field.name.replace("_", "-")
        option = _option_in(annotations[field.name])
        if is_dataclass(value):
            changed[field.name] = with_paths(value, f"{name}.")
        elif option is not None and value not in (None, field.default, *option.words):
            try:
                changed[field.name] = type(value)(checked_path(str(value), option))
            except UserError as error:
                raise UserError(f"{name} {error}") from None
    return replace(config, **changed)


def _option_in(annotation: Any) -> PathOption | None:
    if get_origin(annotation) is Annotated:
        for metadata in annotation.__metadata__:
            if isinstance(metadata, PathOption):
                return metadata
    return next((option for part in get_args(annotation) if (option := _option_in(part)) is not None), None)
