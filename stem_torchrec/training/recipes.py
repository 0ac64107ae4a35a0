"""Recipes: a run is a function that returns its configuration, and `--recipe NAME` starts from it."""

from collections.abc import Callable, Mapping

from stem_torchrec.config import (
    DataConfig,
    LoopConfig,
    ScheduleConfig,
    ShardingConfig,
    SparseOptimizerConfig,
    SyntheticConfig,
    TrainConfig,
)
from stem_torchrec.models.stem import STEMOptions


def synthetic() -> TrainConfig:
    """Two tasks on the default synthetic log, a small STEM-Net; about a minute on two CPU cores."""
    return TrainConfig(
        recipe="synthetic",
        data=DataConfig(batch_size=1024),
        model=STEMOptions(num_shared_experts=2, expert_hidden=(64, 32), gate_hidden=(32,), tower_hidden=(32,)),
        sparse=SparseOptimizerConfig(learning_rate=0.1),
        schedule=ScheduleConfig(decay="linear"),
        train=LoopConfig(epochs=2, log_every=100),
    )


def tiny() -> TrainConfig:
    """Two tasks on a few thousand synthetic rows; trains on a laptop CPU in seconds, to see that all works."""
    return TrainConfig(
        recipe="tiny",
        data=DataConfig(
            batch_size=256,
            synthetic=SyntheticConfig(train_rows=8192, valid_rows=2048, test_rows=2048),
        ),
        model=STEMOptions(
            embedding_dim=8, num_shared_experts=1, expert_hidden=(16,), gate_hidden=(8,), tower_hidden=(8,)
        ),
    )


def kuairand_pure() -> TrainConfig:
    """long_view and is_like on KuaiRand-Pure, as datasets/kuairand_pure.yaml has it; chosen on its validation days.

    One pass, as the tables of users and videos overfit in a second one, in global batches of 1024: on 8 ranks give
    --data.batch-size 128 for the same learning.
    """
    return TrainConfig(
        recipe="kuairand_pure",
        data=DataConfig(path="", batch_size=1024, labels=("long_view", "is_like")),
        model=STEMOptions(),
        sparse=SparseOptimizerConfig(learning_rate=0.02),
        train=LoopConfig(epochs=1, precision="bf16"),
    )


def tiktok() -> TrainConfig:
    """finish and like on a TikTok short video log in our Parquet format, with the published sizes of STEM-Net."""
    return TrainConfig(
        recipe="tiktok",
        data=DataConfig(path="", labels=("finish", "like")),
        model=STEMOptions(),
        train=LoopConfig(epochs=1, precision="bf16"),
    )


def published() -> TrainConfig:
    """How the public code of STEM trains it on TikTok, for any log: Adam with L2 on whole tables, in every step.

    Its configuration, at github.com/LiangcaiSu/STEM: Adam with 1e-3 on all weights, `embedding_regularizer` 1e-6, which
    is half the squared norm of all rows in the loss, batches of 4096, an evaluation after each of up to 20 epochs, and
    the end at the first without a better mean AUC (patience 1). The rates fall to a tenth at an evaluation without a
    better AUC, which takes a patience above 1 to be followed by a step. docs/compare_and_tune.md tells what differs.
    """
    return TrainConfig(
        recipe="published",
        data=DataConfig(path=""),
        model=STEMOptions(),
        sparse=SparseOptimizerConfig(name="adam", learning_rate=1e-3, weight_decay=1e-6, decay_whole_tables=True),
        schedule=ScheduleConfig(plateau_factor=0.1),
        sharding=ShardingConfig(kernel="dense"),
        train=LoopConfig(epochs=20, patience=1),
    )


def log() -> TrainConfig:
    """A log of one's own; what `--data.path` takes without `--recipe`.

    Experts are fewer and smaller than the published ones, and tables begin anew with each epoch. The batch size follows
    from the number of rows and ranks (steps_by_rows.py). Training ends after two epochs without a gain. docs/own_log.md
    has all values, and how they were chosen.
    """
    return TrainConfig(
        recipe="log",
        data=DataConfig(path="", batch_size=0),
        model=STEMOptions(num_shared_experts=2, expert_hidden=(256, 128), gate_hidden=(64,), tower_hidden=(64,)),
        sparse=SparseOptimizerConfig(learning_rate=0.02, eps=0.0),
        train=LoopConfig(epochs=20, patience=2, fresh_tables=True),
    )


RECIPES: Mapping[str, Callable[[], TrainConfig]] = {
    recipe.__name__: recipe for recipe in (log, synthetic, tiny, kuairand_pure, tiktok, published)
}
