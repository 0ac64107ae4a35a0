"""Command lines from dataclasses, by tyro; every mistake becomes one sentence."""

import os
import re
import sys
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar, get_type_hints

import tyro
from tyro.constructors import ConstructorRegistry, StructConstructorSpec, StructFieldSpec, StructTypeInfo

from stem_torchrec.config.fields import limits_in, limits_text
from stem_torchrec.config.path_fields import with_paths
from stem_torchrec.config.serialization import check_fields
from stem_torchrec.runtime.errors import UserError, nearest
from stem_torchrec.runtime.internals import tyro_errors

ConfigT = TypeVar("ConfigT")


def parse_arguments(default: ConfigT, args: Sequence[str] | None = None, description: str = "") -> ConfigT:
    """Returns `default` with the fields that the command line names replaced.

    Args:
        default: an instance of a dataclass; nested dataclasses become `--section.field`.
        args: the command line, `sys.argv[1:]` if None.
        description: the text of `--help` above the options.

    Raises:
        UserError: an unknown name (with the nearest right one), a wrong type or choice, a number outside of its
            limits, or a path that cannot be used.

    Example::

        config = parse_arguments(tiny(), ["--model.embedding-dim", "32"])
    """
    args = _own_arguments(_repeatable(default)) if args is None else args
    with _mistakes_in_one_sentence(option_names(default)):
        config = tyro.cli(
            type(default), default=default, args=args, description=description, registry=_help_with_limits()
        )
    config = with_paths(config)
    check_fields(config)
    return config


def parse_known_arguments(
    default: ConfigT, args: Sequence[str] | None = None, *, description: str | None = None
) -> tuple[ConfigT, list[str]]:
    """The same, but returns the options that `default` does not have instead of refusing them.

    With a description, `--help` prints it and the options; without one, `--help` is returned with the unknown options.
    """
    args = _own_arguments() if args is None else list(args)
    if description is not None and {"-h", "--help"} & set(args):
        parse_arguments(default, ["--help"], description=description)
    with _mistakes_in_one_sentence(option_names(default)):
        config, rest = tyro.cli(type(default), default=default, args=args, return_unknown_args=True, add_help=False)
    config = with_paths(config)
    check_fields(config)
    return config, rest


def _repeatable(config: Any) -> set[str]:
    """The options of which all values count."""
    annotations = get_type_hints(type(config), include_extras=True)
    return {
        f"--{name.replace('_', '-')}"
        for name, annotation in annotations.items()
        if tyro.conf.UseAppendAction in getattr(annotation, "__metadata__", ())
    }


def _own_arguments(repeatable: Collection[str] = ()) -> list[str]:
    """The command line of this process; prints a note for an option that it has twice, as the last one counts."""
    names = [re.sub(r"(^--|\.)no-", r"\1", arg.partition("=")[0].replace("_", "-")) for arg in sys.argv[1:]]
    for name, times in Counter(name for name in names if name.startswith("--")).items():
        if times > 1 and name not in repeatable and os.environ.get("LOCAL_RANK", "0") == "0":
            print(f"note: {name} is given {times} times; the last one counts")
    return sys.argv[1:]


def _help_with_limits() -> ConstructorRegistry:
    """Appends its limits to the help text of every field that has some."""
    registry, inside = ConstructorRegistry(), False

    @registry.struct_rule
    def with_limits(info: StructTypeInfo) -> StructConstructorSpec | None:
        nonlocal inside
        if inside or not is_dataclass(info.type):
            return None
        inside = True  # So that tyro's own rule for dataclasses is used within.
        spec = ConstructorRegistry.get_struct_spec(info)
        inside = False
        if not isinstance(spec, StructConstructorSpec):
            return None
        annotations = get_type_hints(info.type, include_extras=True)
        return replace(spec, fields=tuple(_with_limits(field, annotations[field.name]) for field in spec.fields))

    return registry


def _with_limits(field: StructFieldSpec, annotation: Any) -> StructFieldSpec:
    limits = limits_in(annotation)
    if limits is None:
        return field

    def text() -> str:
        documentation = field.helptext() if callable(field.helptext) else field.helptext
        sentence = f"{limits_text(limits)}."
        return f"{documentation or ''} {sentence[0].upper()}{sentence[1:]}".strip()

    return replace(field, helptext=text)


@contextmanager
def _mistakes_in_one_sentence(options: Sequence[str]) -> Iterator[None]:
    def raise_user_error(event: tyro_errors.ParseErrorEvent) -> None:
        raise UserError(_sentence(event, options))

    with tyro_errors.on_parse_error(raise_user_error):
        yield


def _sentence(event: tyro_errors.ParseErrorEvent, options: Sequence[str]) -> str:
    match event:
        case tyro_errors.UnrecognizedArgs(tokens=tokens):
            name = next((token for token in tokens if token.startswith("--")), tokens[0])
            return f"unknown option {name!r}{nearest(name, options) or ';'} --help lists all."
        case tyro_errors.InvalidChoice(argument=argument, value=value, choices=choices):
            known = ", ".join(choices)
            return f"{argument.display_name()} is {value!r}, but must be one of {known}{nearest(value, choices)}"
        case tyro_errors.BadValue(argument=argument):
            return f"{argument.display_name()} got no value or too few; --help shows what it takes."
        case tyro_errors.InstantiationFailure(argument=argument, message=message):
            place = f"{argument.display_name()}: " if argument else ""
            return f"{place}{_reason(message)}; --help shows what it takes."
        case tyro_errors.MissingArgs(missing_arguments=missing):
            return f"missing {', '.join(arg.arg.display_name() for arg in missing)}; --help shows what it takes."
        case _:
            return f"the command line cannot be parsed ({event}); --help shows the options."


def _reason(message: str) -> str:
    """A reason of tyro in one line; of an option of several types, as `int | None`, that of the last one."""
    *_, last = message.strip().splitlines()
    reason = re.sub(r"^- .*?[\]>]: ", "", last)
    if "key-value pairs" in reason:
        return "a name has no value, or a value is of another type"
    return "a number with too many digits" if "Exceeds the limit" in reason else reason


def option_names(config: Any, prefix: str = "--") -> list[str]:
    """The options that a dataclass has on a command line, as `--section.some-field`."""
    names = []
    for field in fields(config):
        value = getattr(config, field.name)
        name = prefix + field.name.replace("_", "-")
        names += option_names(value, f"{name}.") if is_dataclass(value) else [name]
    return names
