"""Command lines from dataclasses (by tyro), with every mistake answered in one sentence."""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar

import tyro

from stem_torchrec.runtime.errors import (
    HANG_STATUS,
    RESUME_STATUS,
    DataError,
    Interrupted,
    LostRankError,
    UserError,
    nearest,
)
from stem_torchrec.runtime.internals import tyro_errors as _errors

ConfigT = TypeVar("ConfigT")


def parse_arguments(default: ConfigT, args: Sequence[str] | None = None, description: str = "") -> ConfigT:
    """Returns `default` with the fields that the command line names replaced.

    Args:
        default: an instance of a dataclass; nested dataclasses become `--section.field`.
        args: the command line, `sys.argv[1:]` if None.
        description: what `--help` says above the options.

    Raises:
        UserError: an unknown name (with the nearest right one), a wrong type or a wrong choice.

    Example::

        config = parse_arguments(tiny(), ["--model.embedding-dim", "32"])
    """
    with _mistakes_in_one_sentence(option_names(default)):
        return tyro.cli(type(default), default=default, args=args, description=description)


def parse_known_arguments(
    default: ConfigT, args: Sequence[str] | None = None, *, description: str | None = None
) -> tuple[ConfigT, list[str]]:
    """The same, with the options that `default` does not have returned instead of refused.

    With a description `--help` is answered; without one it is among what is returned.
    """
    args = sys.argv[1:] if args is None else list(args)
    if description is not None and {"-h", "--help"} & set(args):
        parse_arguments(default, ["--help"], description=description)
    with _mistakes_in_one_sentence(option_names(default)):
        return tyro.cli(type(default), default=default, args=args, return_unknown_args=True, add_help=False)


def run_main(main: Callable[[], None], *, every_rank_speaks: bool = False) -> None:
    """Calls `main`; a UserError becomes one sentence on standard error and exit status 2, LostRankError one and status
    3, Interrupted status 75.

    Every rank of a host meets the same wrong configuration, so only the first one speaks of it, unless they do
    different things; a DataError is known to the rank that read the row alone, so that rank speaks.
    """
    try:
        main()
    except Interrupted:
        sys.exit(RESUME_STATUS)
    except LostRankError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(HANG_STATUS)
    except UserError as error:
        if every_rank_speaks or isinstance(error, DataError) or os.environ.get("LOCAL_RANK", "0") == "0":
            # A reader process's error comes wrapped in its traceback; the sentence is behind the last name.
            print(f"error: {str(error).rsplit('DataError: ', 1)[-1].strip()}", file=sys.stderr)
        sys.exit(2)


@contextmanager
def _mistakes_in_one_sentence(options: Sequence[str]) -> Iterator[None]:
    def raise_user_error(event: _errors.ParseErrorEvent) -> None:
        raise UserError(_sentence(event, options))

    with _errors.on_parse_error(raise_user_error):
        yield


def _sentence(event: _errors.ParseErrorEvent, options: Sequence[str]) -> str:
    match event:
        case _errors.UnrecognizedArgs(tokens=tokens):
            name = next((token for token in tokens if token.startswith("--")), tokens[0])
            return f"unknown option {name!r}{nearest(name, options) or ';'} --help lists all."
        case _errors.InvalidChoice(argument=argument, value=value, choices=choices):
            known = ", ".join(choices)
            return f"{argument.display_name()} is {value!r}, but must be one of {known}{nearest(value, choices)}"
        case _errors.BadValue(argument=argument):
            return f"{argument.display_name()} got no value or too few; --help shows what it takes."
        case _errors.InstantiationFailure(argument=argument, message=message):
            place = f"{argument.display_name()}: " if argument else ""
            return f"{place}{message}; --help shows what it takes."
        case _errors.MissingArgs(missing_arguments=missing):
            return f"missing {', '.join(arg.arg.display_name() for arg in missing)}; --help shows what it takes."
        case _:
            return f"the command line cannot be parsed ({event}); --help shows the options."


def option_names(config: Any, prefix: str = "--") -> list[str]:
    """The options that a dataclass has on a command line, as `--section.some-field`."""
    names = []
    for field in fields(config):
        value = getattr(config, field.name)
        name = prefix + field.name.replace("_", "-")
        names += option_names(value, f"{name}.") if is_dataclass(value) else [name]
    return names
