"""Kills a run again and again, restarts it each time, and compares it with the same run left alone.

python benchmarks/faults.py --out runs/faults --kills 100
"""

import sys
from pathlib import Path

# launch/run.py puts the repository root on the path in place of this folder.
sys.path.insert(0, str(Path(__file__).resolve().parent))

from stem_torchrec.runtime.command import run_main


def main() -> None:
    """Runs the soak that the command line describes."""
    # Imported late, as that takes seconds, in which a signal should end the command as well.
    from recovery.soak import read_command_line, soak

    soak(*read_command_line(description=__doc__))


if __name__ == "__main__":
    run_main(main)
