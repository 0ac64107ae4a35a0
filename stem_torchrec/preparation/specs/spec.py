"""What a log is made from: sources, derived columns, a split, labels and features; docs/prepare.md has the fields.

Expressions are text here, in the subset of SQL that `expressions` reads.
"""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from annotated_types import Interval

from stem_torchrec.data.schema import LabelKind
from stem_torchrec.preparation.specs.splits import Split

ColumnType = Literal["int", "float", "text", "bool", "timestamp", "date", "list<int>", "list<float>", "list<text>"]
Missing = Literal["unseen", "own", "none"]
Count = Annotated[int, Interval(ge=1, le=2**40)]
Share = Annotated[float, Interval(ge=0, le=1)]


@dataclass(frozen=True)
class Source:
    """Files of one kind, whose rows are read one after another in the order of their paths."""

    files: str | tuple[str, ...]
    """A path, a pattern such as `logs/*.csv`, or a list of them; for Parquet, JSON lines and Delta also a folder."""
    type: Literal["csv", "parquet", "json", "delta"] = "csv"
    columns: dict[str, ColumnType] = field(default_factory=dict)
    """Types by column. A CSV file without a header needs all of them, in order; in one with a header, a column that is
    not named is text."""
    partitions: dict[str, ColumnType] = field(default_factory=dict)
    """Columns that only the names of folders have, as `date` in `date=2022-05-03/`."""
    header: bool = True
    delimiter: str = ","
    quote: str = '"'
    """Character around a cell that contains the delimiter; empty for none."""
    encoding: str = "utf-8"
    """Of CSV, by its name in Python."""
    trim: bool = False
    """Removes blanks around the cells of CSV."""
    nulls: tuple[str, ...] = ("",)
    """Cells of CSV that mean that there is no value."""

    @property
    def patterns(self) -> tuple[str, ...]:
        """The paths and patterns of the files."""
        return (self.files,) if isinstance(self.files, str) else tuple(self.files)


@dataclass(frozen=True)
class Join:
    """A left join of what has been read so far with a side table: every row of the log stays, once."""

    source: str
    on: str | tuple[str, ...]
    """Columns that both sides have."""
    repeats: Literal["error", "first", "last"] = "error"
    """For a key that the side table has several times: refuse it, or take its first or last row."""
    serving: Literal["columns", "table"] = "columns"
    """Whether a row to serve comes with the columns of the side table, or with its key alone."""


@dataclass(frozen=True)
class Deduplicate:
    """Keeps the first of the rows that are equal in some columns, in the order of the source."""

    by: tuple[str, ...]


@dataclass(frozen=True)
class Label:
    """A task."""

    value: str
    """Expression that is 0, 1, true, false or null, or of another kind; null means that the feedback was not asked
    for."""
    kind: LabelKind = "binary"
    """What the values are: 0 and 1, finite numbers, or levels in an order."""
    levels: Annotated[int, Interval(ge=2, le=256)] | None = None
    """Number of levels of an ordinal label: 5 for 0, 1, 2, 3 and 4."""
    where: str | None = None
    """The label is null in rows in which this condition does not hold, as a purchase without a click."""
    weight: str | None = None
    """Expression for a weight of the row in this task."""


@dataclass(frozen=True)
class Buckets:
    """Replaces a number by the lower edge of its bucket."""

    edges: tuple[float, ...] | None = None
    quantiles: Annotated[int, Interval(ge=2, le=10_000)] | None = None
    """Number of buckets, cut at the quantiles of train."""


@dataclass(frozen=True)
class Vocabulary:
    """Ids 1, 2, ... for the values of train, by falling count; 0 for all other values."""

    min_count: Count = 2
    """A value that occurs fewer times in train counts as unseen. Where a log grows the ids of an earlier one, the train
    of all logs so far counts."""
    most_frequent: Count | None = None
    """Keeps so many values; a vocabulary that has them grows no more."""
    forget_after: Count | None = None
    """Forgets how often a value without an id occurred when so many logs in a row lack it."""
    of: str | None = None
    """Another feature, whose ids this one has as well."""


