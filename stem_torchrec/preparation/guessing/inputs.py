"""What stem-prepare is called with: a spec, or raw files of which a spec is guessed; and the files that are meant."""

import glob
import os
import re
from collections import Counter
from collections.abc import Collection, Sequence

from stem_torchrec.preparation.raw_files.csv_text import PACKED, open_bytes
from stem_torchrec.preparation.raw_files.listing import ENDINGS, find_files
from stem_torchrec.preparation.specs.spec import Source
from stem_torchrec.runtime.errors import UserError

SPEC_ENDINGS = (".yaml", ".yml")
_KINDS = {ending: kind for kind, endings in ENDINGS.items() for ending in endings}
_FIRST_KEY = re.compile(rb"(?:\s*(?:#[^\n]*)?\n)*(?:format|sources|variables|description):")
"""What a spec begins with, behind comments."""


def is_spec(inputs: Sequence[str], installed: Collection[str]) -> bool:
    """Whether the command is called with a spec, and not with raw files.

    Args:
        inputs: what the command is called with.
        installed: names of the installed specs.

    Raises UserError for a spec beside other files, and for a name that both a spec and a file have.

    Example::

        is_spec(["logs/*.csv"], ["adult"])  # False
    """
    specs = [each for each in inputs if _is_one_spec(each, installed)]
    if specs and len(inputs) > 1:
        other = next((each for each in inputs if each not in specs), specs[-1])
        raise UserError(f"{specs[0]} is a spec, beside which {other} cannot stand; give one spec, or raw files only.")
    return bool(specs) or not inputs


def _is_one_spec(name: str, installed: Collection[str]) -> bool:
    path = os.path.expanduser(name)
    if path.lower().endswith(SPEC_ENDINGS):
        return True
    if name in installed:
        if os.path.exists(path):
            raise UserError(
                f"{name} is the name of an installed spec and of a {'folder' if os.path.isdir(path) else 'file'}; "
                f"write ./{name} for the latter, or give the spec from another folder."
            )
        return True
    if os.path.isfile(path):
        return bool(_FIRST_KEY.match(_first_bytes(path)))
    # A word alone is a name that is wrong; the caller knows the right ones.
    return not os.path.exists(path) and re.fullmatch(r"\w+", name) is not None


def _first_bytes(path: str, count: int = 65_536) -> bytes:
    with open_bytes(path) as file:
        return file.read(count)


def files_of(inputs: Sequence[str]) -> tuple[Source, list[str]]:
    """The source of raw files, with its type only, and its files in order.

    Raises UserError for a path without a file, and for files of several types.

    Example::

        files_of(["logs/"])  # Source(("/home/me/logs",), "parquet"), ["/home/me/logs/part-0.parquet", ...]
    """
    patterns = tuple(_pattern(each) for each in inputs)
    kinds: dict[str, str] = {}
    for pattern in patterns:
        kinds |= _kinds_of(pattern)
    counted = Counter(kinds.values())
    if not counted:
        raise UserError(f"{' '.join(inputs)} has no file that ends in {', '.join(_KINDS)}; give such files.")
    if len(counted) > 1:
        examples = {kind: os.path.basename(file) for file, kind in kinds.items()}
        listed = " and ".join(f"{kind} ({name})" for kind, name in examples.items())
        raise UserError(f"{' '.join(inputs)} has files of several types, {listed}; give those of one.")
    [kind] = counted
    # Pydantic checks the type when the spec is read.
    source = Source(patterns[0] if len(patterns) == 1 else patterns, type=kind)  # type: ignore[arg-type]
    return source, find_files("log", source)


def _pattern(name: str) -> str:
    """A path as the spec has it: one that is right in every folder."""
    if "://" in name:
        return name
    path = os.path.abspath(os.path.expanduser(name))
    return glob.escape(path) if os.path.exists(path) else path


def _kinds_of(pattern: str) -> dict[str, str]:
    """The type of each file of a path or pattern, by its ending, else by how it begins."""
    if "://" not in pattern and os.path.isdir(path := glob.glob(pattern)[0] if glob.glob(pattern) else pattern):
        names = [os.path.join(folder, name) for folder, _, names in os.walk(path) for name in names]
        hidden = [name for name in names if re.search(r"/[._]", name.removeprefix(path))]
        return {name: kind for name in names if name not in hidden and (kind := _kind_by_name(name))}
    files = find_files("log", Source(pattern))
    return {file: _kind_by_name(file) or _kind_by_content(file) for file in files}


def _kind_by_name(path: str) -> str | None:
    name = path.lower()
    for ending in PACKED:
        name = name.removesuffix(ending)
    return _KINDS.get(os.path.splitext(name)[1])


def _kind_by_content(path: str) -> str:
    first = _first_bytes(path)
    if first.startswith(b"PAR1"):
        return "parquet"
    if first.lstrip().startswith(b"{"):
        return "json"
    if b"\0" in first:
        raise UserError(f"{path} is neither CSV nor JSON lines nor Parquet; give files of these.")
    return "csv"


def partitions_of(files: Sequence[str]) -> dict[str, list[str]]:
    """The values of the columns that only the names of folders have.

    Example::

        partitions_of(["log/date=2022-05-03/a.parquet"])  # {"date": ["2022-05-03"]}
    """
    values: dict[str, list[str]] = {}
    for file in files:
        for folder in os.path.dirname(file).split("/"):
            name, equals, value = folder.partition("=")
            if equals and name:
                values.setdefault(name, []).append(value)
    return {name: texts for name, texts in values.items() if len(texts) == len(files)}
