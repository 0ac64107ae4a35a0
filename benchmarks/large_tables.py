"""Measures how fast a bundle of 20 GB of tables starts, and how processes share its memory.

python benchmarks/large_tables.py --bundle BUNDLE --out runs/large_tables
"""

import sys
from pathlib import Path

# launch/run.py puts the repository root on the path in place of this folder.
sys.path.insert(0, str(Path(__file__).resolve().parent))

from stem_torchrec.runtime.command import run_main


def main() -> None:
    """Measures what the command line asks for."""
    # Imported late, as that takes seconds, in which a signal should end the command as well.
    from studies.table_sharing import measure, read_command_line

    measure(read_command_line(description=__doc__))


if __name__ == "__main__":
    run_main(main)
