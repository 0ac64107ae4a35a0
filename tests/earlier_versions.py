"""Files of options as other versions write them: without some options, or with one more."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stem_torchrec.config.yaml_text import parse_yaml, to_yaml


def forget(file: Path, *names: str) -> None:
    """Removes entries from a YAML or JSON file, such as `train.loss`, or `sweep.tables.0.own` from a list."""
    _edit(file, names, lambda section, name: section.pop(name))


def add(file: Path, name: str, value: Any) -> None:
    """Sets an entry of a YAML or JSON file."""
    _edit(file, [name], lambda section, last: section.__setitem__(last, value))


def _edit(file: Path, names: Any, edit: Callable[[Any, Any], object]) -> None:
    is_json = file.suffix == ".json"
    content = json.loads(file.read_text()) if is_json else parse_yaml(file.read_text())
    for name in names:
        section = content
        *outer, last = name.split(".")
        for each in outer:
            section = section[int(each) if each.isdigit() else each]
        edit(section, last)
    file.write_text(json.dumps(content) if is_json else to_yaml(content))
