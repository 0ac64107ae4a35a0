"""A learnable multi-task log of any size that knows its own best reachable AUC.

Each row is one exposure of an item i to a user u. Its label in task t is 1 with probability sigmoid(logit_t),

    logit_t = bias_t + signal * z_t,    z_t ~ <p_u^t, q_i^t> + a_u^t + b_i^t + tag effects^t + dense effects

and z_t has mean 0 and deviation 1. How far what carries ^t differs between tasks is the dial `conflict`;
all of it belongs to ids, so a model can hold it nowhere but in the embeddings of those ids.
"""

import math
import os
import shutil
from dataclasses import dataclass, fields

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock
from numpy.typing import NDArray
from tqdm import tqdm

from stem_torchrec.data.schema import SCHEMA_FILE, LabelCounts, Schema, SparseFeature, Split, save_schema
from stem_torchrec.errors import UserError

Floats = NDArray[np.float32]
Ints = NDArray[np.int32]

GROUP_COLUMN = "group_user_id"
CHUNK_ROWS = 65_536
"""Rows per row group. Each chunk has a random generator of its own, so memory does not grow with the rows."""
CHUNKS_PER_FILE = 64
VARIANCE = {"affinity": 0.7, "tags": 0.2, "dense": 0.1}
"""Shares of the variance of z_t."""
MEAN = np.float32(1)
# The first number of a random generator's seed, before the chunk: a split's place in this list.
STREAMS = ("world", "calibration", "train", "valid", "test")


@dataclass(frozen=True)
class SyntheticConfig:
    """What to draw; the default is learned on a laptop CPU in seconds."""

    train_rows: int = 300_000
    """Rows of `train/`."""
    valid_rows: int = 50_000
    """Rows of `valid/`."""
    test_rows: int = 50_000
    """Rows of `test/`."""
    users: int = 1000
    """Ids of `user_id`."""
    items: int = 1000
    """Ids of `item_id`."""
    user_segments: int = 20
    """Ids of `user_segment`, a function of the user that explains half of the user's preferences."""
    item_categories: int = 20
    """Ids of `item_category`, a function of the item that explains half of the item's preferences."""
    tags: int = 100
    """Ids of `tags`, a column of lists drawn for each row."""
    max_tags: int = 5
    """A row has 0 to this many tags, all equally often."""
    dense_features: int = 2
    """Columns `dense_0`, `dense_1`, ..., standard normal; their effect is the same in every task."""
    latent_dim: int = 2
    """Length of the preference vectors p_u^t and q_i^t."""
    tasks: tuple[str, ...] = ("finish", "like")
    """Names of the label columns."""
    positive_rate: tuple[float, ...] = (0.4, 0.05)
    """Share of ones among the labels, one number per task."""
    missing: tuple[float, ...] = (0.0, 0.0)
    """Share of rows without the label, one number per task."""
    conflict: float = 0.5
    """Effects are sqrt(1 - conflict) * common + sqrt(conflict) * own: 0 the same in all tasks, 1 unrelated."""
    signal: float = 1.5
    """Standard deviation of the logits; the larger, the higher the best reachable AUC."""
    zipf_exponent: float = 0.5
    """The id of rank r is drawn with a weight of about r ** -zipf_exponent; 0 is uniform."""
    seed: int = 0
    """Same settings, same log."""


