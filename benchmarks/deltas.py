"""Measures what deltas cost a run and how large they are: the same steps with and without them, in turns.

python benchmarks/deltas.py --out runs/deltas
"""

import sys
from pathlib import Path

# launch/run.py puts the repository root on the path in place of this folder.
sys.path.insert(0, str(Path(__file__).resolve().parent))

from stem_torchrec.runtime.command import run_main


def main() -> None:
    """Measures what the command line asks for."""
    # Imported late, as that takes seconds, in which a signal should end the command as well.
    from shipping.run import measure_deltas, read_command_line

    measure_deltas(*read_command_line(description=__doc__))


if __name__ == "__main__":
    run_main(main)
