"""The ratios that a report begins with, each between contestants that took turns on batches of one size.

A ratio is left out if one of the two has failed.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from statistics import median

from contest.problem import MALLOC, Contestant
from contest.turns import Score

Ratio = tuple[str, str]
"""A name, and the median over the rounds with the lowest and the highest."""


def ratios(scores: Mapping[str, Sequence[Score]]) -> list[tuple[str, str, str]]:
    """The ratios of all contests that were held: a name, the ratio where sides keep freed memory, and where none does.

    Only `others` is held both ways; the other cases have a ratio in the first column.
    """
    result: dict[str, dict[bool, str]] = {}
    for contest, contestants in scores.items():
        for name, value in _BY_CASE[contest.partition(",")[0]](contestants):
            result.setdefault(name, {})[not contest.endswith(MALLOC[False])] = value
    return [(name, values.get(True, ""), values.get(False, "")) for name, values in result.items()]


def ratio(slow: Score, fast: Score, factor: float = 1.0) -> str:
    """Median step of `slow` over that of `fast`, times `factor`, by round: the median and the range over the rounds."""
    values = [factor * a / b for a, b in zip(slow.rounds(), fast.rounds(), strict=True)]
    return f"{median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def _share(score: Score, limit: Score) -> str:
    """Work per second over that of the limit."""
    return ratio(limit, score, score.work / limit.work)


def _peak(scores: Sequence[Score]) -> Iterator[Ratio]:
    for precision in dict.fromkeys(score.contestant.precision for score in scores):
        same = {s.contestant.side: s for s in reversed(scores) if s.contestant.precision == precision}
        for name, side, limit in (
            ("step as a share of the GEMM peak", "ours", "gemm"),
            ("products of the step alone as a share of it", "products", "gemm"),
            ("step as a share of its products alone", "ours", "products"),
        ):
            if side in same and limit in same:
                yield f"{precision} {name}", _share(same[side], same[limit])
    for score in scores:
        for kept in scores:
            if kept.contestant == replace(score.contestant, keeps_memory=True) != score.contestant:
                yield f"{kept.contestant.name} over {score.contestant.name}", ratio(score, kept)


def _rows(scores: Sequence[Score]) -> Iterator[Ratio]:
    for few in scores:
        for many in scores:
            if _same_precision(few, many) and few.contestant.rows < many.contestant.rows:
                rows = f"{many.contestant.rows:,} rows over {few.contestant.rows:,}"
                yield f"{few.contestant.precision} step time at {rows}", ratio(many, few)


def _others(scores: Sequence[Score]) -> Iterator[Ratio]:
    for other in scores:
        for ours in scores:
            if ours.contestant.side == "ours" and (
                other.contestant.side == "dense" or (other.contestant.side == "stock" and _same_precision(ours, other))
            ):
                # The contest says whether freed memory is kept.
                names = " over ".join(replace(side.contestant, keeps_memory=True).name for side in (ours, other))
                yield f"samples/s of {names}, {other.contestant.rows:,} rows", ratio(other, ours)


def _models(scores: Sequence[Score]) -> Iterator[Ratio]:
    for stem in scores:
        for other in scores:
            if (
                stem.contestant.model == "stem" != other.contestant.model
                and stem.contestant.rows == other.contestant.rows
            ):
                names = f"{stem.contestant.name} over {other.contestant.name}"
                yield f"samples/s of {names}, {other.contestant.rows:,} rows", ratio(other, stem)


def _variants(scores: Sequence[Score]) -> Iterator[Ratio]:
    for usual in scores:
        for score in scores:
            if _with_defaults(usual) and not _with_defaults(score):
                yield f"samples/s of {score.contestant.name} over {usual.contestant.name}", ratio(usual, score)


def _with_defaults(score: Score) -> bool:
    """Whether the contestant has no option but its precision and sizes."""
    usual = Contestant("ours")
    options = ("pipeline", "kernel", "sparse", "layout", "dense_part", "model")
    return all(getattr(score.contestant, option) == getattr(usual, option) for option in options)


def _ranks(scores: Sequence[Score]) -> Iterator[Ratio]:
    for many in scores:
        one = next((s for s in scores if s.contestant.ranks == 1 and _same_precision(s, many)), None)
        if one is not None and many.contestant.ranks > 1:
            names = f"{many.contestant.name} over {one.contestant.name}"
            yield f"samples/s of {names}", ratio(one, many, many.contestant.ranks)


def _roofline(scores: Sequence[Score]) -> Iterator[Ratio]:
    for limit in scores:
        for score in scores:
            if (limit.contestant.side, score.contestant.side) == ("copy", "tables"):
                yield f"tables of {score.contestant.rows:,} rows as a share of memory bandwidth", _share(score, limit)


def _memory(scores: Sequence[Score]) -> Iterator[Ratio]:
    largest = {score.contestant.side: score.contestant.rows for score in scores}
    if {"ours", "dense"} <= largest.keys():
        yield "rows of the largest model, ours over dense", f"{largest['ours'] / largest['dense']:.2f}"


def _same_precision(a: Score, b: Score) -> bool:
    return a.contestant.precision == b.contestant.precision


_BY_CASE = {
    "peak": _peak,
    "rows": _rows,
    "others": _others,
    "models": _models,
    "variants": _variants,
    "balance": _variants,
    "architectures": _variants,
    "experts": _variants,
    "losses": _variants,
    "compiled": _variants,
    "ranks": _ranks,
    "roofline": _roofline,
    "memory": _memory,
}
