"""Converts a run to the other layout of its tables: a new run folder whose predictions are the same bits.

python stem_torchrec/convert.py --run RUN --layout packed --out NEWRUN
"""

from stem_torchrec.runtime.command import run_main


def main() -> None:
    """The command `stem-convert`."""

    def run() -> None:
        # Imported late, as that takes seconds, in which a signal should end the command as well.
        from stem_torchrec.config import parse_arguments
        from stem_torchrec.runtime.process import join_process_group
        from stem_torchrec.transfer.convert_layout import ConvertConfig, convert_run

        config = parse_arguments(ConvertConfig(), description=__doc__ or "")
        with join_process_group() as process:
            convert_run(config, process)

    run_main(run)


if __name__ == "__main__":
    main()
