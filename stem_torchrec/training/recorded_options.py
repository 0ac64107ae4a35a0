"""The options behind the results of a folder, in a file beside them: written once, then compared with every command.

One rule holds for all these files, as for the config.yaml of a run. An option that the file lacks has its default,
since the version that wrote the file did not have the option. An option that this version does not know is refused, and
so is another value. A new option therefore needs a default that keeps what runs did before it; a recipe may set another
value.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from itertools import islice
from pathlib import Path
from typing import Any

from stem_torchrec.config.yaml_text import parse_yaml, to_yaml
from stem_torchrec.runtime.errors import UnwritableError, UserError, reason_of
from stem_torchrec.runtime.paths import write_text

AsOfNow = Callable[[dict[str, Any]], Mapping[str, Any]]
"""From what a file has to what this version would have written. Raises UserError for an option that is not known."""
_NAMED = 3
"""Differences that a message names."""
_WIDTH = 60
"""Letters of a value that a message shows."""


def write_or_check(
    file: Path,
    options: Mapping[str, Any],
    *,
    begun: bool,
    refusal: str,
    fix: str,
    as_of_now: AsOfNow = dict,
    confirm: Callable[[], None] | None = None,
    lock: AbstractContextManager[Any] | None = None,
) -> None:
    """Writes the options as YAML, or checks that the file has the same ones, so that runs do not mix.

    Where they are the same, the file then has the options of this version as well.

    Args:
        file: its folder is created.
        options: what the results are made with.
        begun: whether the folder holds any result yet; a file without results is replaced.
        refusal: the beginning of the error for a folder of other options, such as `OUT holds a search with others`.
        fix: its end.
        as_of_now: completes what the file has.
        confirm: raises UserError where the results themselves tell other options, of which the file may have lost some.
        lock: held meanwhile, where several processes call this at once.

    Raises UserError as `check_recorded` does, and where the file is missing beside results or the folder cannot be
    written.
    """
    text = to_yaml(dict(options))
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with lock or nullcontext():
            if begun:
                recorded = _read(file)
                check_recorded(file, recorded, parse_yaml(text), refusal=refusal, fix=fix, as_of_now=as_of_now)
                if confirm is not None:
                    confirm()
            write_text(file, text)
    except (OSError, UnwritableError) as error:
        raise UserError(f"{file.parent} cannot be written ({reason_of(error)}); give another --out.") from error


def check_recorded(
    file: Path,
    recorded: Any,
    options: Mapping[str, Any],
    *,
    refusal: str,
    fix: str,
    as_of_now: AsOfNow = dict,
) -> None:
    """Raises UserError where the options in a file are not these; see `write_or_check`.

    Args:
        file: for errors.
        recorded: what it has, in plain values.
        options: of this command, in plain values.
        refusal: the beginning of the error for other options.
        fix: its end.
        as_of_now: completes what the file has.

    Example::

        check_recorded(file, {"steps": 20}, {"steps": 30}, refusal="out holds another sweep", fix="give another --out")
        # UserError: out holds another sweep, where steps is 20 and not 30; give another --out.
    """
    try:
        if not isinstance(recorded, dict):
            raise UserError(f"it is not a mapping of options, but {_short(recorded)}.")
        before = as_of_now(recorded)
        if unknown := sorted(before.keys() - options.keys()):
            raise UserError(f"there is no option {unknown[0]!r}.")
    except UserError as error:
        raise UserError(
            f"{file}: {str(error).rstrip('.')}; if a newer stem_torchrec wrote the file, install that version, else "
            "give another --out."
        ) from error
    named = list(islice(differences(before, options), _NAMED + 1))
    if named:
        more = [*named[:_NAMED], *(["more"] if len(named) > _NAMED else [])]
        raise UserError(f"{refusal}, where {', '.join(more)}; {fix}.")


def differences(before: Any, now: Any, name: str = "") -> Iterator[str]:
    """Where two plain values differ, in the order of names: `model.embedding_dim is 16 and not 8`.

    What one of two mappings lacks is None in it.
    """
    if isinstance(before, dict) and isinstance(now, dict):
        for key in sorted({*before, *now}):
            inner = f"{name}.{key}" if name else key
            yield from differences(before.get(key), now.get(key), inner)
    elif before != now:
        yield f"{name} is {_short(before)} and not {_short(now)}"


def _short(value: Any) -> str:
    text = " ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) < _WIDTH else f"{text[:_WIDTH]}..."


def _read(file: Path) -> Any:
    """The content of a file; raises UserError if it is missing or no YAML."""
    if not file.exists():
        raise UserError(
            f"{file.parent} holds results, but no {file.name} that tells the options behind them; give another --out."
        )
    try:
        return parse_yaml(file.read_text())
    except ValueError as error:
        raise UserError(f"{file} is damaged ({reason_of(error)}); give another --out.") from error
