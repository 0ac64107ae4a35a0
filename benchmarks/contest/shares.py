"""What a contestant reaches of the measured limits: matrix products alone, and copies of memory."""

from collections.abc import Iterable

from contest.problem import Problem
from contest.turns import Score

_MULTIPLY = ("gemm", "products", "ours", "stock", "dense")
_LOOK_UP = ("ours", "stock")
"""Those that move hardly more than the rows of their batch; dense moves whole tables."""


def share_of_peak(score: Score, scores: Iterable[Score]) -> float | None:
    """Operations per second over those of the fastest product alone in the same precision; None if there is none."""
    rates = [_rate(s) for s in scores if (s.contestant.side, s.contestant.precision) == ("gemm", _precision(score))]
    return _rate(score) / max(rates) if rates and score.contestant.side in _MULTIPLY else None


def share_of_bandwidth(score: Score, scores: Iterable[Score], problem: Problem) -> float | None:
    """Bytes per second over those of a copy; None without one.

    Of a step they are what the tables need at least, as `Problem.table_bytes` counts it.
    """
    rates = [_rate(s) for s in scores if s.contestant.side == "copy"]
    if not rates:
        return None
    if score.contestant.side in _LOOK_UP:
        return problem.of(score.contestant).table_bytes() / score.quantile(0.5) / max(rates)
    return _rate(score) / max(rates) if score.contestant.side in ("copy", "tables") else None


def _rate(score: Score) -> float:
    return score.work / score.quantile(0.5)


def _precision(score: Score) -> str:
    return score.contestant.precision
