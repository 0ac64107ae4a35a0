"""What stem-compare does: trains on its log, or on each of several, and reports on all that can be compared."""

from collections.abc import Sequence
from threading import Event

from stem_torchrec.comparison.options import Request
from stem_torchrec.comparison.scored_rows import Comparison, check_base
from stem_torchrec.comparison.several_logs import requests_by_log, together
from stem_torchrec.comparison.train_all import train_all
from stem_torchrec.comparison.write_report import write_report, write_report_of_logs
from stem_torchrec.runtime.process import Process


def train_logs(request: Request, process: Process, *, ending: Event | None = None) -> list[Comparison]:
    """Trains and tests what is not done yet, log by log; all ranks of the process group call it.

    A base that is left out on one of several logs does not end the others; see `write_reports`.

    Args:
        request: what `read_command_line` returns.
        process: this rank.
        ending: see `train_all`.

    Raises UserError as `requests_by_log` and `train_all` do.
    """
    needs_base = not request.config.logs
    return [train_all(each, process, ending=ending, needs_base=needs_base) for each in requests_by_log(request)]


def write_reports(request: Request, comparisons: Sequence[Comparison]) -> None:
    """Writes the report of a comparison, or with `--logs` that of each log and one on the test rows of all.

    One process calls it, outside of any process group.

    Args:
        request: what `read_command_line` returns.
        comparisons: what was trained on each log.

    Raises UserError where the base is left out on some log, after the reports of the others are written, and as
    `write_report` does.
    """
    if not request.config.logs:
        write_report(*comparisons)
        return
    of_all, base = together(request, comparisons), request.config.base
    if base in of_all.left_out:
        for each in comparisons:
            if base not in each.left_out:
                write_report(each, reports=len(comparisons) + 1)
        check_base(base, of_all.left_out)
    write_report_of_logs(of_all, comparisons)
