"""A small log with a binary, a number and an ordinal label, which its features tell in part, and runs on it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from stem_torchrec.config import DataConfig, TrainConfig
from stem_torchrec.data.schema import Label, Schema, SparseFeature, save_schema
from stem_torchrec.models.stem import STEMOptions
from stem_torchrec.training.recipes import tiny

from logs import write_split

USERS, ITEMS, LEVELS = 30, 20, 4
LABELS = (
    Label("like"),
    Label("watch", column="watch_time", kind="number"),
    Label("stars", kind="ordinal", levels=LEVELS),
)
SCHEMA = Schema((SparseFeature("user", USERS), SparseFeature("item", ITEMS)), LABELS)
TASKS = ("like", "watch", "stars")


def mixed_table(rows: int, *, seed: int = 0, missing: float = 0.2, seconds: float = 300.0) -> pa.Table:
    """Rows whose labels follow one taste of user and item; watch times are about `seconds` with a deviation of 50."""
    random = np.random.default_rng(seed)
    user, item = random.integers(0, USERS, rows), random.integers(0, ITEMS, rows)
    taste = np.sin(user) + np.cos(2 * item) + random.normal(0, 0.3, rows)

    def column(values: np.ndarray, kind: pa.DataType) -> pa.Array:
        return pa.array(values, mask=random.random(rows) < missing).cast(kind)

    return pa.table(
        {
            "user": pa.array(user, pa.int32()),
            "item": pa.array(item, pa.int32()),
            "like": column((taste > 0.5).astype(np.int64), pa.int8()),
            "watch_time": column(seconds + 50 * taste, pa.float64()),
            "stars": column(np.clip(np.floor(taste + 2), 0, LEVELS - 1).astype(np.int64), pa.int16()),
        }
    )


def write_mixed_log(folder: Path, *, seconds: float = 300.0) -> None:
    """Writes `train/` of 800 rows, `valid/` of 300, and schema.json."""
    write_split(folder, mixed_table(800, seconds=seconds))
    write_split(folder, mixed_table(300, seed=1, seconds=seconds), split="valid")
    save_schema(SCHEMA, str(folder))


def small_stem() -> STEMOptions:
    return STEMOptions(
        embedding_dim=4,
        num_shared_experts=2,
        expert_hidden=(16,),
        gate_hidden=(8,),
        tower_hidden=(8,),
        embedding_std=0.1,
    )


def config_for(folder: Path, *, log: str = "log", run: str = "run", **train: Any) -> TrainConfig:
    """A run on the mixed log that learns in seconds."""
    config = tiny()
    return replace(
        config,
        output_dir=str(folder / run),
        data=DataConfig(path=str(folder / log), batch_size=64, num_workers=0),
        model=small_stem(),
        dense=replace(config.dense, learning_rate=0.01),
        sparse=replace(config.sparse, learning_rate=0.1),
        train=replace(config.train, **{"epochs": 4, "metric": "auc", **train}),
    )
