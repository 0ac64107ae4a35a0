"""The figures that the project is measured by: ratios of what took turns."""

from collections.abc import Iterator, Mapping, Sequence
from statistics import median

from throughput_contest import Score

Ratio = tuple[str, str]
"""What, and its median over the rounds with the lowest and highest."""


def ratios(scores: Mapping[str, Sequence[Score]]) -> list[Ratio]:
    """Of all contests that were held."""
    found: list[Ratio] = []
    for contest, contestants in scores.items():
        case = contest.partition(",")[0]
        found += _BY_CASE[case](contestants)
    return found


def ratio(slow: Score, fast: Score, factor: float = 1.0) -> str:
    """Median time of the first over that of the second, times `factor`; median and range over the rounds."""
    values = [factor * a / b for a, b in zip(slow.rounds(), fast.rounds(), strict=True)]
    return f"{median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def _share(score: Score, limit: Score) -> str:
    """Work in a second over that of the limit."""
    return ratio(limit, score, score.work / limit.work)


def _peak(scores: Sequence[Score]) -> Iterator[Ratio]:
    for precision in dict.fromkeys(score.contestant.precision for score in scores):
        same = {s.contestant.side: s for s in reversed(scores) if s.contestant.precision == precision}
        yield f"{precision} step as a share of the GEMM peak", _share(same["ours"], same["gemm"])
        yield f"{precision} products of the step alone as a share of it", _share(same["products"], same["gemm"])
        yield f"{precision} step as a share of its products alone", _share(same["ours"], same["products"])
    for score in scores:
        kept = next(s for s in scores if s.contestant.side == "ours" and _same_precision(s, score))
        if not score.contestant.keeps_memory:
            yield f"{kept.contestant.name} over {score.contestant.name}", ratio(score, kept)


def _rows(scores: Sequence[Score]) -> Iterator[Ratio]:
    for few in scores:
        for many in scores:
            if _same_precision(few, many) and few.contestant.rows < many.contestant.rows:
                what = f"step time at {many.contestant.rows:,} rows over {few.contestant.rows:,}"
                yield f"{few.contestant.precision} {what}", ratio(many, few)


def _others(scores: Sequence[Score]) -> Iterator[Ratio]:
    for other in scores:
        for mine in scores:
            if mine.contestant.side == "ours" and (
                other.contestant.side == "dense" or (other.contestant.side == "stock" and _same_precision(mine, other))
            ):
                who = f"{mine.contestant.name} over {other.contestant.name}"
                yield f"samples/s of {who}, {other.contestant.rows:,} rows", ratio(other, mine)


def _models(scores: Sequence[Score]) -> Iterator[Ratio]:
    for stem in scores:
        for other in scores:
            if (
                stem.contestant.arch == "stem" != other.contestant.arch
                and stem.contestant.rows == other.contestant.rows
            ):
                what = f"{stem.contestant.name} over {other.contestant.name}, {other.contestant.rows:,} rows"
                yield f"samples/s of {what}", ratio(other, stem)


def _variants(scores: Sequence[Score]) -> Iterator[Ratio]:
    usual, *variants = scores
    for score in variants:
        yield f"samples/s of {score.contestant.name} over {usual.contestant.name}", ratio(usual, score)


def _ranks(scores: Sequence[Score]) -> Iterator[Ratio]:
    for many in scores:
        one = next(s for s in scores if s.contestant.ranks == 1 and _same_precision(s, many))
        if many.contestant.ranks > 1:
            who = f"{many.contestant.name} over {one.contestant.name}"
            yield f"samples/s of {who}", ratio(one, many, many.contestant.ranks)


def _roofline(scores: Sequence[Score]) -> Iterator[Ratio]:
    limit, *tables = scores
    for score in tables:
        yield f"tables of {score.contestant.rows:,} rows as a share of memory bandwidth", _share(score, limit)


def _memory(scores: Sequence[Score]) -> Iterator[Ratio]:
    largest = {score.contestant.side: score.contestant.rows for score in scores}
    yield "rows of the largest model, ours over dense", f"{largest['ours'] / largest['dense']:.2f}"


def _same_precision(a: Score, b: Score) -> bool:
    return a.contestant.precision == b.contestant.precision


_BY_CASE = {
    "peak": _peak,
    "rows": _rows,
    "others": _others,
    "models": _models,
    "variants": _variants,
    "ranks": _ranks,
    "roofline": _roofline,
    "memory": _memory,
}
