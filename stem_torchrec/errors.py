"""What a user got wrong, in one sentence; the command line prints it without a traceback."""


class UserError(ValueError):
    """A value that a user wrote and can mend: the message names the value, the place and the fix."""


class DataError(UserError):
    """A row, column or file that breaks the schema; only the rank that reads it can name the place."""
