"""Options of train.py with any value, any number of values, twice, misspelled or cut."""

from typing import Any, get_args, get_type_hints

from hypothesis import given
from hypothesis import strategies as st

from stem_torchrec.config import TrainConfig
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


def choices_of(annotation: Any) -> list[str]:
    """The words that a field takes, if it takes a few only."""
    return [word for arg in (annotation, *get_args(annotation)) for word in get_args(arg) if isinstance(word, str)]


def options() -> dict[str, list[str]]:
    """Every option of train.py with all models, and the words that it takes."""
    named = {}
    for section, kind in get_type_hints(TrainConfig).items():
        for cls in all_options().values() if section == "model" else [kind]:
            hints = get_type_hints(cls) if hasattr(cls, "__dataclass_fields__") else {"": kind}
            for name, annotation in hints.items():
                option = ".".join(filter(None, (section, name))).replace("_", "-")
                named[f"--{option}"] = choices_of(annotation)
    return named


OPTIONS = options()


@st.composite
def option(draw: st.DrawFn) -> list[str]:
    """An option with its values."""
    name = draw(st.sampled_from(sorted(OPTIONS)))
    if name in PATHS:
        values = [draw(st.sampled_from(PLACES) | words)]
    elif draw(st.booleans()) and OPTIONS[name]:
        values = [draw(st.sampled_from(OPTIONS[name]))]
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
