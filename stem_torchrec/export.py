"""Exports a run as a bundle, a folder that scores raw rows in one process.

python stem_torchrec/export.py --run RUN --out BUNDLE
"""

from stem_torchrec.runtime.command import run_main


def main() -> None:
    """The command `stem-export`."""

    def run() -> None:
        # Imported late, as that takes seconds, in which a signal should end the command as well.
        from stem_torchrec.config import parse_arguments
        from stem_torchrec.serving.export_run import ExportConfig, export_run

        export_run(parse_arguments(ExportConfig(), description=__doc__ or ""))

    run_main(run)


if __name__ == "__main__":
    main()
