"""Every number of a configuration has limits, and a value that a field does not take is one sentence."""

import dataclasses
import hashlib
import math
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import pytest
from annotated_types import Interval

from stem_torchrec.comparison.compare_config import CompareConfig
from stem_torchrec.config import (
    LoopConfig,
    ModelConfig,
    ScheduleConfig,
    SparseOptimizerConfig,
    SyntheticConfig,
    TrainConfig,
    check_fields,
)
from stem_torchrec.config.fields import limits_in
from stem_torchrec.config.files import config_from_dict
from stem_torchrec.config.narrowed import narrowed
from stem_torchrec.config.serialization import from_dict, to_dict
from stem_torchrec.models.stem import STEMOptions
from stem_torchrec.models.table import MODELS, all_options
from stem_torchrec.runtime.errors import UserError
from stem_torchrec.training.configuration import config_from_command_line, load_config
from stem_torchrec.training.recipes import RECIPES
from stem_torchrec.training.run_evaluation import EvaluateConfig
from stem_torchrec.tuning.options import TuneConfig


@dataclasses.dataclass
class Number:
    """A number in a configuration: of a field, or of the list or dictionary that a field holds."""

    field: str
    """As `train.timeout`."""
    kind: type
    limits: Interval | None
    wrap: Any
    """Makes the field's value from one number."""

    @property
    def option(self) -> str:
        return "--" + self.field.replace("_", "-")


def numbers_of(kind: type, prefix: str = "") -> Iterator[Number]:
    """All numbers of a configuration's sections."""
    for name, annotation in get_type_hints(kind, include_extras=True).items():
        if dataclasses.is_dataclass(annotation):
            yield from numbers_of(annotation, f"{prefix}{name}.")
        else:
            for number, limits, wrap in _numbers_in(annotation):
                yield Number(prefix + name, number, limits, wrap)


def _numbers_in(annotation: Any) -> Iterator[tuple[type, Interval | None, Any]]:
    origin, args = get_origin(annotation), get_args(annotation)
    if annotation in (int, float):
        yield annotation, None, lambda value: value
    elif origin is Annotated and args[0] in (int, float):
        yield args[0], limits_in(annotation), lambda value: value
    elif origin is tuple and Ellipsis in args:
        for kind, limits, wrap in _numbers_in(args[0]):
            yield kind, limits, lambda value, wrap=wrap: [wrap(value)]
    elif origin is tuple:
        for i, item in enumerate(args):
            for kind, limits, wrap in _numbers_in(item):
                yield (
                    kind,
                    limits,
                    lambda value, i=i, wrap=wrap: [0.5] * i + [wrap(value)] + [0.5] * (len(args) - i - 1),
                )
    elif origin is dict:
        for kind, limits, wrap in _numbers_in(args[1]):
            yield kind, limits, lambda value, wrap=wrap: {"a": wrap(value)}
    else:
        for arg in args:
            yield from _numbers_in(arg)


CONFIGS = (narrowed(TrainConfig, {"model": STEMOptions}), CompareConfig, TuneConfig, EvaluateConfig)


def with_value(kind: type, number: Number, value: Any) -> dict[str, Any]:
    """The default configuration as a dictionary, with one value replaced."""
    values = to_dict(kind())
    *sections, name = number.field.split(".")
    section = values
    for each in sections:
        section = section[each]
    section[name] = number.wrap(value)
    return values


@pytest.mark.parametrize("kind", [*CONFIGS, *(line.options for line in MODELS.values())])
def test_every_number_has_a_least_and_a_greatest_value(kind: type) -> None:
    numbers = list(numbers_of(kind))
    assert numbers
    for number in numbers:
        limits = number.limits
        assert limits is not None, number.field
        ends = [end for end in (limits.ge, limits.gt, limits.le, limits.lt) if end is not None]
        assert len(ends) == 2, number.field
        assert all(math.isfinite(end) for end in ends), number.field


def test_the_walk_finds_numbers_in_options_lists_and_dictionaries() -> None:
    fields = [number.field for number in numbers_of(CONFIGS[0])]
    for name in ("train.max_steps", "model.expert_hidden", "sparse.group_learning_rates", "data.synthetic.missing"):
        assert name in fields
    assert fields.count("dense.betas") == 2


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_number_that_is_not_finite_or_beyond_its_limits_is_one_sentence(kind: type) -> None:
    for number in numbers_of(kind):
        limits = number.limits
        assert limits is not None
        below = limits.gt if limits.gt is not None else limits.ge - (1 if number.kind is int else 1e-3)
        above = limits.lt if limits.lt is not None else limits.le * 2 + 1
        for value in (math.nan, math.inf, -math.inf, below, above):
            values = with_value(kind, number, value)
            with pytest.raises(UserError) as error:
                from_dict(kind, values)
            sentence = str(error.value)
            assert sentence.startswith(number.field)
            assert f" is {value}, but must be " in sentence
            for end in (limits.ge, limits.gt, limits.le, limits.lt):
                assert end is None or f"{end:g}" in sentence or str(end) in sentence
            assert "\n" not in sentence


@pytest.mark.parametrize("kind", CONFIGS)
def test_the_least_and_the_greatest_value_are_taken(kind: type) -> None:
    for number in numbers_of(kind):
        assert number.limits is not None
        for end in (number.limits.ge, number.limits.le):
            if end is not None:
                from_dict(kind, with_value(kind, number, number.kind(end)))


