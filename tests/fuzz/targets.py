"""Runs a case and judges its answer; how many examples each target gets, and the record of a campaign."""

import atexit
import functools
import json
import os
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from hypothesis import HealthCheck, Phase, settings

from fuzz.case import RUN, Case
from fuzz.changes import Snapshot, wrong_changes
from fuzz.invariants import problems
from fuzz.server import Answer, Server
from fuzz.workspace import Workspace

EXAMPLES = {
    "command lines": 12,
    "structured files": 12,
    "logs": 12,
    "run folders": 8,
    "resumed runs": 3,
    "environments": 6,
    "other commands": 11,
    "preparations": 8,
    "guesses": 3,
}
"""Examples of each target in `make test`; a campaign shares its number out in the same proportion."""
LIMIT = 120.0
"""Seconds after which an example hangs; a slow one takes 3 s on an idle machine."""
CAMPAIGN = os.environ.get("FUZZ_OUT")
"""Folder for the record of a campaign, in which a failing example does not end its target."""


def target(name: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Settings of a target: the same examples each time, except in a campaign."""
    in_all = int(os.environ.get("FUZZ_EXAMPLES", sum(EXAMPLES.values())))
    return settings(
        max_examples=-(-EXAMPLES[name] * in_all // sum(EXAMPLES.values())),
        derandomize=not CAMPAIGN,
        database=None,
        deadline=None,
        print_blob=False,
        # The first failing example is reported as it is: to shrink it takes minutes.
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )


class Bench:
    """The warm server, and a folder at whose one path every example has its workspace."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="fuzz-")
        self.work, self.template = (Path(self._folder.name) / name for name in ("work", "template"))
        self._server = Server()
        self.work.mkdir()
        Workspace(self.work)
        made = self.run_here(Case("resume", ["leave", "1", *RUN]))
        assert made.status == 0, made.output
        copying = ["--delta", "run/deltas", "--to", "copy", "--until", "1"]
        for command, args in (
            ("export", ["--run", "run", "--log", "log", "--out", "bundle"]),
            ("apply_delta", copying),
        ):
            made = self.run_here(Case(command, args))
            assert made.status == 0, made.output
        self.work.rename(self.template)

    def run(self, case: Case) -> tuple[Answer, list[str]]:
        """The answer to a case, and what is wrong with it."""
        workspace = Workspace(self.work, self.template)
        try:
            for edit in case.edits:
                # An earlier edit may have put a file where this one needs a folder.
                with suppress(OSError):
                    workspace.edit(edit)
            before = Snapshot.of(self.work)
            answer = self.run_here(case)
            try:
                wrong = list(problems(case, answer, self.work))
                changes = wrong_changes(case, before, Snapshot.of(self.work))
                wrong += [f"changed: {name}, which is not the command's" for name in changes]
            except (OSError, ValueError, LookupError, TypeError) as error:
                wrong = [f"results that cannot be read: {type(error).__name__}"]
        finally:
            workspace.remove()
        return answer, wrong

    def run_here(self, case: Case) -> Answer:
        """Runs the command in the workspace as it is."""
        return self._server.run(case.command, case.args, folder=self.work, env=case.env, limit=LIMIT)

    def close(self) -> None:
        """Ends the server and deletes the folder."""
        self._server.close()
        self._folder.cleanup()


@functools.cache
def bench() -> Bench:
    """The bench of this process, which is made at the first example."""
    made = Bench()
    atexit.register(made.close)
    return made


@functools.cache
def _first_example(name: str) -> float:
    """When the first example of a target ran."""
    return time.monotonic()


def check(name: str, case: Case) -> None:
    """Fails for an answer that is wrong, with the case as JSON; in a campaign, records every answer instead."""
    share = EXAMPLES[name] / sum(EXAMPLES.values())
    if time.monotonic() - _first_example(name) > share * float(os.environ.get("FUZZ_SECONDS", "inf")):
        return
    answer, wrong = bench().run(case)
    if CAMPAIGN is None:
        assert not wrong, f"{'; '.join(wrong)}\n{answer.output[-3000:]}\n{case.to_json()}"
        return
    record = {"target": name, "status": answer.status, "seconds": answer.seconds, "problems": wrong}
    record |= {"case": json.loads(case.to_json()), "output": answer.output[-3000:] if wrong else ""}
    with (Path(CAMPAIGN) / f"examples-{os.getpid()}.jsonl").open("a") as file:
        file.write(json.dumps(record) + "\n")
