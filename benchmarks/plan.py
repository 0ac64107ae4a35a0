"""Plans sharding on paper, without a GPU: which strategies fit a cluster, their memory and estimated step by rank.

python benchmarks/plan.py --nodes 2 --ranks-per-node 8 --tables benchmarks/tables/short_video.yaml --tasks 8 --out plan
python benchmarks/plan.py --nodes 2 4 8 --optimizers rowwise_adagrad adagrad --price 2.5 --calibrate sweep --out plan
"""

import logging
import sys
from pathlib import Path

# launch/run.py puts the repository root on the path in place of this folder.
sys.path.insert(0, str(Path(__file__).resolve().parent))

from stem_torchrec.runtime.command import run_main


def main() -> None:
    """Plans what the command line describes."""
    # Imported late, as that takes seconds, in which a signal should end the command as well.
    from planning.config import read_options
    from planning.run import run_plan

    # TorchRec logs a warning for every proposal that does not fit.
    logging.disable(logging.WARNING)
    run_plan(*read_options())


if __name__ == "__main__":
    run_main(main)
