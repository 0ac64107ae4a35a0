"""Specs that are installed: those of public logs, which a name stands for."""

import os
from importlib import resources
from pathlib import Path

from stem_torchrec.runtime.errors import UserError, nearest


def installed_specs() -> dict[str, Path]:
    """The specs of public logs, by name: those of the wheel, or in a checkout those in datasets/."""
    package = Path(str(resources.files("stem_torchrec")))
    folder = package / "preparation" / "public_logs"
    if not folder.exists():
        folder = package.parent / "datasets"
    return {file.stem: file for file in sorted(folder.glob("*.yaml"))}


def spec_path(name: str) -> Path:
    """The file of a spec: a path, or the name of one that is installed.

    Raises UserError with the nearest name if it is neither.
    """
    path = Path(os.path.expanduser(name))
    if not name:
        raise UserError(f"the spec is missing; give a YAML file, or one of {', '.join(installed_specs())}.")
    if path.suffix in (".yaml", ".yml") or path.exists():
        if path.is_dir():
            raise UserError(f"the spec {name} is a folder; give a YAML file.")
        if not path.is_file():
            raise UserError(f"there is no spec {name}; give a YAML file, or one of {', '.join(installed_specs())}.")
        return path
    known = installed_specs()
    if name not in known:
        hint = nearest(name, list(known)) or f"; give a YAML file, or one of {', '.join(known)}."
        raise UserError(f"there is no spec {name!r}{hint}")
    return known[name]
