"""An example: a command line, its environment, and changes to the files that it finds."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

Edit = dict[str, Any]
"""A change of the workspace: {"do": "write", "path": ..., "text": ...}; `Workspace.edit` lists all kinds."""

TRAIN = (
    *("--recipe", "tiny", "--data.path", "log", "--data.batch-size", "32", "--model.embedding-dim", "4"),
    *("--checkpoint.minutes", "None", "--train.timeout", "20"),
)
"""Trains three steps in about half a second."""
RUN = (*TRAIN, "--data.batch-size", "16", "--train.log-every", "1")
"""Trains run/ and paused/, whose six steps leave some to make."""


@dataclass(frozen=True)
class Case:
    """One example of a target; as JSON it is a file in past/."""

    command: str
    """A key of `server.COMMANDS`."""
    args: list[str]
    edits: list[Edit] = field(default_factory=list)
    env: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> str:
        """The case as the text of a file in past/."""
        return json.dumps({key: value for key, value in asdict(self).items() if value}, indent=1) + "\n"

    @classmethod
    def read(cls, path: Path) -> "Case":
        """The case in a file of past/."""
        return cls(**{"args": [], **json.loads(path.read_text())})

    def option(self, name: str) -> str | None:
        """The last value of an option on the command line; None without it."""
        values = [b for a, b in zip(self.args, self.args[1:], strict=False) if a == name]
        values += [arg.partition("=")[2] for arg in self.args if arg.startswith(f"{name}=")]
        return values[-1] if values else None


def train(*options: str, edits: list[Edit] | None = None, env: dict[str, str] | None = None) -> Case:
    """A training with further options."""
    output = () if any(option.startswith("--output-dir") for option in options) else ("--output-dir", "out")
    return Case("train", [*TRAIN, *output, *options], edits or [], env or {})
