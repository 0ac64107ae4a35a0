"""Trains several models on one log with several seeds, and writes a report that compares them.

python stem_torchrec/compare.py --data.path DIR --models stem,single_task,mmoe --seeds 0,1,2 --out DIR
"""

from stem_torchrec.runtime.command import run_main
from stem_torchrec.runtime.signals import ending_on_signals


def main() -> None:
    """The command `stem-compare`."""

    def run() -> None:
        # Imported late, as that takes seconds, in which a signal should end the command as well.
        from stem_torchrec.comparison.log_by_log import train_logs, write_reports
        from stem_torchrec.comparison.options import read_command_line
        from stem_torchrec.runtime.hang_detection import collective_timeout
        from stem_torchrec.runtime.process import join_process_group

        request = read_command_line()
        timeout = collective_timeout(request.train.train.timeout)
        with ending_on_signals() as ending, join_process_group(timeout=timeout) as process:
            comparisons = train_logs(request, process, ending=ending)
        if process.is_first:
            write_reports(request, comparisons)

    run_main(run)


if __name__ == "__main__":
    main()
