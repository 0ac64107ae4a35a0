"""What this process is doing, for whoever has to say where it hangs."""

from dataclasses import dataclass


@dataclass
class Activity:
    """The latest thing that the main thread has begun."""

    number: int = 0
    """How many it has begun."""
    what: str = "starting"


current = Activity()


def note(what: str) -> None:
    """The main thread begins something, such as `reading a batch after step 120`."""
    current.number, current.what = current.number + 1, what