def generate(config: SyntheticConfig, folder: str, overwrite: bool = False) -> Schema:
    """Writes `folder/{train,valid,test}/part-*.parquet` and `folder/schema.json`, all or nothing.

    Args:
        config: sizes and dials.
        folder: a local folder that is absent or empty.
        overwrite: replace a log that is there already.

    Raises:
        UserError: a value of `config` makes no sense, or `folder` holds something.

    Example::

        schema = generate(SyntheticConfig(conflict=0.8), "data/synthetic")
        schema.facts["best_auc/finish"]  # a perfect model's AUC on valid/; "best_auc_test/finish" on test/
    """
    _validate(config)
    folder = os.path.abspath(folder)
    if os.path.exists(folder) and not os.path.isdir(folder):
        raise UserError(f"{folder} is a file; name a folder.")
    if os.path.isdir(folder) and os.listdir(folder):
        if not overwrite:
            raise UserError(f"{folder} is not empty; name another folder or pass --overwrite.")
        if not os.path.isfile(f"{folder}/{SCHEMA_FILE}"):
            raise UserError(f"{folder} holds no {SCHEMA_FILE}, so it is no log to overwrite; name another.")
    unfinished = f"{folder}.unfinished-{os.getpid()}"
    try:
        schema = _write(config, unfinished)
        shutil.rmtree(folder, ignore_errors=True)
        os.rename(unfinished, folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return schema


def ensure(config: SyntheticConfig, folder: str) -> None:
    """Generates the log unless `folder` holds one; of several processes one does it and the others wait."""
    folder = os.path.abspath(folder)
    os.makedirs(os.path.dirname(folder), exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not os.path.isfile(f"{folder}/{SCHEMA_FILE}"):
            generate(config, folder)


class World:
    """Every id's effects in every task. T is the number of tasks, N of rows, K the latent dimension."""

    def __init__(self, config: SyntheticConfig) -> None:
        self.config = config
        self.vocabularies = {
            "user_id": config.users,
            "item_id": config.items,
            "user_segment": config.user_segments,
            "item_category": config.item_categories,
            "tags": config.tags,
        }
        rng = _generator(config.seed, "world")

        def effects(ids: int, width: int) -> Floats:  # (T, ids, width)
            common = rng.standard_normal((ids, width), dtype=np.float32)
            own = rng.standard_normal((len(config.tasks), ids, width), dtype=np.float32)
            # An id that means something else in each task is what one embedding for all tasks cannot hold.
            return common * np.float32((1 - config.conflict) ** 0.5) + own * np.float32(config.conflict**0.5)

        def preferences(cluster: Ints, clusters: int) -> Floats:  # (T, ids, K)
            width = config.latent_dim
            return MEAN + (effects(clusters, width)[:, cluster] + effects(len(cluster), width)) * np.float32(0.5**0.5)

        self.segment = rng.integers(config.user_segments, size=config.users, dtype=np.int32)
        self.category = rng.integers(config.item_categories, size=config.items, dtype=np.int32)
        self.user = preferences(self.segment, config.user_segments)
        self.item = preferences(self.category, config.item_categories)
        self.tag = effects(config.tags, 1)[:, :, 0]

        sample = self._effects(self._features(_generator(config.seed, "calibration"), CHUNK_ROWS))
        self.mean, self.deviation = sample.mean(axis=1, keepdims=True), sample.std(axis=1, keepdims=True)
        scaled = config.signal * (sample - self.mean) / self.deviation
        rates = zip(scaled, config.positive_rate, strict=True)
        self.bias = np.array([[_bias_for(logits, rate)] for logits, rate in rates], dtype=np.float32)

    def draw(self, split: str, chunk: int, rows: int) -> tuple[pa.Table, Floats, NDArray[np.int8]]:
        """Draws one chunk: the table, the true logits (T, N) and the labels (T, N), -1 where missing."""
        config, rng = self.config, _generator(self.config.seed, split, chunk)
        features = self._features(rng, rows)
        logits = self.bias + np.float32(config.signal) * (self._effects(features) - self.mean) / self.deviation
        labels = (rng.random(logits.shape, dtype=np.float32) < _sigmoid(logits)).astype(np.int8)
        unasked = rng.random(logits.shape, dtype=np.float32) < np.array(config.missing, dtype=np.float32)[:, None]
        labels[unasked] = -1

        columns = {
            "user_id": features["user"],
            "item_id": features["item"],
            "user_segment": self.segment[features["user"]],
            "item_category": self.category[features["item"]],
            "tags": pa.ListArray.from_arrays(features["tag_offsets"], features["tags"]),
            **{f"dense_{i}": values for i, values in enumerate(features["dense"])},
            **{
                task: pa.array(label, mask=null)
                for task, label, null in zip(config.tasks, labels, unasked, strict=True)
            },
            GROUP_COLUMN: features["user"].astype(np.int64),
        }
        return pa.table(columns), logits, labels

    def _features(self, rng: np.random.Generator, rows: int) -> dict[str, NDArray]:
        config = self.config
        lengths = rng.integers(config.max_tags, size=rows, endpoint=True)
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        return {
            "user": _zipf(rng, config.users, config.zipf_exponent, rows),
            "item": _zipf(rng, config.items, config.zipf_exponent, rows),
            "tags": _zipf(rng, config.tags, config.zipf_exponent, int(offsets[-1])),
            "tag_offsets": offsets,
            "dense": rng.standard_normal((config.dense_features, rows), dtype=np.float32),
        }

    def _effects(self, features: dict[str, NDArray]) -> Floats:  # (T, N), z_t before it is scaled
        config, offsets = self.config, features["tag_offsets"]
        dense = features["dense"].sum(axis=0) * (VARIANCE["dense"] / max(config.dense_features, 1)) ** 0.5
        z = np.empty((len(config.tasks), len(features["user"])), dtype=np.float32)
        for t in range(len(config.tasks)):
            user, item = self.user[t][features["user"]], self.item[t][features["item"]]
            running = np.concatenate([[0.0], np.cumsum(self.tag[t][features["tags"]], dtype=np.float64)])
            tags = running[offsets[1:]] - running[offsets[:-1]]
            affinity = np.einsum("nk,nk->n", user, item)
            z[t] = (
                affinity * (VARIANCE["affinity"] / config.latent_dim / (1 + 2 * MEAN**2)) ** 0.5
                + tags * (VARIANCE["tags"] * 2 / max(config.max_tags, 1)) ** 0.5
                + dense
            )
        return z


def _write(config: SyntheticConfig, folder: str) -> Schema:
    world = World(config)
    splits, facts = {}, {}
    sizes = {"train": config.train_rows, "valid": config.valid_rows, "test": config.test_rows}
    with tqdm(total=sum(sizes.values()), unit=" rows", unit_scale=True, disable=None) as progress:
        for split, rows in sizes.items():
            splits[split], best_auc = _write_split(world, split, rows=rows, folder=folder, progress=progress)
            prefix = "best_auc" if split == "valid" else f"best_auc_{split}"
            facts.update({f"{prefix}/{task}": auc for task, auc in best_auc.items()})
    settings = {field.name: getattr(config, field.name) for field in fields(SyntheticConfig)}
    schema = Schema(
        sparse_features=tuple(SparseFeature(name, size) for name, size in world.vocabularies.items()),
        labels=config.tasks,
        splits=splits,
        dense_features=tuple(f"dense_{i}" for i in range(config.dense_features)),
        group=GROUP_COLUMN,
        description=f"Synthetic, drawn row by row with {settings}.",
        facts=facts,
    )
    save_schema(schema, folder)
    return schema


def _write_split(
    world: World, split: str, *, rows: int, folder: str, progress: "tqdm[None]"
) -> tuple[Split, dict[str, float]]:
    """Writes one split; returns its counts and the best AUC per task, which train/ is spared."""
    tasks = world.config.tasks
    positives, nulls = np.zeros((2, len(tasks)), dtype=np.int64)
    scored = []
    os.makedirs(f"{folder}/{split}")
    chunks = math.ceil(rows / CHUNK_ROWS)
    for first in range(0, chunks, CHUNKS_PER_FILE):
        writer = None
        for chunk in range(first, min(first + CHUNKS_PER_FILE, chunks)):
            table, logits, labels = world.draw(split, chunk, rows=min(CHUNK_ROWS, rows - chunk * CHUNK_ROWS))
            writer = writer or pq.ParquetWriter(
                f"{folder}/{split}/part-{first // CHUNKS_PER_FILE:05d}.parquet", table.schema
            )
            writer.write_table(table)
            positives += (labels == 1).sum(axis=1)
            nulls += (labels == -1).sum(axis=1)
            if split != "train":
                scored.append((logits, labels))  # An exact AUC needs all rows at once: 5 bytes each and task.
            progress.update(len(table))
        writer.close()
    best_auc = {}
    if scored:
        all_logits, all_labels = (np.hstack(parts) for parts in zip(*scored, strict=True))
        for task, logits, labels in zip(tasks, all_logits, all_labels, strict=True):
            if {0, 1} <= set(np.unique(labels)):
                best_auc[task] = _auc(logits[labels >= 0], labels[labels >= 0])
    counts = zip(positives.tolist(), nulls.tolist(), strict=True)
    return Split(rows, {task: LabelCounts(*count) for task, count in zip(tasks, counts, strict=True)}), best_auc


def _generator(seed: int, stream: str, chunk: int = 0) -> np.random.Generator:
    return np.random.default_rng([seed, STREAMS.index(stream), chunk])


def _zipf(rng: np.random.Generator, ids: int, exponent: float, size: int) -> Ints:
    """Draws ids by inverting the integral of r ** -exponent over [1, ids + 1): no table, whatever `ids`."""
    uniform, rest = rng.random(size), 1 - exponent
    if abs(rest) < 1e-6:
        rank = np.exp(uniform * math.log(ids + 1))
    else:
        rank = (1 + uniform * ((ids + 1) ** rest - 1)) ** (1 / rest)
    rank = np.minimum(rank.astype(np.int64) - 1, ids - 1)
    # Popular ids next to each other would all fall into one shard of a table split by rows.
    return (rank * _stride(ids) % ids).astype(np.int32)


def _stride(ids: int) -> int:
    """Near the golden ratio of `ids` and without a common divisor: multiples of it visit every id once."""
    return next(n for n in range(max(1, round(ids * 0.618)), ids + 2) if math.gcd(n, ids) == 1)


def _sigmoid(logits: Floats) -> Floats:
    return 1 / (1 + np.exp(-logits))


def _bias_for(logits: Floats, rate: float) -> float:
    """Bisects for the constant that makes the mean probability `rate`."""
    low, high = -50.0, 50.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if _sigmoid(logits + np.float32(middle)).mean() < rate else (low, middle)
    return middle


def _auc(scores: Floats, labels: NDArray[np.int8]) -> float:
    """Exact AUC: the share of (positive, negative) pairs in the right order, ties counting one half."""
    _, place = np.unique(scores, return_inverse=True)
    positives, negatives = np.bincount(place, labels), np.bincount(place, 1 - labels)
    return float(positives @ (np.cumsum(negatives) - negatives / 2) / (positives.sum() * negatives.sum()))


def _validate(config: SyntheticConfig) -> None:
    """Raises UserError for the first value that makes no sense."""
    ones = (
        "train_rows",
        "valid_rows",
        "test_rows",
        "users",
        "items",
        "user_segments",
        "item_categories",
        "tags",
    )
    for name in (*ones, "latent_dim"):
        if getattr(config, name) < 1:
            raise UserError(f"{name} is {getattr(config, name)}, but must be at least 1.")
    for name in ("max_tags", "dense_features", "signal", "zipf_exponent", "seed"):
        if getattr(config, name) < 0:
            raise UserError(f"{name} is {getattr(config, name)}, but must be at least 0.")
    if not 0 <= config.conflict <= 1:
        raise UserError(f"conflict is {config.conflict}, but must be between 0 and 1.")
    if len(set(config.tasks)) != len(config.tasks) or not config.tasks:
        raise UserError(f"tasks is {config.tasks}, but must name at least one task and none twice.")
    for name, low, high in (("positive_rate", 0, 1), ("missing", -1e-9, 1)):
        values = getattr(config, name)
        if len(values) != len(config.tasks):
            raise UserError(f"{name} has {len(values)} numbers, but there are {len(config.tasks)} tasks.")
        if not all(low < value < high for value in values):
            raise UserError(f"{name} is {values}, but each must be a share below 1.")