@dataclass(frozen=True)
class Hash:
    """Ids by the MD5 of the value."""

    buckets: Annotated[int, Interval(ge=1, le=2**40)]
    hashes: Annotated[int, Interval(ge=1, le=4)] = 1
    """Ids of a value; with 2, values that share one id rarely share the other. The log has a list of them."""
    salt: str = ""


@dataclass(frozen=True)
class Feature:
    """Ids of a row: one, or a list. With none of vocabulary, hash and identity it has a vocabulary."""

    value: str | None = None
    """Expression for the value or the list of values; the column of the feature's name if left out."""
    buckets: Buckets | None = None
    vocabulary: Vocabulary | None = None
    hash: Hash | None = None
    identity: Count | None = None
    """The values are ids already, below this number."""
    missing: Missing = "unseen"
    """What a row without a value gets: id 0 as an unseen value, an id of its own, or none."""
    pooling: Literal["sum", "mean"] = "sum"
    weights: str | None = None
    """Expression for a weight of the id, or a list with a weight for each id."""
    embedding_dim: Annotated[int, Interval(ge=4, le=16_384)] | None = None


@dataclass(frozen=True)
class Fill:
    """What a missing number becomes."""

    fill: float | Literal["mean"] = "mean"
    flag: bool = False
    """Adds a dense feature NAME_missing, 1 where the number is missing."""


@dataclass(frozen=True)
class Dense:
    """A number as the model sees it. The steps are taken in the order of the fields, with constants of train."""

    value: str | None = None
    log: bool = False
    """sign(x) * ln(1 + |x|)."""
    clip: tuple[Share, Share] | None = None
    """Quantiles to which smaller and larger numbers are moved."""
    quantiles: Annotated[int, Interval(ge=2, le=10_000)] | None = None
    """Maps a number to its share of smaller numbers, from 0 to 1, by so many quantiles."""
    standardize: bool = False
    """Subtracts the mean and divides by the standard deviation."""
    missing: Fill = Fill()


@dataclass(frozen=True)
class Spec:
    """A log. docs/prepare.md shows a complete one."""

    sources: dict[str, Source]
    """The first is the log, with one row per exposure; the others are side tables."""
    split: Split
    labels: dict[str, str | Label]
    features: dict[str, Feature | None]
    joins: tuple[Join, ...] = ()
    columns: dict[str, str] = field(default_factory=dict)
    """Expressions by the name of the column that they make; a later one may use an earlier one."""
    where: str | None = None
    """Condition of the rows that stay."""
    deduplicate: Deduplicate | None = None
    row_key: tuple[str, ...] = ()
    """Columns that tell rows apart, by whose MD5 rows are drawn and shuffled; all numbers and texts if empty."""
    order: str = "shuffle"
    """`shuffle`, `source`, or an expression by which the rows of a split are sorted."""
    dense: dict[str, Dense | None] = field(default_factory=dict)
    group: str | None = None
    """Expression whose values are the groups of gAUC, usually the user."""
    weight: str | None = None
    """Expression for a weight of the row in all tasks."""
    keep: tuple[str, ...] = ()
    """Columns that the files of the log have besides, as they are; schema.json does not name them."""
    row_group_size: Annotated[int, Interval(ge=1, le=2**24)] = 65_536
    description: str = ""
    variables: dict[str, str | None] = field(default_factory=dict)
    """Texts that `${NAME}` stands for; `--set NAME=TEXT` replaces them, and must give those that are null."""

    @property
    def tasks(self) -> dict[str, Label]:
        """The labels, all in the long form."""
        return {name: Label(label) if isinstance(label, str) else label for name, label in self.labels.items()}

    @property
    def id_features(self) -> dict[str, Feature]:
        """The features, all in the long form."""
        return {name: feature or Feature() for name, feature in self.features.items()}

    @property
    def numbers(self) -> dict[str, Dense]:
        """The dense features, all in the long form."""
        return {name: number or Dense() for name, number in self.dense.items()}

    @property
    def log(self) -> str:
        """The name of the first source."""
        return next(iter(self.sources))
