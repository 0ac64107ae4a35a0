"""Calibrates a run: curves from predictions to probabilities, fitted on the validation part and judged on later rows.

python stem_torchrec/calibrate.py --run RUN --method platt
"""

from stem_torchrec.runtime.command import run_main


def main() -> None:
    """The command `stem-calibrate`."""

    def run() -> None:
        # Imported late, as that takes seconds, in which a signal should end the command as well.
        from stem_torchrec.calibration.calibrate_run import CalibrateConfig, calibrate_run
        from stem_torchrec.config import parse_arguments
        from stem_torchrec.runtime.process import join_process_group

        config = parse_arguments(CalibrateConfig(), description=__doc__ or "")
        with join_process_group() as process:
            calibrate_run(config, process)

    run_main(run)


if __name__ == "__main__":
    main()
