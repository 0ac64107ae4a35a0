"""Configurations whose sections have more fields than their annotations name, as a model's options do.

`TrainConfig.model` is annotated as ModelConfig, but is a STEMOptions or another model's options. What reads or checks
fields by annotation works on a class in which the annotation is the class of the value.
"""

from collections.abc import Hashable, Mapping
from dataclasses import field, fields, is_dataclass, make_dataclass
from functools import lru_cache
from typing import Any, TypeVar, cast, get_type_hints

ConfigT = TypeVar("ConfigT")


def narrowed(kind: type[ConfigT], sections: Mapping[str, type]) -> type[ConfigT]:
    """`kind` with these classes as the annotations of its sections; `kind` itself if they are no others.

    Example::

        narrowed(TrainConfig, {"model": STEMOptions})  # a TrainConfig with model: STEMOptions
    """
    hints, base = get_type_hints(kind), cast(Hashable, kind)
    others = tuple((name, section) for name, section in sections.items() if section is not hints[name])
    return cast(type[ConfigT], _subclass(base, others)) if others else kind


def kind_of(config: Any) -> type:
    """The class of a configuration, with the classes of its sections as their annotations."""
    sections = {each.name: getattr(config, each.name) for each in fields(config)}
    return narrowed(type(config), {name: type(value) for name, value in sections.items() if is_dataclass(value)})


def widened(config: Any, kind: type[ConfigT]) -> ConfigT:
    """An instance of `narrowed(kind, ...)` as one of `kind`, equal to others of its fields."""
    return kind(**{each.name: getattr(config, each.name) for each in fields(config)})


@lru_cache
def _subclass(kind: Any, sections: tuple[tuple[str, type], ...]) -> Any:
    # Each section has a default, as a dataclass's fields after one with a default must.
    own = [(name, section, field(default_factory=section)) for name, section in sections]
    return make_dataclass(kind.__name__, own, bases=(kind,), frozen=True)
