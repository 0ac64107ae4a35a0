"""The split of each row and the order of the rows, as expressions."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from stem_torchrec.expressions.expression import Call, Expression, Literal
from stem_torchrec.expressions.value_types import NULL, ValueType
from stem_torchrec.preparation.specs.expression_reader import ExpressionReader, Value, from_sql
from stem_torchrec.preparation.specs.spec import Spec
from stem_torchrec.preparation.specs.splits import ColumnSplit, TimeSplit
from stem_torchrec.runtime.errors import UserError

HASHES = 2**52
"""Values of the hash by which rows are split and shuffled: the first 13 hexadecimal digits of an MD5."""

_1970 = datetime(1970, 1, 1, tzinfo=UTC)
_T = ValueType
_DRAWN = (_T.INT, _T.TEXT, _T.BOOL)
ORDERED = (_T.INT, _T.FLOAT, _T.TEXT, _T.TIMESTAMP, _T.DATE)


def read_split(reader: ExpressionReader, spec: Spec) -> Value:
    """0, 1 or 2 for a row of train, valid or test, null for a row of none."""
    split = spec.split
    if split.time is not None:
        tree = _by_time(reader, split.time)
    elif split.random is not None:
        tree = _at_random(reader, spec)
    else:
        assert split.column is not None
        tree = _by_column(reader, split.column)
    return Value(tree, _T.INT)


def _by_time(reader: ExpressionReader, split: TimeSplit) -> Expression:
    kinds = (_T.INT, _T.FLOAT, _T.TEXT, _T.DATE, _T.TIMESTAMP)
    time = reader.value(split.by, "split.time.by", kinds, "a time")
    train, valid = (_bound(getattr(split, name), time.type, name) for name in ("train_until", "valid_until"))
    if split.gap and isinstance(train, str):
        raise UserError(f"split.time.gap is {split.gap}, but split.time.by is text, to which none can be added.")
    start = train if isinstance(train, str) else train + split.gap * (1_000_000 if time.type == _T.TIMESTAMP else 1)
    bounds = [_constant(each, time.type) for each in (train, start, valid)]
    text = """case when time <= train then 0 when time <= start then null when time <= valid then 1
              when time is not null then 2 end"""
    return from_sql(text, time=time.tree, train=bounds[0], start=bounds[1], valid=bounds[2])


def _bound(bound: int | float | str, kind: ValueType, name: str) -> int | float | str:
    """The last value of a split, as a value of the type of the time; a day is over at its end."""
    try:
        if kind in (_T.INT, _T.FLOAT):
            return int(bound) if kind == _T.INT else float(bound)
        if kind == _T.TEXT:
            return str(bound)
        moment = datetime.fromisoformat(str(bound))
    except ValueError as error:
        raise UserError(f"split.time.{name} is {bound!r}, which is no {kind}, as split.time.by is.") from error
    if kind == _T.DATE:
        return (moment.date() - _1970.date()).days
    if len(str(bound)) == len("2022-05-03"):
        moment += timedelta(days=1, microseconds=-1)
    return (moment.replace(tzinfo=moment.tzinfo or UTC) - _1970) // timedelta(microseconds=1)


def _constant(value: int | float | str, kind: ValueType) -> Expression:
    if kind == _T.DATE:
        return from_sql("to_date(day)", day=Literal(str(_1970.date() + timedelta(days=int(value)))))
    return from_sql("from_unix_us(us)", us=Literal(value)) if kind == _T.TIMESTAMP else Literal(value)


def _at_random(reader: ExpressionReader, spec: Spec) -> Expression:
    split = spec.split.random
    assert split is not None
    bounds = [round((1 - split.valid - split.test) * HASHES), round((1 - split.test) * HASHES)]
    place = "split.random.by" if split.by else "row_key"
    position = _hash(reader, split.by or spec.row_key, _salt(spec), place)
    first, second = map(Literal, bounds)
    text = "case when position < first then 0 when position < second then 1 else 2 end"
    return from_sql(text, position=position, first=first, second=second)


def _by_column(reader: ExpressionReader, split: ColumnSplit) -> Expression:
    column = reader.value(split.by, "split.column.by", (_T.INT, _T.TEXT, _T.BOOL), "the name of a split").tree
    tree: Expression = Literal(None)
    for i, values in reversed(list(enumerate((split.train, split.valid, split.test)))):
        for value in values:
            text = "case when name = value then split else others end"
            tree = from_sql(text, name=column, value=Literal(value), split=Literal(i), others=tree)
    return tree


def read_order(reader: ExpressionReader, spec: Spec) -> Value | None:
    """What the rows of a split are sorted by; None for the order of the source."""
    if spec.order == "source":
        return None
    if spec.order == "shuffle":
        return Value(_hash(reader, spec.row_key, _salt(spec)), _T.INT)
    return reader.value(spec.order, "order", ORDERED, "what rows are sorted by")


def _salt(spec: Spec) -> str:
    """The same for split and order: rows in the order of the hash that splits them are shuffled, at half the cost."""
    return f"rows {spec.split.random.seed if spec.split.random else 0} "


def _hash(reader: ExpressionReader, names: Sequence[str], salt: str, place: str = "row_key") -> Expression:
    """A number below HASHES for each row, by some columns, or by all that are numbers and texts if none is named."""
    known = [name for name, kind in reader.types.items() if kind in (_T.INT, _T.TEXT)]
    if not names and not known:
        raise UserError("row_key is empty, and no column is a number or text by which rows could be drawn.")
    for name in names:
        kind = reader.typed(reader.column(name, place), place, tuple(_T), "a key", name).type
        if kind not in (*_DRAWN, NULL):
            raise UserError(f"{place} names {name!r}, which is {kind}, but rows are drawn by {', '.join(_DRAWN)}.")
    parts = tuple(
        from_sql("coalesce(cast(part as text), '')", part=reader.column(name, place)) for name in names or known
    )
    return Call("hash_id", (parts[0] if len(parts) == 1 else Call("cross", parts),), {"buckets": HASHES, "salt": salt})
