"""An example: a command line, its environment, and changes to the files that it finds."""

import json
import os
import re
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
RUN = (*TRAIN, "--data.batch-size", "16", "--train.log-every", "1", "--delta.steps", "2")
"""Trains run/ and paused/, whose six steps leave some to make, and ships three deltas of run/."""
PLAN = ("--nodes", "1", "--ranks-per-node", "2", "--tasks", "1", "--seconds", "1", "--types", "table_wise")
PLAN += ("--layouts", "split", "--grow-tasks", "1", "--grow-rows", "1", "--out", "out")
"""Plans one strategy, in place of the 23 plans that take 20 seconds."""


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
        values = []
        for i, arg in enumerate(self.args):
            option, equals, value = arg.partition("=")
            if option == name and (equals or i + 1 < len(self.args)):
                values.append(value if equals else self.args[i + 1])
        return values[-1] if values else None

    def place(self, name: str) -> str | None:
        """The path that an option names, from the workspace; None without one. `None` stands for no path."""
        value = self.option(name)
        if not value or (value == "None" and name != "--out"):
            return None
        return os.path.normpath(re.sub("^~(?=/|$)", "home", value))


def train(*options: str, edits: list[Edit] | None = None, env: dict[str, str] | None = None) -> Case:
    """A training with further options."""
    output = () if any(option.startswith("--output-dir") for option in options) else ("--output-dir", "out")
    return Case("train", [*TRAIN, *output, *options], edits or [], env or {})
