"""Which rows of an epoch's order are left to read, by rank and worker.

A span is a run of rows [start, stop) in the order of the epoch. Rows that are left are spans by rank and worker:
`left[rank][worker]` are the spans that one worker of a rank reads, one after the other. Batches are taken from the
workers in turn, from the first one on.
"""

from collections.abc import Iterable, Sequence
from itertools import accumulate, pairwise

Span = tuple[int, int]
Spans = Sequence[Span]
Left = Sequence[Sequence[Spans]]


def count(spans: Iterable[Span]) -> int:
    """Rows in spans."""
    return sum(stop - start for start, stop in spans)


def cut(spans: Spans, low: int, high: int) -> list[Span]:
    """The rows from number `low` up to number `high` of those in `spans`.

    Example::

        cut([(0, 5), (20, 30)], 3, 7)  # [(3, 5), (20, 22)]
    """
    parts, before = [], 0
    for start, stop in spans:
        first, last = max(start, start + low - before), min(stop, start + high - before)
        if first < last:
            parts.append((first, last))
        before += stop - start
    return parts


def divide(spans: Spans, *, ranks: int, workers: int, batch_size: int) -> list[list[list[Span]]]:
    """Divides rows among the ranks, whose numbers differ by at most one, and each rank's steps among its workers.

    Args:
        spans: the rows to divide.
        ranks: number of ranks.
        workers: number of workers of each rank.
        batch_size: rows of a rank's step.

    Example::

        divide([(0, 10)], ranks=2, workers=2, batch_size=2)
        # [[[(0, 4)], [(4, 5)]], [[(5, 9)], [(9, 10)]]]: of three steps, the first worker makes two
    """
    rows = count(spans)
    shares = [cut(spans, *ends) for ends in pairwise(rows * rank // ranks for rank in range(ranks + 1))]
    steps = -(-max(map(count, shares)) // batch_size)
    ends = list(accumulate((len(range(i, steps, workers)) * batch_size for i in range(workers)), initial=0))
    return [[cut(share, low, high) for low, high in pairwise(ends)] for share in shares]


def steps_of(left: Left, batch_size: int) -> int:
    """The number of steps to read all rows, which is that of the rank with the most rows."""
    return max(sum(-(-count(spans) // batch_size) for spans in of_rank) for of_rank in left)


def after(left: Left, steps: int, batch_size: int) -> list[list[list[Span]]]:
    """The rows that are left after some steps; the worker whose turn is next comes first.

    Example::

        after([[[(0, 8)], [(8, 16)]]], 3, 4)  # [[[(12, 16)], []]]: two batches of the first worker, one of the second
    """
    rest_of_ranks = []
    for of_rank in left:
        workers = len(of_rank)
        rest = [cut(spans, len(range(i, steps, workers)) * batch_size, count(spans)) for i, spans in enumerate(of_rank)]
        turn = steps % workers
        rest_of_ranks.append(rest[turn:] + rest[:turn])
    return rest_of_ranks
