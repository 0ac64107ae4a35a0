"""What the name of a column says: a user, an id, a time, a quantity, a category, or feedback of the exposure."""

import re


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_PIECE = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+|[^\W\d_]+")
_USERS = _words(
    """
    user_id userid user uid member_id customer_id visitor_id visitorid account_id profile_id cookie_id viewer_id
    user_index user_no
    """
)
"""Names of the user, the most usual first."""
_OF_IDS = _words(
    """
    user item movie product video song track ad news article shop seller author category cate brand session visitor
    customer member account poi store playlist artist book photo live goods sku adgroup campaign device music
    """
)
"""What an id is of, where no underscore stands between: `itemid`."""
_IDS = {"id", "ids", "uid", "uuid", "guid", "iid", "vid", "pid", "aid", "sku", "asin", "isbn", "index", "idx"}
_CATEGORIES = {
    *_OF_IDS,
    *_words(
        """
    city country region state province zip zipcode postcode code type kind class level group channel os browser
    language gender sex tab page position pos slot segment cluster tag tags genre genres onehot categorical cat
    occupation job education status month weekday hour domain site app platform model version
    """
    ),
}
_QUANTITIES = _words(
    """
    age count counts cnt num number price cost amount duration length size score rate ratio hours days gain loss
    total sum avg mean quantity qty weight height distance numerical income salary balance budget volume percent pct
    ctr cvr seconds minutes ms width discount stock
    """
)
_FEEDBACK = _words(
    """
    click clicks clicked clk like likes liked follow followed comment commented forward share shared hate dislike
    buy bought purchase purchased cart conversion converted convert finish finished install installed subscribe
    subscribed save saved favorite favourite watched viewed completed enter skip skipped churn churned default label
    labels target reward rating ratings stars outcome response feedback view y
    """
)
_TOLD_BY_NAME = {"label", "labels", "target", "reward", "rating", "ratings", "stars", "outcome", "response", "feedback"}
_SPENT = {"play", "playing", "watch", "watching", "stay", "dwell", "view", "viewing", "reading", "listen", "listening"}
_LENGTHS = {"time", "times", "duration", "ms", "sec", "seconds", "ratio", "length", "percent"}
_TIMES = {"time", "timestamp", "ts", "date", "day", "datetime", "dt", "ds", "at", "created", "ms"}

_DAYS = {"date", "day", "dt", "ds", "p", "log", "event"}
_OTHER_TIMES = {
    *("birth", "born", "birthday", "upload", "uploaded", "signup", "register", "registered", "registration", "create"),
    *("created", "publish", "published", "release", "released", "expire", "expires", "update", "updated", "joined"),
    *("start", "end", "first", "last", "install"),
}


def words_of(name: str) -> list[str]:
    """The words of a name in small letters.

    Example::

        words_of("playTime_ms")  # ["play", "time", "ms"]
    """
    return [piece.lower() for piece in _PIECE.findall(name)]


def user_rank(name: str) -> int | None:
    """How usual a name is for the user, 0 for the most usual one; None for another name."""
    joined = "_".join(words_of(name))
    return _USERS.index(joined) if joined in _USERS else None


def names_id(name: str) -> bool:
    """Whether a name ends as those of ids do, as `item_id`, `itemId` and `itemid`."""
    words = words_of(name)
    if not words:
        return False
    last = words[-1]
    return last in _IDS or (last.endswith("id") and last.removesuffix("id") in _OF_IDS)


def names_category(name: str) -> bool:
    """Whether a name is one of things that are told apart, as `city` and `device_type`."""
    words = words_of(name)
    return bool(words) and not names_quantity(name) and any(word in _CATEGORIES for word in words)


def names_quantity(name: str) -> bool:
    """Whether a name is one of numbers that measure, as `price` and `hours_per_week`."""
    return any(word in _QUANTITIES for word in words_of(name))


def names_time(name: str) -> bool:
    """Whether a name is one of times or days."""
    return any(word in _TIMES for word in words_of(name))


def time_rank(name: str) -> int:
    """0 for the name of the day of a row, 1 for other times, 2 for the time of something else, as `upload_dt`."""
    words = set(words_of(name))
    if words & _OTHER_TIMES:
        return 2
    return 0 if words <= _DAYS else 1


def names_feedback(name: str) -> bool:
    """Whether a name is one of feedback, as `is_click`; that is enough for a column of 0 and 1."""
    return any(word in _FEEDBACK for word in words_of(name))


def names_result(name: str) -> bool:
    """Whether a name is one of what an exposure leads to, whatever its values: `rating`, `target`, `play_time_ms`."""
    words = set(words_of(name))
    return bool(words & _TOLD_BY_NAME) or bool(words & _SPENT and words & _LENGTHS)


def feature_name(name: str) -> str:
    """The name of a feature for a column: letters, digits and underscores.

    Example::

        feature_name("marital-status")  # "marital_status"
    """
    return re.sub(r"\W+", "_", name).strip("_") or "column"
