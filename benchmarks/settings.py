"""Trains STEM and single-task models with several settings on several logs, and compares them by validation.

python benchmarks/settings.py --logs data/adult data/shop --settings log tables_0.05 --out runs/settings
"""

import sys
from pathlib import Path

# launch/run.py puts the repository root on the path in place of this folder.
sys.path.insert(0, str(Path(__file__).resolve().parent))

from stem_torchrec.runtime.command import run_main


def main() -> None:
    """Tries what the command line asks for."""
    # Imported late, as that takes seconds, in which a signal should end the command as well.
    from studies.settings_trial import read_command_line, try_settings

    try_settings(*read_command_line(description=__doc__))


if __name__ == "__main__":
    run_main(main)
