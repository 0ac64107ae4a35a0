"""Learning rates that fall at evaluations without a better metric."""

from dataclasses import replace
from itertools import accumulate
from pathlib import Path

import pytest

from stem_torchrec.config import LoopConfig, ScheduleConfig, SyntheticConfig, TrainConfig
from stem_torchrec.data.synthetic import generate
from stem_torchrec.training.callbacks import Callback
from stem_torchrec.training.loop import StepOutput, TrainLoop
from stem_torchrec.training.recipes import published, tiny
from stem_torchrec.training.trainer import Trainer, train
from stem_torchrec.training.watched_metric import Metrics

from distributed import run_ranks
from recovery.train_runs import differences
from runs import this_process

EVERY = 2
"""Steps between two evaluations; an epoch has 4 on two ranks."""
RATES = [1.0, 0.1]
"""Of the tables and of the dense part, at first: so large that some evaluations are no better than one before."""


def config_in(run: Path) -> TrainConfig:
    config = tiny()
    return replace(
        config,
        data=replace(config.data, path=str(run.parent / "log"), batch_size=64),
        sparse=replace(config.sparse, learning_rate=RATES[0]),
        dense=replace(config.dense, learning_rate=RATES[1]),
        schedule=ScheduleConfig(plateau_factor=0.5),
        train=LoopConfig(epochs=3, eval_every=EVERY, log_every=100),
        output_dir=str(run),
    )


class Seen(Callback):
    """Writes down the mean AUC of each evaluation and the rates of each step but the first."""

    def __init__(self) -> None:
        self.aucs: list[float] = []
        self.rates: list[list[float]] = []

    def after_step(self, loop: TrainLoop, output: StepOutput) -> bool:
        rates = {group["lr"] for group in loop._pipeline._optimizer.param_groups}
        self.rates.append(sorted(rates, reverse=True))
        return False

    def after_evaluation(self, loop: TrainLoop, metrics: Metrics) -> None:
        self.aucs.append(sum(task.auc for task in metrics.values()) / len(metrics))


def whole(run: Path) -> tuple[list[float], list[list[float]]]:
    seen = Seen()
    Trainer(config_in(run), this_process(), callbacks=[seen]).run()
    return seen.aucs, seen.rates


def in_parts(run: Path) -> int:
    """A run that is stopped before its last steps and goes on; returns the plateaus until then."""
    trainer = Trainer(config_in(run), this_process())
    while trainer.state.step < 9:
        trainer.train_step()
        if trainer.state.evaluate:
            trainer.evaluate()
    trainer.save()
    trainer.close()
    plateaus = trainer._best.stopping.plateaus
    train(config_in(run), this_process())
    return plateaus


def both(folder: Path) -> tuple[list[float], list[list[float]], int]:
    return *whole(folder / "whole"), in_parts(folder / "parts")


def test_each_evaluation_without_a_better_auc_halves_all_rates_and_a_resumed_run_goes_on_with_them(
    tmp_path: Path,
) -> None:
    generate(SyntheticConfig(train_rows=512, valid_rows=64, test_rows=16), str(tmp_path / "log"))
    for aucs, rates, until in run_ranks(2, both, tmp_path):
        waits = [auc <= max(aucs[:number]) for number, auc in enumerate(aucs) if number]
        counts = [0, *accumulate(map(int, waits))]
        for step, of_step in enumerate(rates):
            plateaus = counts[step // EVERY - 1] if step >= EVERY else 0
            # The fused tables' rates pass through float32.
            assert of_step == pytest.approx([rate / 2**plateaus for rate in RATES], rel=1e-6)
        assert 0 < until < counts[-1]
    assert differences(tmp_path / "parts", tmp_path / "whole") == []


def test_rates_stay_by_default_and_the_published_recipe_takes_a_tenth() -> None:
    assert (ScheduleConfig().plateau_factor, published().schedule.plateau_factor) == (1, pytest.approx(0.1))
