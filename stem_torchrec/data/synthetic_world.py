"""The users, items and tags of a synthetic log, what each of them does to every task, and rows drawn from them.

A row shows item i to user u. Its label in task t is 1 with probability sigmoid(logit_t), where

    logit_t = bias_t + scale_t * (<p_u^t, q_i^t> + effects^t of the tags + dense features)

How far what bears a ^t differs between tasks is the dial `conflict`. All of that belongs to ids, so a model can
hold it nowhere but in embeddings.
"""

import copy
import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stem_torchrec.config import SyntheticConfig

Floats = NDArray[np.float32]
Ints = NDArray[np.int32]

MISSING = -1
GROUP_COLUMN = "group_user_id"
# A random generator's seed is the log's seed, a place in this list, and the number of the chunk.
STREAMS = ("train", "valid", "test", "ids", "calibration", "days", "nights")
CALIBRATION_ROWS = 65_536
# Shares of the variance of a logit.
AFFINITY, TAGS, DENSE = 0.7, 0.2, 0.1
# Mean of p and q in every dimension. With 0 an id would do nothing by itself, only in pairs, and from small
# embeddings gradient descent would see nothing of it for many epochs.
MEAN_PREFERENCE = np.float32(1)


@dataclass(frozen=True)
class Population:
    """The users or the items: the cluster of each, and what clusters and ids do in T tasks and K dimensions."""

    cluster: Ints
    """Of each id, (ids,)."""
    of_cluster: Floats
    """(T, clusters, K)."""
    of_id: Floats
    """(T, ids, K)."""

    @cached_property
    def vectors(self) -> Floats:
        """p_u^t of the users or q_i^t of the items, (T, ids, K): half of the variance is that of the cluster."""
        return MEAN_PREFERENCE + np.float32(0.5**0.5) * (self.of_cluster[:, self.cluster] + self.of_id)


