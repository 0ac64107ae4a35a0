"""A search for plans in bounded time: tries TorchRec's greedy path at a few places, then more closely at the best one.

TorchRec's greedy proposer walks a path of proposals: each table starts with its fastest option, and in every step the
table that takes the most memory moves to its next option. It partitions all proposals, here one or two thousand, and
each takes a tenth of a second on 128 ranks. This search tries `looks` of them at equal distances, then closer and
closer around the best, and skips proposals that cannot fit or cannot win however they are partitioned. The time saved
goes into more paths, one for each type alone: without them, plans with tables in host memory were seen to take three
times as long as the best plan.

    plan_sharding(model, topology=topology, batch_size=4096, proposers=bounded_proposers(["table_wise"], seconds=60))
"""

import heapq
import math
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count

from torchrec.distributed.planner.types import Enumerator, Proposer, ShardingOption, Topology

from stem_torchrec.sharding.placement import COLUMN_TYPES


@dataclass
class Search:
    """What the proposers of one search share."""

    seconds: float
    """Time for all proposers together, from the first proposal on; listing the options before it is not included."""
    end: float | None = None
    """time.monotonic() at which all stop; None before the first proposal."""
    paths: int = 1
    """Number of proposers that have not begun; each gets its share of the time that is left."""
    best: float = math.inf
    """Estimate of the best plan so far, in ms."""

    def begin(self) -> float:
        """Starts the next path; returns the time.monotonic() at which it must end."""
        now = time.monotonic()
        if self.end is None:
            self.end = now + self.seconds
        share = (self.end - now) / self.paths
        self.paths -= 1
        return now + share


def bounded_proposers(types: Sequence[str], *, seconds: float) -> list[Proposer]:
    """A path for each type alone, then paths that mix the types that cut no columns, and paths that mix all types.

    Args:
        types: the sharding types that tables can have.
        seconds: time after which the search ends with the best plan so far.
    """
    search = Search(seconds)
    whole = [kind for kind in types if kind not in COLUMN_TYPES]
    mixed = dict.fromkeys(tuple(kinds) for kinds in (whole, types) if len(kinds) > 1)
    alone = [PathProposer([kind], search=search) for kind in types]
    paths = [*alone, *(PathProposer(kinds, by_sum=by, search=search) for kinds in mixed for by in (False, True))]
    search.paths = len(paths)
    return [*paths]


@dataclass(frozen=True)
class _Cost:
    """What the shards of an option take, whichever ranks they are put on."""

    hbm: tuple[int, int]
    """Bytes of GPU memory: of the largest shard, and of all shards."""
    ddr: tuple[int, int]
    """The same of host memory."""
    ms: float
    """Sum over the shards."""
    slowest: float
    """ms of the slowest shard."""


class PathProposer(Proposer):
    """Looks for the best proposal of TorchRec's greedy path.

    Args:
        types: the sharding types on the path.
        by_sum: sorts the options of a table by the total time of their shards instead of the slowest shard.
        looks: number of proposals that are tried before it looks more closely.
        search: shared with the other proposers.
    """

    def __init__(self, types: Sequence[str], *, by_sum: bool = False, looks: int = 24, search: Search) -> None:
        self._types, self._by_sum, self._looks, self._search = types, by_sum, looks, search

    def load(self, search_space: list[ShardingOption], enumerator: Enumerator | None = None) -> None:
        """Builds the path."""
        tables: dict[str, list[ShardingOption]] = {option.fqn: [] for option in search_space}
        self._costs = {id(option): _cost(option) for option in search_space if option.sharding_type in self._types}
        for option in search_space:
            if id(option) in self._costs:
                tables[option.fqn].append(option)
        for options in tables.values():
            options.sort(key=lambda o: self._costs[id(o)].ms if self._by_sum else self._costs[id(o)].slowest)
        self._tables = list(tables.values())
        self._path = []
        if all(self._tables):
            self._path = list(_path([[self._costs[id(o)] for o in options] for options in self._tables]))
        self._stride = max(1, len(self._path) // self._looks)
        self._queue = deque(range(0, len(self._path), self._stride))
        self._seen: set[int] = set()
        self._best: tuple[float, int] | None = None
        self._end: float | None = None
        self._ranks = 0
        self._room: dict[str, tuple[int, int]] = {}

    def propose(self) -> list[ShardingOption] | None:
        """The next proposal that may fit and may win, or None at the end."""
        if self._end is None:
            self._end = self._search.begin()
        while time.monotonic() < self._end and (self._queue or self._go_closer()):
            self._now = self._queue.popleft()
            self._seen.add(self._now)
            proposal = [options[i] for options, i in zip(self._tables, self._path[self._now], strict=True)]
            if self._may_win(proposal):
                return proposal
        return None

    def feedback(
        self,
        partitionable: bool,
        plan: list[ShardingOption] | None = None,
        perf_rating: float | None = None,
        storage_constraint: Topology | None = None,
    ) -> None:
        """Records the result of the last proposal, and on the first call the memory of the ranks."""
        if storage_constraint is not None and not self._room:
            self._ranks = len(storage_constraint.devices)
            for kind in ("hbm", "ddr"):
                room = [getattr(device.storage, kind) for device in storage_constraint.devices]
                self._room[kind] = max(room), sum(room)
        if partitionable and perf_rating is not None and (self._best is None or perf_rating < self._best[0]):
            self._best = perf_rating, self._now
            self._search.best = min(self._search.best, perf_rating)

    def _go_closer(self) -> bool:
        """Queues proposals between those tried so far: around the best one, or everywhere if none has fit yet."""
        while not self._queue and self._stride > 1:
            wide, self._stride = self._stride, max(1, self._stride // 4)
            first, last = 0, len(self._path)
            if self._best is not None:
                first, last = self._best[1] - wide, self._best[1] + wide + 1
            around = range(max(first, 0), min(last, len(self._path)), self._stride)
            self._queue.extend(i for i in around if i not in self._seen)
        return bool(self._queue)

    def _may_win(self, proposal: Sequence[ShardingOption]) -> bool:
        if not self._room:
            return True
        costs = [self._costs[id(option)] for option in proposal]
        for kind, (largest, total) in self._room.items():
            sizes = [getattr(cost, kind) for cost in costs]
            if max(shard for shard, _ in sizes) > largest or sum(table for _, table in sizes) > total:
                return False
        # A plan is rated by its busiest rank, which takes at least the mean and at least the slowest shard.
        least = max(sum(cost.ms for cost in costs) / self._ranks, max(cost.slowest for cost in costs))
        return least < self._search.best


def _cost(option: ShardingOption) -> _Cost:
    hbm, ddr = ([getattr(shard.storage, kind) for shard in option.shards] for kind in ("hbm", "ddr"))
    times = [shard.perf.total for shard in option.shards]
    return _Cost((max(hbm), sum(hbm)), (max(ddr), sum(ddr)), sum(times), max(times))


def _path(tables: Sequence[Sequence[_Cost]]) -> Iterator[tuple[int, ...]]:
    """The path, each step as the option number of each table: the largest table moves to its next option."""
    now = [0] * len(tables)
    order = count()

    def entry(table: int) -> tuple:
        cost = tables[table][now[table]]
        return tuple(-size for size in (*cost.hbm, *cost.ddr)), next(order), table

    heap = [entry(table) for table in range(len(tables))]
    heapq.heapify(heap)
    yield tuple(now)
    while heap:
        *_, table = heapq.heappop(heap)
        if now[table] + 1 < len(tables[table]):
            now[table] += 1
            heapq.heappush(heap, entry(table))
            yield tuple(now)
