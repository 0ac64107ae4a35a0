"""YAML that people and runs write, to and from Python values: the one strict reader and the one writer.

The reader knows YAML 1.2, in which 1e-6 is a number and `yes` is text, and takes only what JSON has as well: mappings
with text as keys, lists, text, numbers, true, false and null.
"""

import io
import reprlib
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.composer import Composer, ComposerError
from ruamel.yaml.constructor import ConstructorError, SafeConstructor
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import AliasEvent
from ruamel.yaml.representer import SafeRepresenter
from ruamel.yaml.resolver import VersionedResolver, implicit_resolvers

from stem_torchrec.runtime.errors import UserError, reason_of

_DEPTH = 32
"""Deepest nesting: deeper text would exhaust the interpreter's stack."""
_ALIASES = 20
"""Most aliases (`*name`): lists of aliases to lists of aliases grow to any size from a few lines."""
_BOOL, _FLOAT, _INT, _MERGE, _NULL, _TEXT = (
    f"tag:yaml.org,2002:{name}" for name in ("bool", "float", "int", "merge", "null", "str")
)


def _plain_text(*, reads: bool) -> dict[str, list[tuple[str, Any]]]:
    """What text without quotes stands for, by its first letter: tags, and the pattern of each.

    Args:
        reads: as JSON has it, with << for merging; otherwise as YAML 1.1 or 1.2 has it.
    """
    patterns = defaultdict(list)
    for versions, tag, pattern, letters in implicit_resolvers:
        if not reads or ((1, 2) in versions and tag in (_BOOL, _FLOAT, _INT, _MERGE, _NULL)):
            for letter in letters:
                patterns[letter].append((tag, pattern))
    return dict(patterns)


class _ReadingResolver(VersionedResolver):
    versioned_resolver = _plain_text(reads=True)
    processing_version = (1, 2)


class _WritingResolver(VersionedResolver):
    """Puts text in quotes that some reader, such as an earlier version of this one, takes for a number or a boolean."""

    versioned_resolver = _plain_text(reads=False)
    processing_version = (1, 2)


class _Composer(Composer):
    """Refuses keys that stand twice or are not text, tags, deep nesting, many aliases, and what contains itself."""

    def __init__(self, loader: Any = None) -> None:
        super().__init__(loader)
        self.warn_double_anchors = False
        self._aliases = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.parser.peek_event()
        self._aliases += isinstance(event, AliasEvent)
        problem = None
        if self.depth == _DEPTH:
            problem = f"nested deeper than {_DEPTH} levels; write it out flat"
        elif self._aliases > _ALIASES:
            problem = f"more than {_ALIASES} aliases; write it out flat"
        elif isinstance(event, AliasEvent) and self._is_open(event.anchor):
            problem = f"*{event.anchor} stands inside of what it stands for; write it out flat"
        elif getattr(event, "ctag", None) is not None:
            problem = f"the tag {event.ctag} is not read; leave it out"
        if problem is not None:
            raise ComposerError(None, None, problem, event.start_mark)
        return super().compose_node(parent, index)

    def compose_mapping_node(self, anchor: Any) -> Any:
        node = super().compose_mapping_node(anchor)
        keys = set()
        for key, _ in node.value:
            problem = None
            if key.tag not in (_TEXT, _MERGE):
                problem = "a key that is not text; put it in quotes"
            elif key.value in keys:
                problem = f"the key {key.value!r} stands twice"
            if problem is not None:
                raise ComposerError(None, None, problem, key.start_mark)
            keys.add(key.value)
        return node

    def _is_open(self, anchor: Any) -> bool:
        return anchor in self.anchors and self.anchors[anchor].end_mark is None


class _Constructor(SafeConstructor):
    """Names the place of a number that Python cannot read."""


def _placed(construct: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    def read(constructor: _Constructor, node: Any) -> Any:
        try:
            return construct(constructor, node)
        except ValueError as error:
            problem = f"{reprlib.repr(node.value)[1:-1]} is no number, or has too many digits"
            raise ConstructorError(None, None, problem, node.start_mark) from error

    return read


_Constructor.add_constructor(_FLOAT, _placed(SafeConstructor.construct_yaml_float))
_Constructor.add_constructor(_INT, _placed(SafeConstructor.construct_yaml_int))
_Constructor.add_constructor(_MERGE, SafeConstructor.construct_yaml_str)


class _Representer(SafeRepresenter):
    """Writes 1.0e-08, which YAML 1.1 takes for a number as well; 1e-08 is text there."""

    def represent_float(self, data: float) -> Any:
        text = repr(data)
        text = text if "." in text else text.replace("e", ".0e")
        return self.represent_scalar(_FLOAT, text)


_Representer.add_representer(float, _Representer.represent_float)


def parse_yaml(text: str) -> Any:
    """The value that YAML text stands for.

    Raises ValueError with the line of what is not YAML, or no value of JSON; with the key that a mapping has twice; for
    text that is nested deeper than 32 levels or has more than 20 aliases.

    Example::

        parse_yaml("betas: [0.9, 0.999]\\neps: 1e-8")  # {"betas": [0.9, 0.999], "eps": 1e-08}
    """
    reader = YAML(typ="safe", pure=True)
    reader.Resolver, reader.Composer, reader.Constructor = _ReadingResolver, _Composer, _Constructor
    try:
        return reader.load(text)
    except MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise ValueError(f"{line}{error.problem}") from error
    # AssertionError: %YAML 1.3.
    except (YAMLError, AssertionError) as error:
        raise ValueError(reason_of(error)) from error


def read_yaml(option: str, path: str) -> Any:
    """The value in a file that an option names.

    Raises UserError that names both if the file cannot be read; see `parse_yaml`.
    """
    try:
        return parse_yaml(Path(path).read_text())
    # ValueError: the file is not text, or not YAML.
    except (OSError, ValueError) as error:
        raise UserError(f"{option} {path} cannot be read ({reason_of(error)}); give a YAML file.") from error


def to_yaml(value: Any) -> str:
    """The text that `parse_yaml` reads, with the keys in their order."""
    writer = YAML(typ="safe", pure=True)
    writer.Resolver, writer.Representer = _WritingResolver, _Representer
    writer.default_flow_style = False
    writer.allow_unicode = False
    # Declared as None and meant for a boolean.
    writer.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    text = io.StringIO()
    writer.dump(value, text)
    return text.getvalue()
