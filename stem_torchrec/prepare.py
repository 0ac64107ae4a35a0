"""Prepares a log for training from raw files, by a spec of what its columns mean, or one that is guessed.

python stem_torchrec/prepare.py kuairand_pure --set raw=KuaiRand-Pure/data --out data/kuairand_pure
python stem_torchrec/prepare.py my_log.csv --label income="income = '>50K'" --drop marital-status --out data/my_log
"""

from stem_torchrec.runtime.command import run_main


def main() -> None:
    """The command `stem-prepare`."""

    def run() -> None:
        # Imported late, as that takes seconds, in which a signal should end the command as well.
        from stem_torchrec.config import parse_arguments
        from stem_torchrec.preparation.options import PrepareOptions
        from stem_torchrec.preparation.prepare_log import prepare_log

        print(prepare_log(parse_arguments(PrepareOptions(), description=__doc__ or "")))

    run_main(run)


if __name__ == "__main__":
    main()
