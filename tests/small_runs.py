"""Small runs of train.py, to be killed, stopped and started again."""

from collections.abc import Sequence
from pathlib import Path

from fault_runs import TrainRun

LINE = [
    *("--recipe", "tiny", "--train.epochs", "2", "--train.eval-every", "20", "--train.log-every", "5"),
    *("--data.batch-size", "128", "--data.synthetic.train-rows", "8300", "--checkpoint.steps", "7"),
    *("--model.dropout", "0.1", "--model.embedding-dim", "4", "--data.eval-batch-size", "16"),
]


def start(folder: Path, *options: str, ranks: int = 1, launcher: Sequence[str] | None = None) -> TrainRun:
    """A run of LINE and further options."""
    return TrainRun(folder, [*LINE, *options], ranks=ranks, launcher=launcher)
