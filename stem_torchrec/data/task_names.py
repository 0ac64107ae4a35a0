"""What a label may be called, as it becomes a task: a group of tables and a part of the model bear its name."""

from collections.abc import Sequence

from stem_torchrec.runtime.errors import UserError

SHARED = "shared"
"""The group whose tables and experts every task reads and trains."""


def check_task_names(tasks: Sequence[str]) -> None:
    """Raises UserError for a label that cannot name a task, for two of one name, and for none at all."""
    # Imported late, as that takes a second, which scripts that make a log would not need otherwise.
    from torch import nn

    for task in tasks:
        # Groups name submodules, and a ModuleDict refuses the names of its own attributes.
        if task in ("", SHARED) or set(task) & set("./+") or hasattr(nn.ModuleDict(), task):
            raise UserError(
                f"a task cannot be called {task!r}, as parts of the model are called so; in schema.json, give the "
                "label another name and the field column, which names the column of the files."
            )
    if not tasks or len(set(tasks)) < len(tasks):
        raise UserError(f"the tasks must be one or more different labels, not {list(tasks)}.")
