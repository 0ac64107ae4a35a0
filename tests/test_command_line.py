"""What a user types: recipes, options, files, and the sentence that answers a mistake."""

import dataclasses
from pathlib import Path

import pytest

from stem_torchrec.config import TrainConfig
from stem_torchrec.config.files import dump_config
from stem_torchrec.runtime.command import run_main
from stem_torchrec.runtime.errors import UserError
from stem_torchrec.training.configuration import config_from_command_line, load_config
from stem_torchrec.training.recipes import RECIPES


def test_options_change_single_fields_of_the_recipe() -> None:
    config = config_from_command_line(["--recipe", "kuairand_pure", "--model.embedding-dim", "32", "--data.path", "x"])
    recipe = RECIPES["kuairand_pure"]()
    assert config.model == dataclasses.replace(recipe.model, embedding_dim=32)
    assert config.data == dataclasses.replace(recipe.data, path="x")
    assert config.train == recipe.train


def test_without_options_the_recipe_is_synthetic() -> None:
    assert config_from_command_line([]) == RECIPES["synthetic"]()


def test_lists_and_dictionaries_are_written_with_spaces() -> None:
    config = config_from_command_line(
        ["--model.expert-hidden", "64", "32", "--sparse.group-learning-rates", "shared", "0.1", "like", "0.05"]
    )
    assert config.model.expert_hidden == (64, 32)
    assert config.sparse.group_learning_rates == {"shared": 0.1, "like": 0.05}


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (
            ["--model.embedding-dum", "8"],
            "unknown option '--model.embedding-dum'; did you mean '--model.embedding-dim'?",
        ),
        (["--train.epochs", "two"], "--train.epochs: invalid literal for int() with base 10: 'two'"),
        # An option of several types, as `int | None`.
        (["--train.max-steps", "x"], "--train.max-steps: invalid literal for int() with base 10: 'x'; --help shows"),
        (["--sharding.type", "tabel_wise"], "did you mean 'table_wise'?"),
        (["--recipe", "kuairand"], "there is no recipe 'kuairand', only log, synthetic"),
        (["--config", "nowhere.yaml"], "there is no configuration 'nowhere.yaml'"),
        (["--recipe", "tiny", "--config", "x.yaml"], "give --recipe or --config, not both"),
        (["--seed"], "--seed got no value"),
        (["--recipe"], "--recipe got no value"),
        (["stray"], "unknown option 'stray'"),
        (["--recipe="], "there is no recipe '', only log, synthetic"),
        (["--config", ""], "''"),
        (["--seed", "9" * 5000], "--seed: a number with too many digits"),
        (["--train.timeout", "nan"], "--train.timeout is nan, but must be from 1 to 1e+06."),
        (["--sparse.eps", "inf"], "--sparse.eps is inf, but must be from 0 to 1000."),
        (["--model.task-weights", "nan", "1"], "--model.task-weights is nan, but must be above 0 and at most 1e+06."),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_status_2(
    args: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        run_main(lambda: print(config_from_command_line(args)))
    assert exit_.value.code == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1


def test_an_option_that_is_given_twice_is_noted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["train.py", "--seed", "1", "--seed=2", "--train.profile", "--train.no-profile"])
    assert config_from_command_line().seed == 2
    assert capsys.readouterr().out.splitlines() == [
        "note: --seed is given 2 times; the last one counts",
        "note: --train.profile is given 2 times; the last one counts",
    ]


def test_help_shows_every_field_with_its_documentation_and_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        config_from_command_line(["--help"])
    assert exit_.value.code == 0
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for section in dataclasses.fields(TrainConfig):
        value = getattr(RECIPES["synthetic"](), section.name)
        names = (
            [f"{section.name}.{f.name}" for f in dataclasses.fields(value)] if dataclasses.is_dataclass(value) else []
        )
        for name in names or [section.name]:
            assert f"--{name.replace('_', '-')}" in text
    assert (
        "Rows per rank and step; the global batch is this times the world size. 0 chooses it by the number of rows and "
        "ranks. From 0 to 16777216. (default: 1024)" in text
    )
    assert "Layer widths of an expert; the last is its output. From 1 to 65536. (default: 64 32)" in text
    for recipe in RECIPES:
        assert recipe in text


@pytest.mark.parametrize("recipe", list(RECIPES))
def test_a_written_configuration_reads_back_equal(recipe: str, tmp_path: Path) -> None:
    config = RECIPES[recipe]()
    (tmp_path / "config.yaml").write_text(dump_config(config))
    assert load_config(str(tmp_path / "config.yaml")) == config
    assert config_from_command_line(["--config", str(tmp_path / "config.yaml")]) == config


def test_a_number_without_a_point_serves_as_a_float(tmp_path: Path) -> None:
    text = dump_config(RECIPES["tiny"]()).replace("learning_rate: 0.001", "learning_rate: 1")
    (tmp_path / "config.yaml").write_text(text)
    assert load_config(str(tmp_path / "config.yaml")).dense.learning_rate == 1.0


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("embedding_dim:", "embedding_dimm:", "embedding_dimm"),
        (
            "embedding_dim: 8",
            "embedding_dim: eight",
            "model.embedding_dim is 'eight', but must be a whole number from",
        ),
        ("labels: []", "labels: like", "data.labels is 'like', but must be a list."),
        ("model:", "model: [", "config.yaml"),
    ],
)
def test_a_wrong_configuration_file_names_the_field(tmp_path: Path, old: str, new: str, sentence: str) -> None:
    (tmp_path / "config.yaml").write_text(dump_config(RECIPES["tiny"]()).replace(old, new))
    with pytest.raises(UserError, match=r"config\.yaml") as error:
        load_config(str(tmp_path / "config.yaml"))
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)
