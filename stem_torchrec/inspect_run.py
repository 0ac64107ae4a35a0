"""Looks inside a trained run, or two side by side: gates, tables, changed ids, metrics with intervals.

python stem_torchrec/inspect_run.py runs/a --out inside.html
"""

from stem_torchrec.runtime.command import run_main


def main() -> None:
    """The command `stem-inspect`."""

    def run() -> None:
        # Imported late, as that takes seconds, in which a signal should end the command as well.
        from stem_torchrec.config import parse_arguments
        from stem_torchrec.inspection.inspect_runs import inspect_runs
        from stem_torchrec.inspection.options import InspectOptions
        from stem_torchrec.runtime.process import join_process_group

        options = parse_arguments(InspectOptions(), description=__doc__ or "")
        with join_process_group() as process:
            inspect_runs(options, process)

    run_main(run)


if __name__ == "__main__":
    main()
