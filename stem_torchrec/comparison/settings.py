"""What `--tune` chooses from, in the order in which all models try it: pairs of two lists, a space, or settings."""

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from hashlib import sha256
from itertools import product
from operator import getitem
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution

from stem_torchrec.config import TrainConfig
from stem_torchrec.config.serialization import to_dict
from stem_torchrec.tuning.search_space import with_choices

LEARNING_RATE, EMBEDDING_L2 = "sparse.learning_rate", "model.embedding_l2"
_SHORT = {LEARNING_RATE: "learning_rate", EMBEDDING_L2: "embedding_l2"}
_REPEATS = 1000
"""Draws in a row without a new setting after which a space counts as drawn whole."""


@dataclass(frozen=True)
class Setting:
    """Values of the options that are tuned."""

    choices: tuple[tuple[str, Any], ...] = ()
    """Each option, such as `model.dropout`, with its value; lists and mappings as JSON text. Without any it is what the
    command line and the model have."""

    @property
    def by_column(self) -> dict[str, Any]:
        """The values by the names of the options in reports: `{"learning_rate": 0.02, "model.dropout": 0.1}`."""
        return {_SHORT.get(option, option): value for option, value in self.choices}

    @property
    def name(self) -> str:
        """Its name in messages and its subfolder: `learning_rate=0.02,embedding_l2=0`, or a digest of a longer text."""
        name = ",".join(f"{column}={_text(value)}" for column, value in self.by_column.items()) or "as_given"
        if re.fullmatch("[A-Za-z0-9_.=,+-]{1,150}", name):
            return name
        return f"setting_{sha256(name.encode()).hexdigest()[:12]}"

    def configure(self, config: TrainConfig) -> TrainConfig:
        """`config` with this setting; raises UserError for values that do not go together."""
        return with_choices(config, dict(self.choices))


def setting_of(config: TrainConfig, options: Sequence[str]) -> Setting:
    """The values that a configuration has of some options.

    Example::

        setting_of(tiny(), ["model.expert_hidden"])  # Setting((("model.expert_hidden", "[64, 32]"),))
    """
    plain = to_dict(config)
    values: list[Any] = [reduce(getitem, option.split("."), plain) for option in options]
    texts = [json.dumps(value) if isinstance(value, (list, dict)) else value for value in values]
    return Setting(tuple(zip(options, texts, strict=True)))


@dataclass(frozen=True)
class Lists:
    """All pairs of a learning rate of the tables and an L2 of embeddings; drawn, rates and L2 between their ends."""

    learning_rates: Sequence[float]
    embedding_l2: Sequence[float]

    @property
    def options(self) -> tuple[str, ...]:
        """What is tuned."""
        return LEARNING_RATE, EMBEDDING_L2

    def all(self) -> Iterator[Setting]:
        """All pairs."""
        return (self._pair(rate, l2) for rate, l2 in product(self.learning_rates, self.embedding_l2))

    def drawn(self, seed: int) -> Iterator[Setting]:
        """Random pairs without an end."""
        generator = np.random.default_rng(seed)
        positive = [l2 for l2 in self.embedding_l2 if l2 > 0]
        while True:
            rate = _between(self.learning_rates, generator.random())
            # As often as the list has it, 0, which no logarithm reaches.
            none = generator.random() * len(self.embedding_l2) < len(self.embedding_l2) - len(positive)
            share = generator.random()
            yield self._pair(rate, 0.0 if none or not positive else _between(positive, share))

    def _pair(self, learning_rate: float, l2: float) -> Setting:
        return Setting(((LEARNING_RATE, learning_rate), (EMBEDDING_L2, l2)))


@dataclass(frozen=True)
class Listed:
    """Settings one by one, of options that go together; drawn, in random order."""

    settings: tuple[Setting, ...]

    @property
    def options(self) -> tuple[str, ...]:
        """What is tuned: what any of the settings has."""
        return tuple(dict.fromkeys(option for setting in self.settings for option, _ in setting.choices))

    def all(self) -> Iterator[Setting]:
        """All settings, as they are listed."""
        return iter(self.settings)

    def drawn(self, seed: int) -> Iterator[Setting]:
        """All settings in random order."""
        order = np.random.default_rng(seed).permutation(len(self.settings))
        return (self.settings[number] for number in order)


@dataclass(frozen=True)
class Space:
    """All combinations of the choices of a space; drawn, its ranges as well."""

    distributions: Mapping[str, BaseDistribution]
    """By option, as `read_space` returns them; `all` needs lists of choices."""

    @property
    def options(self) -> tuple[str, ...]:
        """What is tuned."""
        return tuple(self.distributions)

    @property
    def ranges(self) -> list[str]:
        """The options that have a range, of which there is no list of all combinations."""
        return [name for name, each in self.distributions.items() if not isinstance(each, CategoricalDistribution)]

    def all(self) -> Iterator[Setting]:
        """All combinations, the last option changing fastest."""
        lists = [each.choices for each in self.distributions.values() if isinstance(each, CategoricalDistribution)]
        return (Setting(tuple(zip(self.options, values, strict=True))) for values in product(*lists))

    def drawn(self, seed: int) -> Iterator[Setting]:
        """Random combinations, each once, until the space has no other."""
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
        drawn: set[Setting] = set()
        repeats = 0
        while repeats < _REPEATS:
            values = study.ask(dict(self.distributions)).params
            rounded = {
                option: _rounded(values[option])
                for option, each in self.distributions.items()
                if isinstance(each, FloatDistribution) and each.step is None
            }
            values = {option: values[option] for option in self.options} | rounded
            setting = Setting(tuple(values.items()))
            repeats += 1
            if setting not in drawn:
                drawn.add(setting)
                repeats = 0
                yield setting


def _between(values: Sequence[float], share: float) -> float:
    """A value between the ends of a list, by its share of their distance in logarithms, to 3 digits as names have it.

    Example::

        _between([0.01, 0.02, 1.0], 0.5)  # 0.1
    """
    low, high = math.log(min(values)), math.log(max(values))
    return _rounded(math.exp(low + share * (high - low)))


def _rounded(value: float) -> float:
    return float(f"{value:.3g}")


def _text(value: Any) -> str:
    """A value in a name: as short as tells it."""
    return f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else f"{value}"
