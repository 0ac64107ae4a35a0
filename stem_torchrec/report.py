"""Shows trainings on one HTML page: losses, metrics, calibration, gates, speed, plan, faults and lineage.

python stem_torchrec/report.py runs/a runs/b --out report.html
"""

from stem_torchrec.runtime.command import run_main


def main() -> None:
    """The command `stem-report`."""

    def run() -> None:
        # Imported late, as that takes seconds, in which a signal should end the command as well.
        from stem_torchrec.config import parse_arguments
        from stem_torchrec.run_report.write_report import ReportOptions, write_report

        print(write_report(parse_arguments(ReportOptions(), description=__doc__ or "")))

    run_main(run)


if __name__ == "__main__":
    main()
