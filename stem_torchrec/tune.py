"""Searches for the setting of a model that validates best; each rank runs trials of its own.

python stem_torchrec/tune.py --data.path DIR --trials 50 --out DIR
torchrun --nproc-per-node 2 stem_torchrec/tune.py --data.path DIR --trials 50 --out DIR
"""

from stem_torchrec.runtime.command import run_main


def main() -> None:
    """The command `stem-tune`."""

    def run() -> None:
        # Imported late, as that takes seconds, in which a signal should end the command as well.
        from stem_torchrec.tuning.study import read_command_line, tune

        tune(*read_command_line())

    run_main(run, every_rank_speaks=True)


if __name__ == "__main__":
    main()
