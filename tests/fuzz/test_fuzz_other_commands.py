"""Command lines of the commands but train and prepare, and of the scripts in datasets/ and benchmarks/."""

from dataclasses import fields

from hypothesis import given
from hypothesis import strategies as st

from contest.run import ThroughputConfig
from fuzz.case import PLAN, TRAIN, Case, Edit
from fuzz.targets import check, target
from fuzz.values import texts, words
from recovery.pauses import PauseConfig
from recovery.soak import FaultsConfig
from studies.exact_metrics import MetricsConfig
from studies.task_conflict import ConflictConfig

Options = dict[str, tuple[str, ...]]
"""Options, each with values that it takes; a value may be several words, or none."""

OUT = ("new", "new/sub", "~/new", "log/new")
COMMANDS: dict[str, tuple[tuple[str, ...], Options]] = {
    "evaluate": (
        ("--run", "run", "--data.path", "log", "--json", "out.json", "--predictions", "out"),
        {
            "--run": ("run", "paused"),
            "--run-dir": ("run",),
            "--data.path": ("log", "./log/"),
            "--split": ("valid", "test", "train"),
            "--data.batch-size": ("1", "7", "64", "1000"),
            "--json": ("new.json", "run/new.json", "new/new.json"),
            "--predictions": OUT,
        },
    ),
    "calibrate": (
        ("--run", "run", "--data.path", "log", "--out", "out.json"),
        {
            "--run": ("run", "paused"),
            "--run-dir": ("run",),
            "--data.path": ("log", "./log/"),
            "--method": ("platt", "isotonic"),
            "--judge-on": ("test",),
            "--data.batch-size": ("7", "1000"),
            "--out": ("new.json", "run/calibration.json", "new/new.json"),
            "--take-over": ("",),
        },
    ),
    "convert": (
        ("--run", "run", "--out", "out"),
        {"--run": ("run", "paused"), "--layout": ("packed", "split"), "--out": (*OUT, "run/new")},
    ),
    "export": (
        ("--run", "run", "--log", "log", "--out", "out"),
        {
            "--run": ("run", "paused"),
            "--run-dir": ("run",),
            "--log": ("log", "./log/"),
            "--out": (*OUT, "run/new"),
            "--tasks": ("like", "finish like"),
            "--tables": ("fp16", "int8"),
            "--calibration": ("none",),
        },
    ),
    "apply_delta": (
        ("--delta", "run/deltas", "--to", "copy"),
        {
            "--delta": ("./run/deltas/", "run/deltas/000002", "run/deltas/000000", "run"),
            "--to": ("bundle", "./copy/", "run", "log", *OUT),
            "--until": ("0", "1", "2", "7"),
            "--take-over": ("",),
        },
    ),
    "score": (
        ("--bundle", "bundle", "--input", "log/valid/a.parquet", "--output", "out.parquet"),
        {
            "--bundle": ("./bundle/",),
            "--input": ("log/train/a.parquet",),
            "--output": ("new.parquet", "new.csv", "log/valid/a.parquet", "bundle/tables.safetensors"),
            "--keep": ("uid", "finish"),
            "--on-bad-row": ("null",),
            "--output-format": ("jsonl",),
            "--batch-rows": ("1", "7"),
            "--overwrite": ("",),
        },
    ),
    "inspect_run": (
        ("run", "--data.path", "log", "--out", "out.html", "--json", "out.json"),
        {
            "--data.path": ("log", "./log/"),
            "--split": ("valid", "test", "train"),
            "--rows": ("1", "30"),
            "--tasks": ("like", "finish like"),
            "--tables-only": ("",),
            "--top": ("0", "3"),
            "--out": ("new.html", "run/new.html", "log/valid/a.parquet"),
            "--json": ("new.json", "run/new.json", "new/new.json"),
        },
    ),
    "report": (
        ("run", "--out", "out.html"),
        {"--out": ("new.html", "run/report.html", "log/valid/a.parquet"), "--projector-rows": ("1", "100000")},
    ),
    "tune": (
        (*TRAIN, "--train.max-steps", "1", "--trials", "1", "--out", "out"),
        {
            "--out": OUT,
            "--trials": ("1", "2"),
            "--space": ("run/config.yaml",),
            "--keep-runs": ("",),
            "--train.metric": ("logloss", "auc/like"),
            "--model.arch": ("mmoe", "ple"),
            "--data.path": ("./log/",),
        },
    ),
    "compare": (
        (
            *(*TRAIN, "--train.max-steps", "1", "--resamples", "20", "--models", "stem", "--base", "stem"),
            *("--seeds", "0", "--out", "out"),
        ),
        {
            "--models": ("stem,mmoe", "mmoe,stem_trains_all"),
            "--base": ("stem", "mmoe"),
            "--seeds": ("1",),
            "--out": OUT,
            "--pair": ("like,finish",),
            "--item": ("uid", "tags"),
            "--data.path": ("./log/",),
            "--split": ("test", "valid"),
            "--confidence": ("0.5",),
            "--resamples": ("1", "30"),
            "--tune": ("",),
        },
    ),
    "synthetic": (
        ("--out", "out", "--train-rows", "50", "--valid-rows", "20", "--test-rows", "20"),
        {
            "--out": ("log", *OUT),
            "--tasks": ("b a",),
            "--positive-rate": ("0.5 0.9",),
            "--missing": ("0 0.9",),
            "--conflict": ("0", "1"),
            "--tags": ("1", "9"),
            "--max-tags": ("0", "2"),
            "--users": ("1", "9"),
            "--zipf-exponent": ("0", "2"),
            "--signal": ("0", "9"),
            "--dense-features": ("0", "3"),
            "--overwrite": ("",),
            "--seed": ("1",),
            "--latent-dim": ("3",),
            "--train-rows": ("1", "500"),
        },
    ),
    "kuairand": (
        ("--raw", "raw", "--out", "out", "--no-report"),
        {
            "--raw": ("raw", "./raw/"),
            "--out": ("log", *OUT),
            "--labels": ("is_click", "is_like,long_view"),
            "--features": ("user_id", "tab,hour"),
            "--min-count": ("1", "3"),
            "--train-until": ("20220502",),
            "--valid-until": ("20220504", "20220506"),
            "--overwrite": ("",),
        },
    ),
    "plan": (
        ("--tables", "tables.yaml", *PLAN),
        {
            "--tables": ("./tables.yaml",),
            "--nodes": ("2", "1 2"),
            "--ranks-per-node": ("1", "4"),
            "--tasks": ("2", "3"),
            "--labels": ("like",),
            "--hbm-gb": ("0.001", "1"),
            "--grow-rows": ("0.1 2",),
            "--types": ("auto", "row_wise", "data_parallel"),
            "--calibrate": ("log",),
            "--out": OUT,
        },
    ),
    "sharding": (
        ("--recipe", "tiny", "--tables", "tables.yaml", "--out", "out"),
        {
            "--tables": ("./tables.yaml",),
            "--cases": ("*_wise/split", "auto"),
            "--types": ("all", "row_wise auto"),
            "--layouts": ("split", "packed"),
            "--input-dists": ("once",),
            "--tasks": ("1", "3 2"),
            "--optimizers": ("sgd", "adam adagrad"),
            "--kernels": ("dense",),
            "--communications": ("bf16",),
            "--steps": ("1",),
            "--warmup": ("1",),
            "--rounds": ("2",),
            "--timeout": ("1",),
            "--data.path": ("log",),
            "--data.labels": ("like", "a b"),
            "--model.arch": ("mmoe",),
            "--sharding.plan": ("run/plan.json",),
        },
    ),
}
"""For each command a command line that works, and the options that are changed."""
EDITS: dict[str, list[Edit]] = {
    # The folder of another sweep is refused after all options and tables are read, before a case starts processes.
    "sharding": [{"do": "write", "path": "out/sweep.json", "text": '{"sweep": {}, "head": {}}'}],
}
MEASUREMENTS = {
    "throughput": ThroughputConfig,
    "metrics": MetricsConfig,
    "conflict": ConflictConfig,
    "faults": FaultsConfig,
    "checkpoint_pause": PauseConfig,
}
"""Benchmarks of minutes to hours. Their examples have no --out, which ends them once the other options are read."""


