"""What errors say of cells and lines, and which whole numbers a double holds."""

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
