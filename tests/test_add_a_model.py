"""The model of docs/add_a_model.md trains from the command line and in a comparison, once it is in the table."""

import importlib.util
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from stem_torchrec import compare, train
from stem_torchrec.config import Arch, ModelConfig, Width
from stem_torchrec.config.model import with_options_of
from stem_torchrec.models import table
from stem_torchrec.models.dcmt import DCMTOptions
from stem_torchrec.models.escm2 import ESCM2Options
from stem_torchrec.models.stem import STEMOptions
from stem_torchrec.models.table import MODELS, groups_with_tables, options_of, with_arch
from stem_torchrec.runtime.errors import UserError
from stem_torchrec.training.configuration import config_from_command_line, load_config

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "add_a_model.md").read_text()
FILE, LINE = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
HEADER = "| `--model.arch` | tables of | source |\n| --- | --- | --- |\n"


@pytest.fixture
def cross(tmp_path: Path) -> Iterator[None]:
    """The page's model in its file and in the table."""
    file = tmp_path / "cross.py"
    file.write_text(FILE)
    spec = importlib.util.spec_from_file_location("cross", file)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["cross"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    [line] = eval(f"[{LINE}]", {**vars(table), **vars(module)})
    MODELS[line.options.arch] = line
    yield
    del MODELS["cross"], sys.modules["cross"]


def call(command, monkeypatch: pytest.MonkeyPatch, *args: str | Path) -> None:
    monkeypatch.setattr(sys, "argv", ["command", *map(str, args)])
    command.main()


TINY = ["--recipe", "tiny", "--train.max-steps", "4", "--data.synthetic.train-rows", "2048"]


def test_a_model_is_at_most_thirty_lines() -> None:
    lines = [line for line in FILE.splitlines() if line.strip()]
    assert len(lines) + len(LINE.splitlines()) <= 30


@pytest.mark.usefixtures("cross")
def test_the_model_of_the_page_trains_and_is_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    call(train, monkeypatch, *TINY, "--model.arch", "cross", "--model.cross-width", "4", "--output-dir", "run")
    model = load_config("run/config.yaml").model
    assert (model.arch, model.cross_width, model.embedding_dim) == ("cross", 4, 8)  # type: ignore[attr-defined]
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["finished"]
    call(
        compare, monkeypatch, *TINY, "--models", "stem,cross", "--base", "stem", "--seeds", "0", "--resamples", "10",
        "--out", "compared",
    )  # fmt: skip
    assert "cross" in (tmp_path / "compared" / "report.md").read_text()


@pytest.mark.usefixtures("cross")
def test_help_shows_the_options_of_one_model_and_the_names_of_all(capsys: pytest.CaptureFixture[str]) -> None:
    width, reads = "--model.cross-width", "--model.reads"
    for arch, shown, hidden in (("cross", width, reads), ("stem", reads, width)):
        with pytest.raises(SystemExit):
            config_from_command_line(["--model.arch", arch, "--help"])
        text = capsys.readouterr().out
        assert shown in text
        assert hidden not in text
        assert all(f"  {name}: {line.about}" in text for name, line in MODELS.items())


@pytest.mark.parametrize("arch", MODELS)
def test_a_recipe_keeps_its_values_when_it_trains_another_model(arch: str) -> None:
    stem = config_from_command_line(["--recipe", "tiny"]).model
    model = config_from_command_line(["--recipe", "tiny", "--model.arch", arch, "--model.dropout", "0.1"]).model
    assert type(model) is MODELS[arch].options
    assert model == with_arch(stem, arch, dropout=0.1)
    assert model.expert_hidden == (16,)  # type: ignore[attr-defined]


@dataclass(frozen=True)
class WideOptions(ModelConfig):
    arch: Arch = "wide"
    tower_hidden: tuple[Width, ...] = (256,)


def test_a_model_keeps_its_own_defaults_where_the_options_before_had_theirs() -> None:
    assert with_options_of(STEMOptions(), WideOptions) == WideOptions()
    assert with_options_of(ModelConfig(embedding_dim=8), WideOptions) == WideOptions(embedding_dim=8)
    assert with_options_of(STEMOptions(tower_hidden=(32,)), WideOptions) == WideOptions(tower_hidden=(32,))
    assert with_arch(ESCM2Options(least_propensity=0.1), "dcmt") == DCMTOptions(least_propensity=0.1)


def test_an_option_of_another_model_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        config_from_command_line(["--model.arch", "mmoe", "--model.gate-input", "sum"])
    assert str(error.value) == "--model.gate-input is an option of stem, duet, not of mmoe."
    with pytest.raises(UserError, match=r"--model.num-layers is an option of stem, duet, ple, me_ple, not of aitm"):
        config_from_command_line(["--model.num-layers=2", "--model.arch=aitm"])
    with pytest.raises(UserError, match=r"--model.arch is 'mmo', but must be one of stem, .*; did you mean 'mmoe'"):
        config_from_command_line(["--model.arch", "mmo"])


def test_files_from_before_formats_have_options_of_all_models_and_later_ones_only_their_own(tmp_path: Path) -> None:
    text = "model:\n  arch: mmoe\n  gate_input: task\n  num_shared_experts: 3\n"
    (tmp_path / "config.yaml").write_text(text)
    model = load_config(str(tmp_path / "config.yaml")).model
    assert model == with_arch(ModelConfig(), "mmoe", num_shared_experts=3)
    (tmp_path / "config.yaml").write_text(f"format: 1\n{text}")
    with pytest.raises(UserError, match=r"model.gate_input is an option of stem, duet, not of mmoe"):
        load_config(str(tmp_path / "config.yaml"))
    (tmp_path / "config.yaml").write_text("model:\n  arch: mmoe\n  gate_imput: task\n")
    with pytest.raises(UserError, match=r"there is no field 'model.gate_imput'"):
        load_config(str(tmp_path / "config.yaml"))


def test_a_bare_model_stands_for_its_defaults_and_other_models_options_are_refused() -> None:
    # Where defaults differ, each model has its own; what is not a default is kept.
    assert with_arch(MODELS["stem"].options(), "duet").expert == "cross"  # type: ignore[attr-defined]
    assert with_arch(MODELS["duet"].options(), "stem").expert == "mlp"  # type: ignore[attr-defined]
    assert with_arch(MODELS["stem"].options(expert="norm"), "duet").expert == "norm"  # type: ignore[attr-defined]
    assert options_of(ModelConfig(arch="ple", embedding_dim=8)) == MODELS["ple"].options(embedding_dim=8)
    with pytest.raises(UserError, match=r"the model is 'mmoe' with the options STEMOptions, but must have MMoEOptions"):
        options_of(MODELS["stem"].options(arch="mmoe"))


def table_of_models() -> str:
    """The table of the pages, from the table of models."""
    tables = {"task+shared": "each task, shared", "task": "each task", "shared": "shared"}
    rows = [
        (name, tables["+".join(groups_with_tables(ModelConfig(arch=name), ["task"]))], MODELS[name].about)
        for name in MODELS
    ]
    return HEADER + "".join(f"| `{name}` | {groups} | {about} |\n" for name, groups, about in rows)


def test_the_pages_list_every_model() -> None:
    pages = sorted((ROOT / "docs").glob("*.md"))
    shown = [HEADER + text.partition("\n\n")[0] + "\n" for page in pages for text in page.read_text().split(HEADER)[1:]]
    assert shown
    assert all(text.rstrip() == table_of_models().rstrip() for text in shown)
