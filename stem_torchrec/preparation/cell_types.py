"""What the types of columns are called in errors, and which whole numbers a double holds."""

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