@pytest.mark.parametrize(
    ("args", "problem"),
    [
        (["--train.timeout", "nan"], "is nan, but must be from 1 to 1e+06."),
        (["--train.timeout", "inf"], "is inf, but must be from 1 to 1e+06."),
        (["--train.timeout", "1e20"], "is 1e+20, but must be from 1 to 1e+06."),
        (["--sparse.eps", "nan"], "is nan, but must be from 0 to 1000."),
        (["--model.task-weights", "nan", "1"], "is nan, but must be above 0 and at most 1e+06."),
        (["--model.expert-hidden", "64", "1000000000"], "is 1000000000, but must be from 1 to 65536."),
        (["--sparse.group-learning-rates", "a", "-1"], "is -1.0, but must be from 0 to 1e+06."),
        (["--data.synthetic.missing", "0", "1"], "is 1.0, but must be at least 0 and below 1."),
        (["--checkpoint.steps", "0"], "is 0, but must be from 1 to 1000000000000."),
    ],
)
def test_the_command_line_names_the_option_the_value_and_the_limits(args: list[str], problem: str) -> None:
    with pytest.raises(UserError) as error:
        config_from_command_line(args)
    assert str(error.value) == f"{args[0]} {problem}"


def test_a_configuration_made_in_python_is_checked_before_it_is_used() -> None:
    check_fields(TrainConfig())
    with pytest.raises(UserError, match=r"--model.dropout is 2.0, but must be from 0 to 0.999\."):
        check_fields(TrainConfig(model=ModelConfig(dropout=2.0)))
    with pytest.raises(UserError, match=r"--train.epochs is True, but must be a whole number from 1 to 1000000\."):
        check_fields(TrainConfig(train=LoopConfig(epochs=True)))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("data: {batch_size: true}", "data.batch_size is True, but must be a whole number from 0 to 16777216."),
        ("seed: yes", "seed is 'yes', but must be a whole number from 0 to 4294967295."),
        (f"seed: {10**400}", "but must be from 0 to 4294967295."),
        (f"dense: {{learning_rate: {10**400}}}", "but must be from 0 to 1e+06."),
        (f"seed: {'9' * 5000}", "line 1: 999999999999...9999999999999 is no number, or has too many digits"),
        ("data: {batch_size: 1.0}", "data.batch_size is 1.0, but must be a whole number from 0 to 16777216."),
        ("dense: {learning_rate: true}", "dense.learning_rate is True, but must be a number from 0 to 1e+06."),
        ("dense: {learning_rate: '1'}", "dense.learning_rate is '1', but must be a number from 0 to 1e+06."),
        ("train: {profile: 1}", "train.profile is 1, but must be true or false."),
        ("model: {expert_hidden: [64, 0]}", "model.expert_hidden[1] is 0, but must be from 1 to 65536."),
        ("sparse: {group_learning_rates: {a: .nan}}", "sparse.group_learning_rates[a] is nan, but must be from 0 to"),
        ("sparse: {betas: [0.9]}", "sparse.betas[1] is missing."),
        ("model: {arch: stm}", "model.arch is 'stm', but must be one of stem, duet, single_task"),
        ("labels: []", "there is no field 'labels'."),
        ("model: {embeding_dim: 8}", "there is no field 'model.embeding_dim'; did you mean 'embedding_dim'?"),
        ("", "the content is None, but must be a mapping of fields."),
        ("model: 1", "model is 1, but must be a mapping of fields."),
        ("[]", "the content is [], but must be a mapping of fields."),
        ("a: &a [*a]", "*a stands inside of what it stands for"),
        ("? [1]\n: 2", "a key that is not text"),
        ("26: 1", "a key that is not text"),
        ("a: [", "cannot be read as a configuration"),
    ],
)
def test_a_file_names_the_field_the_value_and_what_it_takes(text: str, sentence: str, tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(text)
    with pytest.raises(UserError) as error:
        load_config(str(file))
    assert str(error.value).startswith(str(file))
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_holds_whole_numbers_and_powers_of_ten_where_floats_belong(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("dense: {learning_rate: 1}\nsparse: {eps: 1e-6, learning_rate: 1.5e-1}")
    config = load_config(str(tmp_path / "config.yaml"))
    assert config.dense.learning_rate == 1.0
    assert type(config.dense.learning_rate) is float
    assert config.sparse == SparseOptimizerConfig(learning_rate=0.15, eps=1e-6)


@pytest.mark.parametrize("recipe", list(RECIPES))
def test_a_dictionary_of_a_configuration_reads_back_equal(recipe: str) -> None:
    config = RECIPES[recipe]()
    assert config_from_dict(to_dict(config), all_options()) == config
    assert repr(config_from_dict(to_dict(config), all_options())) == repr(config)


def test_a_dictionary_without_some_fields_has_their_defaults() -> None:
    assert from_dict(TrainConfig, {"schedule": {"decay": "linear"}, "seed": 3}) == TrainConfig(
        schedule=ScheduleConfig(decay="linear"), seed=3
    )


def test_configurations_are_plain_frozen_dataclasses() -> None:
    config = RECIPES["tiny"]()
    assert pickle.loads(pickle.dumps(config)) == config
    assert dataclasses.asdict(config)["model"]["expert_hidden"] == (16,)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.seed = 1


def test_a_synthetic_log_keeps_its_folder() -> None:
    """The folder data/synthetic-HASH is named by the hash of this text."""
    assert hashlib.sha256(repr(SyntheticConfig()).encode()).hexdigest()[:8] == "ecfc9cef"
