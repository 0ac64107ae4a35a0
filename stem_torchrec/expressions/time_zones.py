"""A time zone as a table of its changes, so that every evaluator reaches local time by a comparison and a sum."""

import functools
from datetime import UTC, datetime
from zoneinfo import ZoneInfo, available_timezones

from stem_torchrec.runtime.errors import UserError, nearest

_FIRST_YEAR, _END_YEAR = 1970, 2100
_DAY = 86400


def zone_parameters(name: str) -> dict[str, str | tuple[int, ...]]:
    """The parameters of `in_zone`: the zone, when its offset changes, and its offsets, in microseconds.

    Changes from 1970 to 2099 are known; before and after them the first and the last offset hold. Raises UserError for
    a zone that the machine's table of time zones lacks.

    Example::

        zone_parameters("Asia/Tokyo")  # {"zone": "Asia/Tokyo", "edges": (0,), "offsets": (32400000000,)}
    """
    if name not in available_timezones():
        close = nearest(name, sorted(available_timezones()))
        raise UserError(f"{name!r} is no time zone{close or ', such as Asia/Shanghai or UTC.'}")
    changes = _changes(name)
    return {
        "zone": name,
        "edges": tuple(second * 1_000_000 for second, _ in changes),
        "offsets": tuple(offset * 1_000_000 for _, offset in changes),
    }


@functools.cache
def _changes(name: str) -> tuple[tuple[int, int], ...]:
    """Seconds since 1970 and the offset from then on; found by looking at each day, about 50 ms."""
    zone = ZoneInfo(name)
    end = int(datetime(_END_YEAR, 1, 1, tzinfo=UTC).timestamp())
    assert _FIRST_YEAR == 1970
    changes = [(0, _offset(zone, 0))]
    for day in range(0, end, _DAY):
        if _offset(zone, day + _DAY) != changes[-1][1]:
            changes.append(_next_change(zone, day, day + _DAY))
    return tuple(changes)


def _next_change(zone: ZoneInfo, before: int, after: int) -> tuple[int, int]:
    """The second of a change between two seconds, and the offset from then on."""
    old = _offset(zone, before)
    while after - before > 1:
        middle = (before + after) // 2
        before, after = (middle, after) if _offset(zone, middle) == old else (before, middle)
    return after, _offset(zone, after)


def _offset(zone: ZoneInfo, second: int) -> int:
    offset = datetime.fromtimestamp(second, zone).utcoffset()
    assert offset is not None
    return round(offset.total_seconds())
