"""What a synthetic log is drawn from."""

from dataclasses import dataclass


@dataclass(frozen=True)
class SyntheticConfig:
    """What to draw. By default a small STEM-Net comes within 0.01 of the best reachable AUC in one epoch."""

    train_rows: int = 500_000
    """Rows of train/."""
    valid_rows: int = 50_000
    """Rows of valid/."""
    test_rows: int = 50_000
    """Rows of test/."""
    users: int = 500
    """Ids of user_id."""
    items: int = 500
    """Ids of item_id."""
    user_segments: int = 20
    """Ids of user_segment, a function of the user that explains half of the user's vector."""
    item_categories: int = 20
    """Ids of item_category, a function of the item that explains half of the item's vector."""
    tags: int = 100
    """Ids of tags, a column of lists drawn for each row."""
    max_tags: int = 5
    """A row has 0 to this many tags, all lengths equally often."""
    dense_features: int = 2
    """Columns dense_0, dense_1, ...: standard normal, with the same effect in every task."""
    latent_dim: int = 1
    """Length of the vectors p_u^t and q_i^t. From 2 on, a model that adds up embeddings but never multiplies
    them needs many times the rows."""
    tasks: tuple[str, ...] = ("finish", "like")
    """Names of the label columns."""
    positive_rate: tuple[float, ...] = (0.4, 0.1)
    """Share of ones among the labels that are not missing, one number per task."""
    missing: tuple[float, ...] = (0.0, 0.0)
    """Share of rows without the label, one number per task."""
    conflict: float = 0.5
    """Vectors and effects are sqrt(1 - conflict) * common + sqrt(conflict) * own: with 0 all tasks agree, with
    1 what an id means in one task says nothing about another."""
    signal: float = 1.5
    """Standard deviation of the logits; the larger, the higher the best reachable AUC."""
    zipf_exponent: float = 0.5
    """The id of rank r is drawn with a weight of about r ** -zipf_exponent; with 0 all equally often."""
    seed: int = 0
    """The same settings give the same log."""