def command_of(kind: str) -> tuple[tuple[str, ...], Options]:
    """A command line, and the options that are changed."""
    if kind in COMMANDS:
        return COMMANDS[kind]
    names = [field.name.replace("_", "-") for field in fields(MEASUREMENTS[kind]) if field.name != "out"]
    return (), {f"--{name}": ("1", "2 3") for name in names}


@st.composite
def other_commands(draw: st.DrawFn) -> Case:
    """A command with one or two options changed, by mistake or not, or left out."""
    command = draw(st.sampled_from([*sorted(COMMANDS), "measurement"]))
    if command == "measurement":
        command = draw(st.sampled_from(sorted(MEASUREMENTS)))
    base, options = command_of(command)
    args = list(base)
    for name in draw(st.lists(st.sampled_from(sorted(options)), min_size=1, max_size=2)):
        places = st.sampled_from(["", "run", "log", "new", "log/schema.json", "~/new", "foo://b", "run/best"])
        match draw(st.sampled_from(["right", "right", "right", "mistake", "mistake", "left out"])):
            case "right":
                args += [name, *draw(st.sampled_from(options[name])).split()]
            case "left out" if name in args:
                del args[args.index(name) : args.index(name) + 2]
            case _:
                args += [name, *draw(st.lists(words | texts | places, max_size=2))]
    return Case(command, args, EDITS.get(command, []))


@target("other commands")
@given(other_commands())
def test_every_command_works_or_answers_by_a_sentence(case: Case) -> None:
    check("other commands", case)
