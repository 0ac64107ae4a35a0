"""Trains a model on a log and keeps the best weights.

python stem_torchrec/train.py --recipe synthetic
torchx run dist.ddp -j 2x8 stem_torchrec/train.py --recipe kuairand_pure --data.path DIR
"""

from stem_torchrec.runtime.command import run_main
from stem_torchrec.runtime.signals import ending_on_signals


def main() -> None:
    """The command `stem-train`."""

    def run() -> None:
        # Imported late, as that takes seconds, in which a signal should end the command as well.
        from stem_torchrec.runtime.hang_detection import collective_timeout
        from stem_torchrec.runtime.process import join_process_group
        from stem_torchrec.training.configuration import config_from_command_line
        from stem_torchrec.training.trainer import train

        config = config_from_command_line()
        timeout = collective_timeout(config.train.timeout)
        with ending_on_signals() as ending, join_process_group(timeout=timeout) as process:
            train(config, process, ending=ending)

    run_main(run)


if __name__ == "__main__":
    main()
