"""Folders that other processes own."""

import os
from dataclasses import replace
from pathlib import Path

from stem_torchrec.runtime.owner_file import started_at, this_process, write_owner


def owned_by_another_process(folder: Path) -> None:
    """Makes the parent of this process the owner of a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    owner = replace(this_process("its token"), pid=os.getppid(), started=started_at(os.getppid()) or "", launch="")
    write_owner(str(folder), owner)
