"""Which rows of an epoch's order are left to read, and by whom.

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
    found, before = [], 0
    for start, stop in spans:
        first, last = max(start, start + low - before), min(stop, start + high - before)
        if first < last:
            found.append((first, last))
        before += stop - start
    return found


def divide(spans: Spans, *, ranks: int, workers: int, batch_size: int) -> list[list[list[Span]]]:
    """Rows for every rank, as many as any other or one more, and of a rank's rows for every worker its steps' rows.

    Args:
        spans: the rows to divide.
        ranks: how many there are.
        workers: of each rank.
        batch_size: rows of a rank's step.
    """
    rows = count(spans)
    shares = [cut(spans, *ends) for ends in pairwise(rows * rank // ranks for rank in range(ranks + 1))]
    steps = -(-max(map(count, shares)) // batch_size)
    ends = list(accumulate((len(range(i, steps, workers)) * batch_size for i in range(workers)), initial=0))
    return [[cut(share, low, high) for low, high in pairwise(ends)] for share in shares]


def steps_of(left: Left, batch_size: int) -> int:
    """Steps that reading them takes, the same for every rank: the rank with the most rows sets it."""
    return max(sum(-(-count(spans) // batch_size) for spans in of_rank) for of_rank in left)


def after(left: Left, steps: int, batch_size: int) -> list[list[list[Span]]]:
    """What is left after some steps; the worker whose turn it is comes first.

    Example::

        after([[[(0, 8)], [(8, 16)]]], 3, 4)  # [[[(12, 16)], []]]: two batches of the first worker, one of the second
    """
    found = []
    for of_rank in left:
        workers = len(of_rank)
        rest = [cut(spans, len(range(i, steps, workers)) * batch_size, count(spans)) for i, spans in enumerate(of_rank)]
        turn = steps % workers
        found.append(rest[turn:] + rest[:turn])
    return found
