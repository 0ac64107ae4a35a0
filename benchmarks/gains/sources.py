"""Sources of logs, from the command line or a YAML file, and the comparison on each."""

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from stem_torchrec.comparison.options import Request
from stem_torchrec.comparison.options import read_command_line as read_comparison
from stem_torchrec.comparison.resolved import resolve_log
from stem_torchrec.comparison.several_logs import requests_by_log
from stem_torchrec.config.serialization import from_dict
from stem_torchrec.config.yaml_text import parse_yaml
from stem_torchrec.data.columns import Columns
from stem_torchrec.data.label_kinds import refusal_of_kinds
from stem_torchrec.data.schema import load_schema
from stem_torchrec.runtime.errors import UserError, reason_of


@dataclass(frozen=True)
class Source:
    """Logs that are reported together."""

    logs: tuple[str, ...] = ()
    """Folders; several are one source split by other seeds or by other days."""
    tasks: Literal["each", "mean"] = "each"
    """What a model is compared by: the AUC of each task, or its mean over the tasks, for a log whose rows have all
    labels."""
    options: str = ""
    """Options of train.py over those of the command line, such as `--recipe synthetic --model.expert-hidden 64 32`."""


@dataclass(frozen=True)
class OfSource:
    """The comparison on a source."""

    name: str
    source: Source
    request: Request
    """On all logs."""
    by_log: Sequence[Request]
    """On each log."""


def read_sources(words: Sequence[str]) -> dict[str, Source]:
    """The sources by name.

    Args:
        words: NAME=LOG or NAME=LOG1,LOG2, or one YAML file with a mapping of names to the fields of a Source.

    Raises UserError for what is neither, or has a name that no folder can have.

    Example::

        read_sources(["shop=data/shop,data/shop_1"])  # {"shop": Source(("data/shop", "data/shop_1"))}
    """
    if not words:
        raise UserError("--sources is missing; give NAME=LOG for each, or a YAML file.")
    if len(words) == 1 and "=" not in words[0]:
        return _of_file(words[0])
    sources: dict[str, Source] = {}
    for word in words:
        name, _, logs = word.partition("=")
        named = tuple(log for log in logs.split(",") if log)
        if not named or name in sources:
            raise UserError(f"--sources has {word!r}, but must have NAME=LOG or NAME=LOG1,LOG2, each name once.")
        sources[_checked(name, "--sources")] = Source(named)
    return sources


def _of_file(path: str) -> dict[str, Source]:
    try:
        content: Any = parse_yaml(Path(path).read_text())
    # ValueError: the file is not text, or not YAML.
    except (OSError, ValueError) as error:
        raise UserError(
            f"--sources {path} cannot be read ({reason_of(error)}); give NAME=LOG or a YAML file."
        ) from error
    if not isinstance(content, dict) or not content:
        raise UserError(f"{path} is not a mapping of sources; write lines like `shop: {{logs: [data/shop]}}`.")
    sources = {}
    for name, values in content.items():
        try:
            sources[_checked(name, path)] = source = from_dict(Source, values)
        except UserError as error:
            raise UserError(f"{path}: {name}: {error}") from error
        if not source.logs:
            raise UserError(f"{path}: {name}: logs is empty; name a log.")
    return sources


def _checked(name: str, place: str) -> str:
    if not re.fullmatch("[A-Za-z0-9][A-Za-z0-9_.-]{0,99}", name):
        raise UserError(f"{place}: the source {name!r} must have a name of letters, digits and _.- only.")
    return name


def comparisons_on(sources: Mapping[str, Source], line: Sequence[str], *, out: str, split: str) -> list[OfSource]:
    """The comparison on each source, in a folder of its own; all are checked before anything is trained.

    Args:
        sources: by name.
        line: options of compare.py and train.py, for all sources.
        out: folder of the results.
        split: the split to report on.

    Raises UserError that names the source whose options or logs do not fit.
    """
    comparisons = []
    for name, source in sources.items():
        logs = ["--logs", *source.logs] if len(source.logs) > 1 else ["--data.path", *source.logs]
        try:
            request = read_comparison([*line, *shlex.split(source.options), *logs, "--out", str(Path(out) / name)])
            request = replace(request, config=replace(request.config, split=split))
            by_log = [resolve_log(each) for each in requests_by_log(request)]
            _check_binary(by_log[0])
        except UserError as error:
            raise UserError(f"source {name}: {error}") from error
        comparisons.append(OfSource(name, source, request, by_log))
    return comparisons


def _check_binary(request: Request) -> None:
    """Raises UserError for a task whose labels are numbers or levels, as a gain is one of AUC over positives."""
    data = request.train.data
    columns = Columns.select(load_schema(data.path or ""), labels=data.labels)
    fix = "leave the task out, as in `options: {labels}` of the source, or compare on it by stem-compare"
    if refusal := refusal_of_kinds(columns, "pays.py", fix=fix):
        raise UserError(refusal)
