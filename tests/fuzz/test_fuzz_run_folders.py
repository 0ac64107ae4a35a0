"""Run folders with files that are missing, cut, damaged or another run's; and runs that are interrupted anywhere."""

from hypothesis import given
from hypothesis import strategies as st

from fuzz.case import RUN, TRAIN, Case, Edit
from fuzz.targets import bench, check, target

LOG = ("--data.path", "log")
COMMANDS = (
    Case("train", [*RUN, "--output-dir", "paused"]),
    Case("train", [*RUN, "--output-dir", "run"]),
    Case("train", [*RUN, "--output-dir", "out", "--resume", "paused/checkpoints"]),
    Case("train", [*RUN, "--output-dir", "out", "--start-from", "run"]),
    Case("train", [*RUN, "--output-dir", "out", "--start-from", "run:best"]),
    Case("evaluate", ["--run", "run", *LOG, "--json", "out.json", "--predictions", "out"]),
    Case("convert", ["--run", "run", "--out", "out"]),
    Case("inspect_run", ["run", *LOG, "--out", "out.html"]),
    Case("inspect_run", ["run", "paused", "--tables-only", "--json", "out.json"]),
    *(Case("apply_delta", ["--delta", "run/deltas", "--to", to]) for to in ("copy", "bundle", "out")),
)
APPLIED = ("run/deltas", "copy", "bundle")
"""What apply_delta reads."""


@st.composite
def run_edits(draw: st.DrawFn, folders: tuple[str, ...]) -> Edit:
    """A change of a file or folder below some of the workspace."""
    template = bench().template
    paths = sorted(str(p.relative_to(template)) for name in folders for p in template.joinpath(name).rglob("*"))
    # The name of a TensorBoard file has the time.
    paths = [path for path in paths if "tfevents" not in path]
    edit: Edit = {"do": draw(st.sampled_from(["truncate", "flip", "delete", "folder", "link", "copy"]))}
    edit["path"] = draw(st.sampled_from(paths))
    if edit["do"] in ("truncate", "flip"):
        edit |= {
            "share": draw(st.sampled_from([0.0, 1.0]) | st.floats(0, 1)),
            "bits": draw(st.sampled_from([1, 128, 255])),
        }
    if edit["do"] == "copy":
        edit["to"] = draw(st.sampled_from(paths))
        if edit["to"].startswith(edit["path"]) or edit["path"].startswith(edit["to"]):
            edit["do"] = "delete"
    if edit["do"] == "link":
        edit["to"] = draw(st.sampled_from(["nowhere", ".", "config.yaml", "/dev/null"]))
    return edit


@st.composite
def run_folders(draw: st.DrawFn) -> Case:
    """A command on a run whose files are changed."""
    command = draw(st.sampled_from(COMMANDS))
    folders = APPLIED if command.command == "apply_delta" else ("run", "paused")
    return Case(command.command, command.args, draw(st.lists(run_edits(folders), min_size=1, max_size=2)))


@target("run folders")
@given(run_folders())
def test_every_run_folder_is_used_as_it_was_or_refused(case: Case) -> None:
    check("run folders", case)


VARIATIONS = {
    "--data.batch-size": ("8", "16", "31"),
    "--train.epochs": ("1", "2"),
    "--train.eval-every": ("1", "2", "5"),
    "--model.arch": ("stem", "single_task", "mmoe", "ple", "aitm", "me_ple"),
    "--sparse.name": ("sgd", "adagrad", "rowwise_adagrad"),
    "--dense.name": ("adam", "adamw"),
    "--schedule.decay": ("constant", "linear", "cosine"),
    "--schedule.warmup-steps": ("0", "3"),
    "--model.dropout": ("0", "0.3"),
    "--model.embedding-dropout": ("0", "0.3"),
    "--model.embedding-l2": ("0", "0.1"),
    "--data.shuffle-rows": ("0", "40", "262144"),
    "--train.precision": ("fp32", "bf16"),
    "--train.clip-norm": ("1e-3", "1.0"),
    "--train.metric": ("auc", "logloss/like"),
    "--train.patience": ("1", "2"),
    "--sharding.input-dist": ("stock", "once"),
    "--checkpoint.steps": ("1", "2"),
    "--seed": ("0", "1"),
}


@st.composite
def interrupted_runs(draw: st.DrawFn) -> Case:
    """A run with some options, interrupted after some steps."""
    chosen = draw(st.dictionaries(st.sampled_from(sorted(VARIATIONS)), st.integers(0, 9), max_size=6))
    options = [word for name, i in chosen.items() for word in (name, VARIATIONS[name][i % len(VARIATIONS[name])])]
    return Case("resume", ["compare", str(draw(st.integers(1, 8))), *TRAIN, *options])


@target("resumed runs")
@given(interrupted_runs())
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(case: Case) -> None:
    check("resumed runs", case)
