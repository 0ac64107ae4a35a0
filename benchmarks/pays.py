"""Compares models on several sources of logs, each with the same seeds, and corrects for all comparisons together.

python benchmarks/pays.py --sources shop=data/shop,data/shop_1 adult=data/adult --models stem,stem_norm --out runs/pays
"""

import sys
from pathlib import Path

# launch/run.py puts the repository root on the path in place of this folder.
sys.path.insert(0, str(Path(__file__).resolve().parent))

from stem_torchrec.runtime.command import run_main


def main() -> None:
    """Trains and reports what the command line asks for."""
    # Imported late, as that takes seconds, in which a signal should end the command as well.
    from gains.options import read_command_line
    from gains.run import compare_sources

    compare_sources(*read_command_line(description=__doc__))


if __name__ == "__main__":
    run_main(main)
