"""Scores the rows of a file with a bundle: Parquet, CSV or JSON lines in, predictions out.

python stem_torchrec/score.py --bundle BUNDLE --input FILE --output FILE
"""

import sys
from contextlib import redirect_stdout

from stem_torchrec.runtime.command import run_main


def main() -> None:
    """The command `stem-score`."""

    def run() -> None:
        # Imported late, as that takes seconds, in which a signal should end the command as well.
        from stem_torchrec.config import parse_arguments
        from stem_torchrec.serving.score_file import ScoreConfig, score_file

        # A note about an option that is given twice must not be among the rows.
        with redirect_stdout(sys.stderr if {"-", "--output=-"} & set(sys.argv) else sys.stdout):
            config = parse_arguments(ScoreConfig(), description=__doc__ or "")
        score_file(config)

    run_main(run)


if __name__ == "__main__":
    main()
