"""config.yaml, schema.json, plan.json, --space, --tables and files of a run, with a value, key or line changed."""

import json

import yaml
from hypothesis import given
from hypothesis import strategies as st

from fuzz.case import PLAN, RUN, TRAIN, Case, train
from fuzz.targets import bench, check, target
from fuzz.values import changed, damaged

TUNE = ("tune", "--trials", "1", "--out", "out", "--space", "file.yaml", *TRAIN)
SPACE = "dense.learning_rate: {low: 0.001, high: 0.01, log: true}\nmodel.num_shared_experts: [1, 2]\n"
CONFIG = ("--config", "file.yaml", "--data.path", "log", "--output-dir", "out", "--train.max-steps", "2")
APPLY = ("apply_delta", "--delta", "run/deltas", "--to")
PAUSED = ("train", *RUN, "--output-dir", "paused")
FILES = {
    "config.yaml": ("run/config.yaml", "file.yaml", ("train", *CONFIG)),
    "schema.json": ("log/schema.json", "log/schema.json", ("train", *train().args)),
    "plan.json": ("run/plan.json", "file.json", ("train", *train("--sharding.plan", "file.json").args)),
    "space": (SPACE, "file.yaml", TUNE),
    "tables": ("tables.yaml", "file.yaml", ("plan", "--tables", "file.yaml", *PLAN)),
    "metrics.json": ("run/metrics.json", "run/metrics.json", ("train", *RUN, "--output-dir", "run")),
    "start.json": ("run/start.json", "run/start.json", ("train", *RUN, "--output-dir", "out", "--start-from", "run")),
    "start.json of a run": ("paused/start.json", "paused/start.json", PAUSED),
    "metrics.jsonl": ("paused/metrics.jsonl", "paused/metrics.jsonl", PAUSED),
    "progress.json": ("paused/checkpoints/*/progress.json", None, PAUSED),
    "manifest.json of a delta": ("run/deltas/000002/manifest.json", None, (*APPLY, "copy")),
    "manifest.json of a bundle": ("bundle/manifest.json", None, (*APPLY, "bundle")),
    "delta.json": ("copy/best/delta.json", None, (*APPLY, "copy")),
    "schema.json of a run": ("run/schema.json", "run/schema.json", ("evaluate", "--run", "run", "--data.path", "log")),
    "config.yaml of a run": ("run/config.yaml", "run/config.yaml", ("evaluate", "--run", "run", "--data.path", "log")),
}
"""For each kind of file: its text or an example of it, where it is written, and the command that reads it."""


@st.composite
def structured_files(draw: st.DrawFn) -> Case:
    """A command that reads a changed file."""
    kind = draw(st.sampled_from(sorted(FILES)))
    source, path, (command, *args) = FILES[kind]
    text = source
    if source != SPACE:
        [file] = bench().template.glob(source)
        text, path = file.read_text(), path or str(file.relative_to(bench().template))
    assert path is not None
    if draw(st.integers(0, 2)) == 0:
        text = draw(damaged(text))
    elif path.endswith(".yaml"):
        text = to_yaml(draw(changed(yaml.safe_load(text))))
    elif path.endswith(".jsonl"):
        lines = text.splitlines()
        i = draw(st.integers(0, len(lines) - 1))
        text = "\n".join([*lines[:i], json.dumps(draw(changed(json.loads(lines[i])))), *lines[i + 1 :]]) + "\n"
    else:
        text = json.dumps(draw(changed(json.loads(text))), indent=1)
    return Case(command, list(args), [{"do": "write", "path": path, "text": text}])


def to_yaml(content: object) -> str:
    """As YAML; integers with more digits than Python writes stay out of the values."""
    return yaml.safe_dump(content, allow_unicode=True)


@target("structured files")
@given(structured_files())
def test_every_structured_file_is_read_as_written_or_refused(case: Case) -> None:
    check("structured files", case)
