"""Measures sharding types, layouts and input distributions on your log or a list of tables, and recommends one.

torchx run dist.ddp -j 1x2 benchmarks/sharding.py --recipe synthetic --out sweep
torchrun --nproc-per-node 2 benchmarks/sharding.py --tables benchmarks/tables/small.yaml --tasks 2 8 --out sweep
"""

import sys
from pathlib import Path

# launch/run.py puts the repository root on the path in place of this folder.
sys.path.insert(0, str(Path(__file__).resolve().parent))

from stem_torchrec.runtime.command import run_main


def main() -> None:
    """Sweeps on the ranks of the launcher."""
    # Imported late, as that takes seconds, in which a signal should end the command as well.
    from stem_torchrec.runtime.process import from_first_rank, join_process_group

    from sweep.config import plan_sweep, read_command_line
    from sweep.ranks import no_gpu
    from sweep.run import run_sweep

    config, train = read_command_line()
    # Rank 0 waits for a whole case, and the other ranks wait while it writes the report.
    with no_gpu() as environment, join_process_group(timeout=2 * config.timeout + 600) as process:
        sweep = from_first_rank(lambda: plan_sweep(config, train))
        run_sweep(config, sweep, process, environment)


if __name__ == "__main__":
    run_main(main)
