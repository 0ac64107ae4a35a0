"""What a search may choose from, and what a trial trains with what it has chosen."""

import json
from pathlib import Path

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from stem_torchrec.config import DataConfig, LoopConfig, TrainConfig
from stem_torchrec.runtime.errors import UserError
from stem_torchrec.training.recipes import tiny
from stem_torchrec.tuning.search_space import SPACE, Search, read_space, to_space


@pytest.mark.parametrize(
    ("space", "sentence"),
    [
        ("model.dropuot: [0.1]", "there is no option 'model.dropuot' to search over; did you mean 'model.dropout'?"),
        ("model.embeding-l2: [0.1]", "there is no option 'model.embeding-l2' to search over; did you mean"),
        ("model.dropout.x: [0.1]", "there is no option 'model.dropout.x' to search over; did you mean 'model.dropout'"),
        ("1: [0.1]", "there is no option 1 to search over; train.py --help lists them."),
        ("model: [{dropout: 0.1}]", "there is no option 'model' to search over"),
        ("model.dropout: 0.1", "model.dropout is 0.1, but must be a list, or a mapping with low and high."),
        ("model.dropout: []", "model.dropout is [], but must be a list, or a mapping with low and high."),
        ("model.dropout: {low: 0.1, high: 3}", "model.dropout is 3, but must be from 0 to 0.999."),
        ("model.dropout: [x]", "model.dropout is 'x', but must be a number from 0 to 0.999."),
        ("model.dropout: [null]", "model.dropout is None, but must be a number from 0 to 0.999."),
        ("model.expert_hidden: [64]", "model.expert_hidden is 64, but must be a list of numbers from 1 to 65536."),
        ("model.dropout: {low: 0.3, high: 0.1}", "model.dropout is {'low': 0.3, 'high': 0.1}, which is no range: "),
        ("model.dropout: {low: 0, high: 0.1, setp: 0.1}", "which is no range: "),
        ("model.arch: {low: mmoe, high: stem}", "model.arch is {'low': 'mmoe', 'high': 'stem'}, but only numbers have"),
        ("train.profile: {low: false, high: true}", "but only numbers have a range; give a list."),
        ("train.metric: [auc, gauc]", "train.metric is one for all trials; leave it out of the space."),
        ("checkpoint.folder: [x]", "checkpoint.folder is one for all trials; leave it out of the space."),
    ],
)
def test_a_wrong_option_is_one_sentence(space: str, sentence: str, tmp_path: Path) -> None:
    file = tmp_path / "space.yaml"
    file.write_text(space)
    with pytest.raises(UserError) as error:
        read_space(str(file), tiny())
    assert str(error.value).startswith(f"{file}: ")
    assert sentence in str(error.value)


@pytest.mark.parametrize(
    ("space", "sentence"),
    [
        (b"- 1", "is no mapping of options to choices"),
        (b"a: [", "cannot be read ("),
        (b"\xff\xfe", "cannot be read ("),
    ],
)
def test_a_file_that_is_no_space_is_one_sentence(space: bytes, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "space.yaml").write_bytes(space)
    with pytest.raises(UserError) as error:
        read_space(str(tmp_path / "space.yaml"), tiny())
    assert sentence in str(error.value)


def test_the_published_space_fits_the_configuration() -> None:
    assert list(to_space(SPACE, tiny(), "SPACE")) == list(SPACE)


def test_options_are_named_as_help_lists_them_and_typed_as_the_configuration_holds_them() -> None:
    said = {
        "--model.embedding-l2": [1e-6, 1],
        "model.num-shared-experts": {"low": 1, "high": 4},
        "train.clip_norm": {"low": 1, "high": 1e1, "log": True},
    }
    assert to_space(said, tiny(), "here") == {
        "model.embedding_l2": CategoricalDistribution([1e-6, 1.0]),
        "model.num_shared_experts": IntDistribution(1, 4),
        "train.clip_norm": FloatDistribution(1.0, 10.0, log=True),
    }


def test_lists_and_mappings_are_chosen_as_json_and_trained_as_they_are() -> None:
    said = {
        "model.expert_hidden": [[64], [128, 64]],
        "sparse.betas": [[0.8, 0.99]],
        "sparse.group_learning_rates": [{}, {"shared": 0.1}],
    }
    space = to_space(said, tiny(), "here")
    choices = {option: json.loads(repr(said[option][-1]).replace("'", '"')) for option in said}
    texts = {option: distribution.choices[-1] for option, distribution in space.items()}  # type: ignore[attr-defined]
    assert texts == {option: json.dumps(choice) for option, choice in choices.items()}
    config = Search(tiny(), space, 1).chosen(texts)
    assert config.model.expert_hidden == (128, 64)
    assert config.sparse.betas == (0.8, 0.99)
    assert config.sparse.group_learning_rates == {"shared": 0.1}


@pytest.mark.parametrize(
    ("rows", "loop", "steps"),
    [
        (1000, LoopConfig(), 25),
        (1001, LoopConfig(epochs=3), 26),
        (1000, LoopConfig(max_steps=10), 3),
        (1, LoopConfig(), 1),
        (1000, LoopConfig(eval_every=7), 7),
    ],
)
def test_a_trial_evaluates_four_times_an_epoch_unless_told_otherwise(rows: int, loop: LoopConfig, steps: int) -> None:
    base = TrainConfig(data=DataConfig(batch_size=5), train=loop)
    # The batch that the trial has chosen counts.
    assert Search(base, {}, rows).chosen({"data.batch_size": 10}).train.eval_every == steps


def test_what_is_chosen_goes_before_four_times_an_epoch() -> None:
    assert Search(tiny(), {}, 1000).chosen({"train.eval_every": 9}).train.eval_every == 9
