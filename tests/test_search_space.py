"""Reading a search space, and the configuration of a trial with its choices."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from stem_torchrec.config import DataConfig, LoopConfig, TrainConfig
from stem_torchrec.data.schema import save_schema
from stem_torchrec.runtime.errors import UserError
from stem_torchrec.training.recipes import log, tiny
from stem_torchrec.tuning.search_space import SPACE, Search, read_space, resolve_log, to_space, with_choices
from stem_torchrec.tuning.study import record_options

from logs import SCHEMA, log_table, write_split


@pytest.mark.parametrize(
    ("space", "sentence"),
    [
        ("model.dropuot: [0.1]", "there is no option 'model.dropuot'; did you mean 'model.dropout'?"),
        ("model: [{dropout: 0.1}]", "there is no option 'model'"),
        ("model.dropout: []", "model.dropout is [], but must be a list, or a mapping with low and high."),
        ("model.dropout: {low: 0.1, high: 3}", "model.dropout is 3, but must be from 0 to 0.999."),
        ("model.dropout: [x]", "model.dropout is 'x', but must be a number from 0 to 0.999."),
        ("model.expert_hidden: [64]", "model.expert_hidden is 64, but must be a list of numbers from 1 to 65536."),
        ("model.dropout: {low: 0.3, high: 0.1}", "model.dropout is {'low': 0.3, 'high': 0.1}, which is not a range: "),
        ("model.num_layers: {low: 3, high: 1}", "model.num_layers is {'low': 3, 'high': 1}, which is not a range: "),
        ("model.dropout: {low: 0, high: 0.1, log: 1}", "which is not a range: log is 1, but must be true or false."),
        ("model.num_layers: {low: 1, high: 3, step: 0}", "which is not a range: step is 0, but must be from 1 to"),
        ("model.num_layers: {low: 1, high: 3, setp: 2}", "there is no field 'setp'; did you mean 'step'?"),
        ("model.dropout: {low: .nan, high: 0.1}", "model.dropout is nan, but must be from 0 to 0.999."),
        (f"model.dropout: [{'9' * 400}]", "but must be from 0 to 0.999."),
        ("model.arch: {low: mmoe, high: stem}", "model.arch is {'low': 'mmoe', 'high': 'stem'}, but only numbers have"),
        ("checkpoint.folder: [x]", "checkpoint.folder is the same for all trials; leave it out of the space."),
    ],
)
def test_a_wrong_option_is_one_sentence(space: str, sentence: str, tmp_path: Path) -> None:
    file = tmp_path / "space.yaml"
    file.write_text(space)
    with pytest.raises(UserError) as error:
        read_space(str(file), tiny())
    assert str(error.value).startswith(f"{file}: ")
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("space", "sentence"),
    [
        (b"- 1", "is not a mapping of options to choices"),
        (b"seed: [1]\nseed: [2]", "cannot be read (line 2: the key 'seed' stands twice)"),
        (b"model.num_layers: {low: 1, high: 3, low: 2}", "cannot be read (line 1: the key 'low' stands twice)"),
        (b"model.dropout: " + b"[" * 300 + b"]" * 300, "cannot be read (line 1: nested deeper than 32 levels; "),
        (b"\xff\xfe", "cannot be read ("),
    ],
)
def test_a_file_that_is_not_a_space_is_one_sentence(space: bytes, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "space.yaml").write_bytes(space)
    with pytest.raises(UserError) as error:
        read_space(str(tmp_path / "space.yaml"), tiny())
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


def test_the_published_space_fits_the_configuration() -> None:
    assert list(to_space(SPACE, tiny(), "SPACE")) == list(SPACE)


def test_options_are_named_as_help_lists_them_and_typed_as_the_configuration_holds_them() -> None:
    given = {
        "--model.embedding-l2": [1e-6, 1],
        "model.num-shared-experts": {"low": 1, "high": 4},
        "train.clip_norm": {"low": 1, "high": 1e1, "log": True},
    }
    assert to_space(given, tiny(), "space.yaml") == {
        "model.embedding_l2": CategoricalDistribution([1e-6, 1.0]),
        "model.num_shared_experts": IntDistribution(1, 4),
        "train.clip_norm": FloatDistribution(1.0, 10.0, log=True),
    }


def test_lists_and_mappings_are_chosen_as_json_and_trained_as_they_are() -> None:
    given = {
        "model.expert_hidden": [[64], [128, 64]],
        "sparse.betas": [[0.8, 0.99]],
        "sparse.group_learning_rates": [{}, {"shared": 0.1}],
        "loss.rows_within": [{"like": "uid"}],
    }
    space = to_space(given, tiny(), "space.yaml")
    choices = {option: json.loads(repr(given[option][-1]).replace("'", '"')) for option in given}
    texts = {option: distribution.choices[-1] for option, distribution in space.items()}  # type: ignore[attr-defined]
    assert texts == {option: json.dumps(choice) for option, choice in choices.items()}
    config = Search(tiny(), space, 1).trial_config(texts)
    assert config.model.expert_hidden == (128, 64)
    assert config.sparse.betas == (0.8, 0.99)
    assert config.sparse.group_learning_rates == {"shared": 0.1}
    assert config.loss.rows_within == {"like": "uid"}
    by_task = to_space({"loss.focal_gamma": [1.0, {"like": 3.0}]}, tiny(), "space.yaml")
    base = with_choices(tiny(), {"loss.focal_gamma": by_task["loss.focal_gamma"].choices[1]})  # type: ignore[attr-defined]
    assert base.loss.focal_gamma == {"like": 3.0}
    assert with_choices(base, {"loss.focal_gamma": 1.0}).loss.focal_gamma == 1.0


@pytest.mark.parametrize(
    ("rows", "loop", "steps"),
    [
        (1001, LoopConfig(epochs=3), 26),
        (1000, LoopConfig(max_steps=10), 3),
        (1, LoopConfig(), 1),
        (1000, LoopConfig(eval_every=7), 7),
    ],
)
def test_a_trial_evaluates_four_times_an_epoch_unless_told_otherwise(rows: int, loop: LoopConfig, steps: int) -> None:
    base = TrainConfig(data=DataConfig(batch_size=5), train=loop)
    # The batch size is the one that the trial has chosen.
    assert Search(base, {}, rows).trial_config({"data.batch_size": 10}).train.eval_every == steps


def test_a_trial_fills_in_what_the_recipe_log_leaves_to_the_rows() -> None:
    trial = Search(log(), {}, 20_000).trial_config({})
    assert (trial.data.batch_size, trial.train.eval_every) == (256, None)
    often = replace(log(), train=replace(log().train, eval_every=0))
    assert Search(often, {}, 20_000).trial_config({}).train.eval_every == 19
    assert Search(often, {}, 20_000).trial_config({"data.batch_size": 500}).train.eval_every == 16


def test_trials_are_compared_by_the_rows_that_they_have_trained_on() -> None:
    search = Search(tiny(), {}, 1001)
    for batch_size, every in ((10, None), (64, None), (32, 5)):
        config = search.trial_config({"data.batch_size": batch_size, "train.eval_every": every})
        assert config.train.eval_every is not None
        for step in range(config.train.eval_every, 2 * 1001 // batch_size, config.train.eval_every):
            # Half a quarter by rounding; an epoch ends with a short batch.
            assert (
                abs(search.quarters_made(config, step) - 4 * step * batch_size / 1001) < 0.5 + 4 * 2 * batch_size / 1001
            )
    # Of a trial that ends within its first epoch, quarters of its steps.
    short = search.trial_config({"data.batch_size": 10, "train.max_steps": 8})
    assert [search.quarters_made(short, step) for step in (2, 4, 6, 8)] == [1, 2, 3, 4]


def test_a_trial_whose_tables_begin_anew_may_lag_behind_for_two_epochs() -> None:
    search = Search(log(), {}, 20_000)
    fresh = search.trial_config({})
    assert search.prunes_from(fresh) == search.quarters_made(fresh, 2 * -(-20_000 // fresh.data.batch_size))
    kept = search.trial_config({"train.fresh_tables": False})
    assert kept.train.eval_every is not None
    assert search.prunes_from(kept) == search.quarters_made(kept, kept.train.eval_every)
    assert search.prunes_from(search.trial_config({"train.epochs": 1})) == 1


def test_a_chosen_evaluation_interval_is_kept() -> None:
    assert Search(tiny(), {}, 1000).trial_config({"train.eval_every": 9}).train.eval_every == 9


def test_a_study_goes_on_only_with_the_log_that_it_began_with(tmp_path: Path) -> None:
    log, study = tmp_path / "log", tmp_path / "study"
    search = Search(replace(tiny(), data=DataConfig(path=str(log))), {})

    def record(first_row: int) -> None:
        for split in ("train", "valid"):
            write_split(log, log_table(40).slice(first_row, 20), split=split)
        save_schema(SCHEMA, str(log))
        record_options(study, resolve_log(search))

    record(0)
    record(0)
    with pytest.raises(UserError, match="holds a search with other options, another space or another log"):
        record(1)
