"""One owner for each folder that a command writes to, so that two commands do not mix their files.

On one machine a process id with its start time tells whether the owner still runs, so a killed run never blocks the
next. From another machine, through a shared file system or an object store, an owner counts as running for five minutes
after it has renewed its lease, which it does each minute.

What this cannot exclude: where a file system has no locks, as an object store, two machines that take a folder in the
same second may both believe for some seconds to own it; the one whose file was overwritten then ends. A machine that
stands still for five minutes loses its folders, and ends before it writes again; clocks that differ by minutes shorten
or lengthen a lease by as much.
"""

import errno
import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from threading import Event, RLock, Thread
from weakref import finalize

from filelock import FileLock

from stem_torchrec.runtime.errors import UserError
from stem_torchrec.runtime.owner_file import (
    LEASE_ENDS_AFTER,
    OWNER_FILE,
    RENEWED_EVERY,
    Owner,
    launch_id,
    read_owner,
    remove_owner,
    this_process,
    time_now,
    write_owner,
)

_LOOKS_EVERY = 5.0
"""Seconds between two looks at the owner file."""
_STORE_SETTLES = 1.0
"""Seconds after which another machine that took a folder of a store at the same time has written its owner file."""
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


class FolderLock:
    """The folders that this process alone writes to, until it releases them or ends.

    A process may take a folder again that it owns already, as a second Trainer does after one that was given up.

    Args:
        take_over: takes folders from a running owner as well, which then ends with an error; None for a command that
            has no such option.

    Example::

        with FolderLock() as lock:
            from_first_rank(lambda: lock.take("runs/a", other="--output-dir"))  # rank 0 owns it for all ranks
            # UserError: runs/a is in use by process 4711 on gpu-3 since 2026-11-26 17:15:17 UTC, last renewed ...
            from_first_rank(lock.confirm)  # before writing: UserError if another process has taken the folder over
    """

    def __init__(self, *, take_over: bool | None = False) -> None:
        self._take_over = take_over
        self._leases: dict[str, Owner] = {}
        self._changing = RLock()
        self._lost, self._ended = Event(), Event()
        # At the latest when this object or the interpreter ends.
        self.release = finalize(self, _release, self._leases, self._changing, self._ended)
        """Gives the folders back; a second call does nothing."""

    def __enter__(self) -> "FolderLock":
        return self

    def __exit__(self, *error: object) -> None:
        self.release()

    def check(self, folder: str, *, other: str, allow_launch: bool = False) -> None:
        """Raises UserError if another process owns `folder`; takes nothing.

        Args:
            folder: need not exist.
            other: the option that names another folder.
            allow_launch: whether a rank of the same launch may own it.
        """
        owner = read_owner(folder)
        if owner is None or owner.has_ended or self._take_over or (allow_launch and owner.launch == launch_id()):
            return
        lease = f" (on another machine, so it counts as ended {LEASE_ENDS_AFTER / 60:.0f} minutes after that)"
        taking = f"delete {OWNER_FILE} in it" if self._take_over is None else "add --take-over"
        raise UserError(
            f"{folder} is in use by {owner}{'' if owner.is_of_this_machine else lease}; end that process or give "
            f"another {other}, or {taking} to take the folder from it."
        )

    def take(self, folder: str, *, other: str) -> None:
        """Makes this process the owner of a folder, and makes the folder; see `check`. Raises OSError."""
        self.check(folder, other=other)
        if "://" not in folder:
            # The same folder under several names, and after a change of the working folder.
            folder = os.path.realpath(folder)
            Path(folder).mkdir(parents=True, exist_ok=True)
        if folder in self._leases:
            return
        owner = this_process(uuid.uuid4().hex)
        with _locked(folder):
            self.check(folder, other=other)
            write_owner(folder, owner)
        if "://" in folder:
            time.sleep(_STORE_SETTLES)
        with self._changing:
            self._leases[folder] = owner
            if len(self._leases) == 1:
                args = (self._leases, self._changing, self._lost, self._ended)
                Thread(target=_renew, args=args, name="folder lock", daemon=True).start()
        self.confirm()

    def confirm(self) -> None:
        """Raises UserError if another process has taken a folder over, or deleted its owner file."""
        for folder, lease in list(self._leases.items()):
            owner: Owner | None = lease
            # A store that does not answer now has not given the folder to another process.
            with suppress(OSError):
                owner = read_owner(folder)
            if owner is None or owner.token != lease.token:
                self._lost.set()
                reason = f"its {OWNER_FILE} was deleted" if owner is None else f"it was taken over by {owner}"
                raise UserError(
                    f"{folder} is no longer this process's: {reason}; it ends without writing to it again. Give "
                    "another folder to run both."
                )

    @property
    def lost(self) -> bool:
        """Whether another process has taken a folder over some seconds ago."""
        return self._lost.is_set()


@contextmanager
def _locked(folder: str) -> Iterator[None]:
    """Alone in this block among the processes of this machine, and of others whose file system has locks."""
    file = Path(folder) / ".owner.lock"
    if "://" in folder:
        yield
        return
    lock = FileLock(file, timeout=_LOOKS_EVERY)
    try:
        lock.acquire()
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
    try:
        yield
    finally:
        if lock.is_locked:
            file.unlink(missing_ok=True)
            lock.release()


def _renew(leases: dict[str, Owner], changing: RLock, lost: Event, ended: Event) -> None:
    """Renews the leases until they end or one is lost; a folder that cannot be read or written now may be later."""
    while not ended.wait(_LOOKS_EVERY):
        with changing:
            for folder, lease in leases.items():
                with suppress(OSError, UserError):
                    owner = read_owner(folder)
                    if owner is None or owner.token != lease.token:
                        lost.set()
                        return
                    if owner.age >= RENEWED_EVERY:
                        with _locked(folder):
                            if read_owner(folder) == owner:
                                write_owner(folder, replace(owner, renewed=time_now()))


def _release(leases: dict[str, Owner], changing: RLock, ended: Event) -> None:
    ended.set()
    with changing:
        for folder, lease in leases.items():
            with suppress(OSError, UserError):
                owner = read_owner(folder)
                # A forked process has a copy of this object, but owns nothing.
                if owner is not None and owner.token == lease.token and owner.pid == this_process("").pid:
                    remove_owner(folder)
        leases.clear()