class World:
    """All ids and their effects in every task; T tasks, N rows, K dimensions.

    Args:
        config: sizes and dials, already checked.

    Example::

        table, logits, labels = World(SyntheticConfig()).draw("train", chunk=0, rows=1000)
        # user_id  item_id  user_segment  item_category  tags         dense_0  dense_1  finish  like  group_user_id
        # 354      427      3             5              [91, 89, ..]  0.48    -0.02    0       0     354
        # 83       25       8             4              [0, 52, 47]  -1.06    -0.40    0       0     83
    """

    def __init__(self, config: SyntheticConfig) -> None:
        self.config = config
        self.vocabularies = {
            "user_id": config.users,
            "item_id": config.items,
            "user_segment": config.user_segments,
            "item_category": config.item_categories,
            "tags": config.tags,
        }
        self.dense_names = tuple(f"dense_{i}" for i in range(config.dense_features))
        self.columns = pa.schema(
            [(name, pa.list_(pa.int32()) if name == "tags" else pa.int32()) for name in self.vocabularies]
            + [(name, pa.float32()) for name in self.dense_names]
            + [(name, pa.int8()) for name in config.tasks]
            + [(GROUP_COLUMN, pa.int64())]
        )
        rng = self.generator("ids")
        segment = rng.integers(config.user_segments, size=config.users, dtype=np.int32)
        category = rng.integers(config.item_categories, size=config.items, dtype=np.int32)
        self.users = self._population(rng, segment, config.user_segments)
        self.items = self._population(rng, category, config.item_categories)
        self.tags = self.effects(rng, config.tags, 1)[:, :, 0]

        sample = self._effects(self._features(self.generator("calibration"), CALIBRATION_ROWS))
        # With one user, one item and nothing else there is no deviation to scale by.
        self.scale = np.float32(config.signal) / np.maximum(sample.std(axis=1, keepdims=True), np.float32(1e-6))
        rates = zip(self.scale * sample, config.positive_rate, strict=True)
        self.bias = np.array([[_bias_for(logits, rate)] for logits, rate in rates], dtype=np.float32)

    def draw(self, split: str, chunk: int, rows: int) -> tuple[pa.Table, Floats, NDArray[np.int8]]:
        """The rows of one chunk, their true logits (T, N), and their labels (T, N) with MISSING for null."""
        rng = self.generator(split, chunk)
        features = self._features(rng, rows)
        logits = self.bias + self.scale * self._effects(features)
        labels = (rng.random(logits.shape, dtype=np.float32) < _sigmoid(logits)).astype(np.int8)
        labels[rng.random(labels.shape, dtype=np.float32) < np.array([self.config.missing]).T] = MISSING

        user, item = features["user"], features["item"]
        tags = pa.ListArray.from_arrays(features["tag_offsets"], features["tags"])
        attributes = [self.users.cluster[user], self.items.cluster[item]]
        nullable = [pa.array(label, mask=label == MISSING) for label in labels]
        columns = [user, item, *attributes, tags, *features["dense"], *nullable, user.astype(np.int64)]
        return pa.table([pa.array(column) for column in columns], schema=self.columns), logits, labels

    def with_populations(self, users: Population, items: Population) -> "World":
        """This world with other vectors of its users and items; a chunk shows the same ids to the same users."""
        world = copy.copy(self)
        world.users, world.items = users, items
        return world

    def generator(self, stream: str, chunk: int = 0) -> np.random.Generator:
        """A random generator that depends on the seed, one of STREAMS and a number alone."""
        return np.random.default_rng([self.config.seed, STREAMS.index(stream), chunk])

    def effects(self, rng: np.random.Generator, ids: int, width: int) -> Floats:
        """What ids do in every task, standard normal, (T, ids, width); `conflict` says how far the tasks differ."""
        config = self.config
        common = rng.standard_normal((ids, width), dtype=np.float32)
        own = rng.standard_normal((len(config.tasks), ids, width), dtype=np.float32)
        # An id that stands for another vector in each task is what one embedding for all tasks must mix.
        return np.float32((1 - config.conflict) ** 0.5) * common + np.float32(config.conflict**0.5) * own

    def _population(self, rng: np.random.Generator, cluster: Ints, clusters: int) -> Population:
        dim = self.config.latent_dim
        return Population(cluster, self.effects(rng, clusters, dim), self.effects(rng, len(cluster), dim))

    def _features(self, rng: np.random.Generator, rows: int) -> dict[str, NDArray]:
        config = self.config
        lengths = rng.integers(config.max_tags, size=rows, endpoint=True)
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        return {
            "user": _zipf(rng, config.users, exponent=config.zipf_exponent, size=rows),
            "item": _zipf(rng, config.items, exponent=config.zipf_exponent, size=rows),
            "tags": _zipf(rng, config.tags, exponent=config.zipf_exponent, size=int(offsets[-1])),
            "tag_offsets": offsets,
            "dense": rng.standard_normal((config.dense_features, rows), dtype=np.float32),
        }

    def _effects(self, features: dict[str, NDArray]) -> Floats:
        """What ranks the rows of every task, before it is scaled and shifted, (T, N)."""
        config, offsets = self.config, features["tag_offsets"]
        affinity_scale = (AFFINITY / config.latent_dim / (1 + 2 * MEAN_PREFERENCE**2)) ** 0.5
        tag_scale = (TAGS / max(config.max_tags / 2, 1)) ** 0.5
        dense = features["dense"].sum(axis=0) * (DENSE / max(config.dense_features, 1)) ** 0.5
        effects = np.empty((len(config.tasks), len(dense)), dtype=np.float32)
        vectors = zip(self.users.vectors, self.items.vectors, self.tags, strict=True)
        for t, (users, items, tags) in enumerate(vectors):
            affinity = np.einsum("nk,nk->n", users[features["user"]], items[features["item"]])
            running = np.concatenate([[0], np.cumsum(tags[features["tags"]], dtype=np.float64)])
            effects[t] = affinity_scale * affinity + tag_scale * np.diff(running[offsets]) + dense
        return effects


def _zipf(rng: np.random.Generator, ids: int, *, exponent: float, size: int) -> Ints:
    """Draws ids by inverting the integral of r ** -exponent from 1 to ids + 1, so it needs no table of them."""
    power = (1 - exponent) or 1e-9  # The integral for exponent 1 is the limit.
    full = math.expm1(power * math.log(ids + 1))
    rank = np.exp(np.log1p(rng.random(size) * full) / power)
    rank = np.minimum(rank.astype(np.int64), ids) - 1
    # Steps of about 0.618 * ids without a common divisor visit every id once: popular ids that stood side by
    # side would all fall into the first shard of a table that is split by rows.
    step = next(step for step in range(round(0.618 * ids) or 1, 2 * ids + 1) if math.gcd(step, ids) == 1)
    return (rank * step % ids).astype(np.int32)


def _sigmoid(logits: Floats) -> Floats:
    return np.float32(0.5) + np.float32(0.5) * np.tanh(np.float32(0.5) * logits)  # exp(-x) would overflow.


def _bias_for(logits: Floats, rate: float) -> float:
    """Bisects for the constant that gives the probabilities the mean `rate`."""
    spread = float(np.abs(logits).max()) + 40
    low, high = -spread, spread
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if _sigmoid(logits + np.float32(middle)).mean() < rate else (low, middle)
    return middle
