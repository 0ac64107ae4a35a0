"""The walk: every day is tested by the models of the day before, and then trained on."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from stem_torchrec.config.serialization import from_dict, to_dict
from stem_torchrec.preparation.specs.spec import Spec
from stem_torchrec.runtime.process import from_first_rank, join_process_group

from common.machine import describe_run
from common.output import make_folder, record_identity
from prequential.day_logs import DayLogs
from prequential.day_runs import predict_day, train_day
from prequential.options import DaysOptions
from prequential.policies import POLICIES, Walker
from prequential.report import write_report


def walk(options: DaysOptions, rest: Sequence[str]) -> None:
    """Walks the days and writes the report; all ranks call it.

    Args:
        options: which days.
        rest: options of train.py, for all policies.
    """
    with join_process_group() as process:
        folder = from_first_rank(partial(make_folder, options.out)).resolve()
        logs = DayLogs(options, folder)
        spec = from_first_rank(lambda: to_dict(logs.spec))
        head = describe_run("days.py")
        same = {name: head[name] for name in ("machine", "versions")}
        identity = {**same, "spec": spec, "day": options.day, "first": options.days[0], "training": list(rest)}
        identity |= {"hashed": list(options.hashed), "switch": options.switch if options.hashed else None}
        if options.hashed:
            from_first_rank(logs.check_hashed)
        file = folder / "identity.json"
        head = from_first_rank(partial(record_identity, file, identity, head, kind="walk", as_of_now=identity_of_now))
        for seed in options.seeds:
            for before, day in zip((None, *options.days), options.days, strict=False):
                for name in options.policies:
                    walker = Walker(folder, name, seed)
                    if before is not None:
                        kind = POLICIES[name].log_of(before, options.switch)
                        predict_day(walker, day, before, from_first_rank(partial(logs.to_test, day, kind)), process)
                    if day != options.days[-1]:
                        kind = POLICIES[name].log_of(day, options.switch)
                        log = from_first_rank(partial(logs.to_train, day, kind))
                        train_day(walker, day, before, log, rest, process)
        if process.is_first:
            write_report(options, logs, head)


def identity_of_now(recorded: dict[str, Any]) -> dict[str, Any]:
    """What identity.json of some version has, with the defaults of what it lacks; see `check_recorded`."""
    # A walk without hashed ids once recorded neither.
    now = {"hashed": [], "switch": None, **recorded}
    return now | ({"spec": to_dict(from_dict(Spec, now["spec"]))} if "spec" in now else {})
