"""Options of train.py with any value, any number of values, twice, misspelled or cut."""

from dataclasses import is_dataclass
from typing import Any, get_args, get_type_hints

from hypothesis import given
from hypothesis import strategies as st

from stem_torchrec.config import TrainConfig
from stem_torchrec.config.fields import limits_in
from stem_torchrec.models.table import all_options

from fuzz.case import Case, train
from fuzz.targets import check, target
from fuzz.values import texts, words

PATHS = ("--data.path", "--output-dir", "--checkpoint.folder", "--resume", "--sharding.plan", "--config")
PLACES = (
    "",
    ".",
    "log",
    "log/",
    "./log",
    "log/schema.json",
    "run",
    "paused",
    "run/config.yaml",
    "new/sub",
    "log/../new",
)
PLACES += (
    "~",
    "~/new",
    "ü x",
    "a\nb",
    "x" * 300,
    "foo://b/k",
    "new/",
    "run/plan.json",
    "paused/checkpoints",
    "run/best",
)


UNBOUNDED = ("--train.epochs", "--data.num-workers", "--model.num-layers")
"""Options whose largest value is a training of hours, or a thousand processes."""


def choices_of(option: str, annotation: Any) -> list[str]:
    """The words that a field takes, if it takes a few only, or the numbers around its limits."""
    limits = limits_in(annotation)
    if limits is None or option in UNBOUNDED:
        return [word for arg in (annotation, *get_args(annotation)) for word in get_args(arg) if isinstance(word, str)]
    bounds = [bound for bound in (limits.ge, limits.gt, limits.le, limits.lt) if isinstance(bound, int | float)]
    return [str(number) for bound in bounds for number in (bound, bound - 1, bound + 1)]


def options() -> dict[str, list[str]]:
    """Every option of train.py with all models, and the words that it takes."""
    named = {}
    for section, kind in get_type_hints(TrainConfig, include_extras=True).items():
        for cls in all_options().values() if section == "model" else [kind]:
            hints = get_type_hints(cls, include_extras=True) if is_dataclass(cls) else {"": kind}
            for name, annotation in hints.items():
                option = "--" + ".".join(filter(None, (section, name))).replace("_", "-")
                named[option] = choices_of(option, annotation)
    return named


OPTIONS = options()


@st.composite
def option(draw: st.DrawFn) -> list[str]:
    """An option with its values."""
    name = draw(st.sampled_from(sorted(OPTIONS)))
    if name in PATHS:
        values = [draw(st.sampled_from(PLACES) | words)]
    elif draw(st.integers(0, 2)):
        values = [draw(st.sampled_from(OPTIONS[name] or ["1", "2", "0.5"]))]
    else:
        values = draw(st.lists(words | texts, max_size=3))
    match draw(st.sampled_from(["plain"] * 6 + ["equals", "cut", "upper", "twice", "typo"])):
        case "equals" if values:
            return [f"{name}={values[0]}", *values[1:]]
        case "cut":
            return [name[: draw(st.integers(1, len(name)))], *values]
        case "upper":
            return [name.upper(), *values]
        case "twice":
            return [name, *values, name, *values]
        case "typo":
            return [name.replace("e", "a"), *values]
    return [name, *values]


@st.composite
def command_lines(draw: st.DrawFn) -> Case:
    """A training with one to three options."""
    return train(*[word for words in draw(st.lists(option(), min_size=1, max_size=3)) for word in words])


@target("command lines")
@given(command_lines())
def test_every_command_line_trains_or_is_answered_by_a_sentence(case: Case) -> None:
    check("command lines", case)
