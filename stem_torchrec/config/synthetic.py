"""What a synthetic log is drawn from, and the raw rows of synthetic days."""

from dataclasses import dataclass, field
from typing import Annotated

from annotated_types import Interval

_Rows = Annotated[int, Interval(ge=1, le=10**12)]
_Ids = Annotated[int, Interval(ge=1, le=2**31 - 1)]
_Share = Annotated[float, Interval(ge=0, le=1)]


@dataclass(frozen=True)
class SyntheticConfig:
    """What to draw. By default a small STEM-Net comes within 0.01 of the best reachable AUC in one epoch."""

    train_rows: _Rows = 500_000
    """Rows of train/."""
    valid_rows: _Rows = 50_000
    """Rows of valid/."""
    test_rows: _Rows = 50_000
    """Rows of test/."""
    users: _Ids = 500
    """Ids of user_id."""
    items: _Ids = 500
    """Ids of item_id."""
    user_segments: _Ids = 20
    """Ids of user_segment, a function of the user that explains half of the user's vector."""
    item_categories: _Ids = 20
    """Ids of item_category, a function of the item that explains half of the item's vector."""
    tags: _Ids = 100
    """Ids of tags, a column of lists drawn for each row."""
    max_tags: Annotated[int, Interval(ge=0, le=10_000)] = 5
    """A row has 0 to this many tags, all lengths equally often."""
    dense_features: Annotated[int, Interval(ge=0, le=10_000)] = 2
    """Columns dense_0, dense_1, ...: standard normal, with the same effect in every task."""
    latent_dim: Annotated[int, Interval(ge=1, le=10_000)] = 1
    """Length of the vectors p_u^t and q_i^t. From 2 on, a model that adds up embeddings but never multiplies
    them needs many times the rows."""
    tasks: tuple[str, ...] = ("finish", "like")
    """Names of the label columns."""
    positive_rate: tuple[Annotated[float, Interval(gt=0, lt=1)], ...] = (0.4, 0.1)
    """Share of ones among the labels that are not missing, one number per task."""
    missing: tuple[Annotated[float, Interval(ge=0, lt=1)], ...] = (0.0, 0.0)
    """Share of rows without the label, one number per task."""
    conflict: _Share = 0.5
    """Vectors and effects are sqrt(1 - conflict) * common + sqrt(conflict) * own: with 0 all tasks agree, with
    1 what an id means in one task says nothing about another."""
    signal: Annotated[float, Interval(ge=0, le=1000)] = 1.5
    """Standard deviation of the logits; the larger, the higher the best reachable AUC."""
    zipf_exponent: Annotated[float, Interval(ge=0, le=100)] = 0.5
    """The id of rank r is drawn with a weight of about r ** -zipf_exponent; with 0 all equally often."""
    seed: Annotated[int, Interval(ge=0, le=2**63 - 1)] = 0
    """The same settings give the same log."""


@dataclass(frozen=True)
class DaysConfig:
    """Days of a world that changes every night."""

    days: Annotated[int, Interval(ge=1, le=9999)] = 20
    """Number of days."""
    rows_per_day: Annotated[int, Interval(ge=1, le=10**7)] = 20_000
    """Rows of each day, which are in memory at once."""
    drift: _Share = 0.05
    """Every night the vectors of users, items and their clusters become sqrt(1 - drift) * old + sqrt(drift) * new: with
    0 they stay, with 1 what one day teaches says nothing about the next."""
    new_users: _Share = 0.02
    """Share of the users who leave in a night, each as likely as any other; as many come, with new numbers."""
    new_items: _Share = 0.05
    """Share of the items that leave in a night, and for which new ones come."""
    world: SyntheticConfig = field(default_factory=SyntheticConfig)
    """The first day; `users` and `items` are those of any one day. Numbers of rows are without effect."""
