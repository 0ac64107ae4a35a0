"""The command lines of evaluate.py, convert.py, tune.py, compare.py, the data sets and the planner."""

from hypothesis import given
from hypothesis import strategies as st

from fuzz.case import TRAIN, Case
from fuzz.targets import check, target
from fuzz.values import texts, words

SMALL = ("--train.max-steps", "1")
COMMANDS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "evaluate": (
        ("--run", "run", "--data.path", "log"),
        ("--run", "--run-dir", "--data.path", "--split", "--json", "--predictions", "--data.eval-batch-size"),
    ),
    "convert": (("--run", "run", "--out", "out"), ("--run", "--layout", "--out")),
    "tune": (
        (*TRAIN, *SMALL, "--trials", "1", "--out", "out"),
        ("--out", "--trials", "--space", "--train.metric", "--keep-runs", "--model.arch", "--data.path"),
    ),
    "compare": (
        (
            *TRAIN,
            *SMALL,
            "--resamples",
            "20",
            "--models",
            "stem",
            "--base",
            "stem",
            "--seeds",
            "0",
            "--split",
            "valid",
            "--out",
            "out",
        ),
        (
            "--models",
            "--base",
            "--seeds",
            "--out",
            "--pair",
            "--item",
            "--data.path",
            "--split",
            "--confidence",
            "--tune",
        ),
    ),
    "synthetic": (
        ("--out", "out", "--train-rows", "50", "--valid-rows", "20", "--test-rows", "20"),
        (
            *("--out", "--tasks", "--positive-rate", "--missing", "--conflict", "--tags", "--max-tags", "--users"),
            *("--zipf-exponent", "--signal", "--dense-features", "--overwrite", "--seed", "--latent-dim"),
        ),
    ),
    "kuairand": (
        ("--raw", "log", "--out", "out"),
        ("--raw", "--out", "--labels", "--min-count", "--train-until", "--valid-until", "--overwrite"),
    ),
    "plan": (
        ("--tables", "log/schema.json", "--out", "out", "--seconds", "1"),
        (
            "--tables",
            "--nodes",
            "--ranks-per-node",
            "--tasks",
            "--labels",
            "--hbm-gb",
            "--types",
            "--grow-rows",
            "--calibrate",
        ),
    ),
}
"""For each command its options that work, and those that are changed."""


@st.composite
def other_commands(draw: st.DrawFn) -> Case:
    """A command with one or two options changed, or left out."""
    command = draw(st.sampled_from(sorted(COMMANDS)))
    base, options = COMMANDS[command]
    args = list(base)
    for name in draw(st.lists(st.sampled_from(options), min_size=1, max_size=2)):
        places = st.sampled_from(["", "run", "log", "new", "log/schema.json", "~/new", "foo://b", "run/best"])
        if name in args and draw(st.integers(0, 4)) == 0:
            del args[args.index(name) : args.index(name) + 2]
        else:
            args += [name, *draw(st.lists(words | texts | places, max_size=2))]
    return Case(command, args)


@target("other commands")
@given(other_commands())
def test_every_command_works_or_answers_by_a_sentence(case: Case) -> None:
    check("other commands", case)
