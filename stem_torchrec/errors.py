"""What a user got wrong, in one sentence; the command line prints it without a traceback."""


class UserError(ValueError):
    """A value that a user wrote and can mend: the message names the value, the place and the fix."""


class DivergedError(UserError):
    """Predictions that are no numbers any more; all ranks meet it alike."""


class DataError(UserError):
    """A row, column or file that breaks the schema, or a disk that is full; only the rank that meets it can name it."""
