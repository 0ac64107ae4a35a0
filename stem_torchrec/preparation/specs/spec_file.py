"""Reads a spec: YAML, with `${NAME}` for variables and `--set` for single fields."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stem_torchrec.config.formats import without_format
from stem_torchrec.config.serialization import from_dict
from stem_torchrec.config.yaml_text import parse_yaml
from stem_torchrec.preparation.specs.checks import check_spec
from stem_torchrec.preparation.specs.spec import Spec
from stem_torchrec.runtime.errors import UserError, nearest, reason_of

SPEC_FORMAT = 1
"""Format version of a spec."""
SPEC_FILE = "spec.yaml"
"""The spec in the folder of its log, with the values of its variables."""
_VARIABLE = re.compile(r"\$\{(\w+)\}")


def read_spec(path: str | Path, settings: Sequence[str] = ()) -> Spec:
    """Reads a spec.

    Args:
        path: of the YAML file.
        settings: `NAME=TEXT` for variables, and `split.time.gap=3600` for fields, whose text is read as YAML.

    Raises UserError with the file and the field that is unknown, missing or wrong, and the nearest right name.

    Example::

        read_spec("datasets/adult.yaml", ["raw=../adult"])
    """
    return spec_of(spec_text(path), settings, path)


def spec_text(path: str | Path) -> str:
    """The text of a file; raises UserError if it cannot be read."""
    try:
        return Path(path).read_text()
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as a spec ({reason_of(error)}).") from error


def spec_of(text: str, settings: Sequence[str], path: str | Path) -> Spec:
    """The spec that a text is, as `read_spec` reads it from the file `path`."""
    try:
        content = parse_yaml(text)
    except ValueError as error:
        raise UserError(f"{path} cannot be read as a spec ({reason_of(error)}).") from error
    values = without_format(content, SPEC_FORMAT, str(path))
    if not isinstance(values, dict):
        raise UserError(f"{path} is {values!r}, but a spec is a mapping of fields; docs/prepare.md shows one.")
    values = _set(values, settings, str(path))
    try:
        spec = from_dict(Spec, _substituted(values, _variables(values)))
        check_spec(spec)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    return spec


def _set(values: dict[str, Any], settings: Sequence[str], path: str) -> dict[str, Any]:
    """The content with what `--set` replaces."""
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals:
            raise UserError(f"--set {setting} has no `=`; write --set NAME=VALUE.")
        variables = values.get("variables") or {}
        if "." not in name and name not in Spec.__dataclass_fields__:
            if name not in variables:
                hint = nearest(name, list(variables)) or f"; it has {', '.join(variables) or 'none'}."
                raise UserError(f"--set {setting}: {path} has no variable {name!r}{hint}")
            values = {**values, "variables": {**variables, name: text}}
            continue
        try:
            value = parse_yaml(text)
        except ValueError as error:
            raise UserError(f"--set {setting} cannot be read ({reason_of(error)}); put the value in quotes.") from error
        values = _with_field(values, name.split("."), value, setting)
    return values


def _with_field(values: Any, names: list[str], value: Any, setting: str) -> Any:
    if not names:
        return value
    if not isinstance(values, dict | None):
        raise UserError(f"--set {setting}: {names[0]!r} is not a field of {values!r}.")
    values = values or {}
    return {**values, names[0]: _with_field(values.get(names[0]), names[1:], value, setting)}


def _variables(values: dict[str, Any]) -> dict[str, str]:
    variables = values.get("variables") or {}
    if not isinstance(variables, dict):
        raise UserError(f"variables is {variables!r}, but must be a mapping of names to texts.")
    for name, text in variables.items():
        if text is None:
            raise UserError(f"the variable {name!r} has no value; give one with --set {name}=TEXT.")
    return {name: str(text) for name, text in variables.items()}


def _substituted(value: Any, variables: Mapping[str, str]) -> Any:
    """The content with the text of each variable in place of `${NAME}`."""

    def text_of(match: re.Match[str]) -> str:
        if match[1] not in variables:
            hint = nearest(match[1], list(variables)) or "; name it under variables."
            raise UserError(f"{match[0]} is no variable{hint}")
        return variables[match[1]]

    if isinstance(value, dict):
        return {key: _substituted(item, variables) for key, item in value.items() if key != "variables"}
    if isinstance(value, list):
        return [_substituted(item, variables) for item in value]
    return _VARIABLE.sub(text_of, value) if isinstance(value, str) else value
