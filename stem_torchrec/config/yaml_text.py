"""YAML that people and runs write, to and from Python values: the one reader and the one writer."""

import re
from typing import Any

import yaml

from stem_torchrec.runtime.errors import reason_of

_DEPTH = 32
"""Deepest nesting: deeper text would exhaust the interpreter's stack."""
_ALIASES = 20
"""Most aliases (`*name`): lists of aliases to lists of aliases grow to any size from a few lines."""
_FLOAT = re.compile(r"[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+")
"""Floats that YAML 1.1 takes for text: 1e-6, 1.5e3."""


class _Loader(yaml.SafeLoader):
    """Reads 1e-6 as a number, and refuses text that is nested deeply or has many aliases."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._depth = self._aliases = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()
        self._depth += 1
        self._aliases += isinstance(event, yaml.AliasEvent)
        if self._depth > _DEPTH or self._aliases > _ALIASES:
            limit = f"nested deeper than {_DEPTH} levels" if self._depth > _DEPTH else f"more than {_ALIASES} aliases"
            raise yaml.composer.ComposerError(None, None, f"{limit}; write it out flat", event.start_mark)
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node


class _Dumper(yaml.SafeDumper):
    """Puts the text "1e-6" in quotes, as the loader would read a number."""


for _kind in (_Loader, _Dumper):
    _kind.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789"))


def parse_yaml(text: str) -> Any:
    """The value that YAML text stands for; raises ValueError with the line that is wrong.

    Example::

        parse_yaml("betas: [0.9, 0.999]\\neps: 1e-8")  # {"betas": [0.9, 0.999], "eps": 1e-08}
    """
    try:
        return yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise ValueError(f"{line}{error.problem}") from error
    except yaml.YAMLError as error:
        raise ValueError(reason_of(error)) from error


def to_yaml(value: Any) -> str:
    """The text that `parse_yaml` reads, with the keys in their order."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False)
