"""What errors say of cells and lines, and which whole numbers a double holds."""

import math
from contextlib import suppress

EXACT = 2**53
"""From it on a double does not tell neighbouring whole numbers apart."""
WORDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "timestamp": "a time such as 2022-05-03 10:00:00",
    "date": "a day such as 2022-05-03",
    "list<int>": "a list of whole numbers",
    "list<float>": "a list of numbers",
    "list<text>": "a list of texts",
}


def is_beyond_double(text: str) -> bool:
    """Whether a text is a number that a double may not hold exactly."""
    with suppress(ValueError):
        return math.isfinite(float(text)) and abs(float(text)) >= EXACT
    return False


def words_of(kind: str, cell: str) -> str:
    """What a cell is not that was refused.

    Example::

        words_of("int", "x")  # "a whole number"
        words_of("int", "9223372036854775808")  # "a whole number from -2^63 to 2^63 - 1"
    """
    limits = " from -2^63 to 2^63 - 1" if kind in ("int", "list<int>") and is_beyond_double(cell) else ""
    return WORDS.get(kind, kind) + limits


def wrong_cell(place: str, cell: str, what: str) -> str:
    """The sentence for a cell that is not of the type of its column.

    Example::

        wrong_cell("log.csv, line 2", "column 'age' has 'x'", "a number")
        # "log.csv, line 2: column 'age' has 'x', which is not a number; correct it or its type."
    """
    return f"{place}: {cell}, which is not {what}; correct it or its type."


def ragged_line(place: str, given: int, expected: int) -> str:
    """The sentence for a line with too many or too few cells."""
    cells = f"{given} cell{'s' if given != 1 else ''}"
    return f"{place}: the line has {cells}, not {expected}; correct it, or the delimiter and quote of the source."


def unclosed_quote(place: str) -> str:
    """The sentence for a cell that begins with a quote and does not end."""
    return (
        f"{place}: a quote is not closed, or text follows it; correct it, or say quote: '' if quotes are no more "
        "than characters."
    )


def long_line(place: str) -> str:
    """The sentence for a line that the engine has no room for."""
    return f"{place}: the line has more than 2 MiB; shorten it, or correct the quote of the source."
