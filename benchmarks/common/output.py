"""Result files of a benchmark: the folder, and files that are never seen half written."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stem_torchrec.config.json_text import parse_json
from stem_torchrec.runtime.errors import UserError


def make_folder(out: str) -> Path:
    """Makes the folder of the results; raises UserError if that fails."""
    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"the results cannot be written to {out} ({error.strerror}); give another --out.") from error
    return folder


def record_identity(path: Path, identity: Mapping[str, Any], head: Mapping[str, Any], *, kind: str) -> dict[str, Any]:
    """Writes what the results beside `path` belong to, or checks that they belong to the same; returns the first head.

    Args:
        path: of the file.
        identity: in values that JSON can represent.
        head: is for the reader of a report; it may differ when the work is resumed, and the first one is kept.
        kind: what it is, such as sweep.

    Raises UserError if the file has another identity or is not such a file.
    """
    wanted = json.loads(json.dumps(identity))
    if not path.exists():
        write_whole(path, json.dumps({kind: wanted, "head": head}, indent=1))
    try:
        content = parse_json(path.read_text())
        existing, kept_head = content[kind], content["head"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} does not describe a {kind} ({error!r}); give another --out.") from error
    if difference := _difference(existing, wanted):
        raise UserError(
            f"{path.parent} holds another {kind}, where {difference}; give another --out, or the same command."
        )
    return kept_head


def _difference(existing: Any, wanted: Any, path: str = "") -> str:
    """The first place where two plain values differ, as in `model.embedding_dim is 16 and not 8`."""
    if isinstance(existing, dict) and isinstance(wanted, dict):
        for key in sorted({*existing, *wanted}):
            if difference := _difference(existing.get(key), wanted.get(key), f"{path}.{key}" if path else key):
                return difference
        return ""
    return "" if existing == wanted else f"{path} is {_short(existing)} and not {_short(wanted)}"


def _short(value: Any) -> str:
    text = " ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) < 60 else f"{text[:60]}..."


def write_whole(path: Path, text: str) -> None:
    """Writes under another name first, so that a reader gets either the old file or the complete new one."""
    new = path.with_name(path.name + ".new")
    new.write_text(text)
    new.rename(path)
