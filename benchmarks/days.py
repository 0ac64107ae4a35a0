"""Trains day after day, each tested before it is trained on: on from yesterday, and from scratch on everything so far.

python benchmarks/days.py --spec kuairand_pure --set raw=DIR --day date --days 20220425 20220426 20220427 \
    --recipe kuairand_pure --out runs/days
"""

import sys
from pathlib import Path

# launch/run.py puts the repository root on the path in place of this folder.
sys.path.insert(0, str(Path(__file__).resolve().parent))

from stem_torchrec.runtime.command import run_main


def main() -> None:
    """Walks the days that the command line lists."""
    # Imported late, as that takes seconds, in which a signal should end the command as well.
    from prequential.options import read_command_line
    from prequential.walk import walk

    walk(*read_command_line(description=__doc__))


if __name__ == "__main__":
    run_main(main)
