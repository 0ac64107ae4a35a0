"""Writes raw rows of many days, of a world that drifts, and knows how well each day can be predicted.

What a model has learned gets old: every night the vectors move, some users and items leave, and others come. Each of
them stands at one of the world's places, which say how often it is shown, so days differ in nothing but who stands
where and in the vectors. `stem-prepare` makes logs of the rows by the spec that is written beside them.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from tqdm import tqdm

from stem_torchrec.config import DaysConfig
from stem_torchrec.config.serialization import from_dict, to_dict
from stem_torchrec.config.yaml_text import to_yaml
from stem_torchrec.data.new_log import new_log
from stem_torchrec.data.pair_auc import pair_aucs
from stem_torchrec.data.synthetic import check_synthetic
from stem_torchrec.data.synthetic_world import GROUP_COLUMN, Population, World
from stem_torchrec.runtime.errors import UserError
from stem_torchrec.runtime.paths import write_json

FACTS_FILE = "facts.json"
"""By day what `Day.draw` knows of it."""


@dataclass(frozen=True)
class Residents:
    """Who stands at the places of the users, or of the items; a number is given once and never again."""

    population: Population
    numbers: NDArray[np.int64]
    """At each place, (places,)."""
    first_new: int
    """The lowest number of those who came in the last night."""


@dataclass(frozen=True)
class Day:
    """A day of the world."""

    number: int
    """From 1."""
    world: World
    """What is true on this day."""
    eve: World
    """What was true the day before; of those who are new it knows the cluster alone."""
    users: Residents
    items: Residents

    def draw(self, rows: int) -> tuple[pa.Table, dict[str, Any]]:
        """The raw rows of the day, and its facts.

        `best_auc` is that of the true logits, which no model beats on average; `stale_auc` that of the logits of the
        eve, for a model that has learned all of the days before. `new_users` and `new_items` are shares of the rows.
        """
        table, logits, labels = self.world.draw("days", self.number, rows)
        _, stale, _ = self.eve.draw("days", self.number, rows)
        user, item = self.users.numbers[table["user_id"]], self.items.numbers[table["item_id"]]
        facts = {
            "rows": rows,
            "new_users": float((user >= self.users.first_new).mean()),
            "new_items": float((item >= self.items.first_new).mean()),
            "best_auc": pair_aucs(self.world.config.tasks, logits, labels),
            "stale_auc": pair_aucs(self.world.config.tasks, stale, labels),
        }
        columns = {"day": np.full(rows, self.number), "row": np.arange(rows), "user_id": user, "item_id": item}
        others = [name for name in table.column_names if name not in (*columns, GROUP_COLUMN)]
        return pa.table({**columns, **{name: table[name] for name in others}}), facts


def days_of(config: DaysConfig) -> Iterator[Day]:
    """The days in order; nobody is new on the first, whose eve was the same.

    Example::

        first, second, *_ = days_of(DaysConfig(new_users=0.02))
        (first.users.numbers != second.users.numbers).mean()  # about 0.02
    """
    world = World(config.world)
    users, items = (
        Residents(population, np.arange(len(population.cluster)), len(population.cluster))
        for population in (world.users, world.items)
    )
    yield Day(1, world, world, users, items)
    for number in range(2, config.days + 1):
        rng = world.generator("nights", number)
        users_of_eve, users = _after_a_night(world, users, rng, share=config.new_users, drift=config.drift)
        items_of_eve, items = _after_a_night(world, items, rng, share=config.new_items, drift=config.drift)
        eve = world.with_populations(users_of_eve, items_of_eve)
        world = world.with_populations(users.population, items.population)
        yield Day(number, world, eve, users, items)


def _after_a_night(
    world: World, before: Residents, rng: np.random.Generator, *, share: float, drift: float
) -> tuple[Population, Residents]:
    """What the eve knows of those who are left and those who come, and they themselves; `share` of all leave."""
    old, (_, clusters, dim) = before.population, before.population.of_cluster.shape
    leaves = rng.random(len(old.cluster)) < share
    cluster = np.where(leaves, rng.integers(clusters, size=len(leaves), dtype=np.int32), old.cluster)
    newcomer = leaves[:, None]
    eve = Population(cluster, old.of_cluster, np.where(newcomer, np.float32(0), old.of_id))
    # A sum whose squares add up to 1 keeps the variance, and so what `signal` and `positive_rate` promise.
    stays, moves = np.float32((1 - drift) ** 0.5), np.float32(drift**0.5)
    of_cluster, of_id = (world.effects(rng, ids, dim) for ids in (clusters, len(leaves)))
    of_id = np.where(newcomer, of_id, stays * old.of_id + moves * of_id)
    numbers, first_new = before.numbers.copy(), int(before.numbers.max()) + 1
    numbers[leaves] = first_new + np.arange(leaves.sum())
    population = Population(cluster, stays * old.of_cluster + moves * of_cluster, of_id)
    return eve, Residents(population, numbers, first_new)


def write_days(config: DaysConfig, folder: str) -> dict[str, dict[str, Any]]:
    """Writes day_0001.parquet and so on, facts.json and spec.yaml; the folder appears when it is complete.

    Returns the facts by day, as text.

    Args:
        config: sizes and dials.
        folder: a local folder that is absent or empty.

    Raises UserError where a value of `config` makes no sense, or `folder` holds something.

    Example::

        facts = write_days(DaysConfig(drift=0.1), "raw/days")
        facts["2"]["best_auc"]["like"]   # 0.82
        facts["2"]["stale_auc"]["like"]  # 0.80
    """
    from_dict(DaysConfig, to_dict(config))
    check_synthetic(config.world)
    if clash := {"day", "row"} & set(config.world.tasks):
        raise UserError(f"a task is called {min(clash)}, as a column of the rows is; rename it.")
    out, facts = Path(folder).absolute(), {}
    with new_log(out, overwrite=False) as new:
        new.mkdir(parents=True)
        for day in tqdm(days_of(config), total=config.days, unit=" days", disable=None):
            table, facts[str(day.number)] = day.draw(config.rows_per_day)
            pq.write_table(table, new / f"day_{day.number:04}.parquet", write_page_checksum=True)
        write_json(new / FACTS_FILE, facts)
        (new / "spec.yaml").write_text(to_yaml(_spec(config, out)))
    return facts


def _spec(config: DaysConfig, folder: Path) -> dict[str, Any]:
    """The spec of the rows: all of them, with one in twenty for validation."""
    world = World(config.world)
    return {
        "format": 1,
        "description": (
            f"{config.days} synthetic days of {config.rows_per_day:,} rows, drift {config.drift:g}, "
            f"seed {config.world.seed}."
        ),
        "variables": {"raw": str(folder)},
        "sources": {"days": {"files": "${raw}/day_*.parquet", "type": "parquet"}},
        "split": {"random": {"by": ["day", "row"], "valid": 0.05, "test": 0.0}},
        "order": "source",
        "row_key": ["day", "row"],
        # In quotes, as LIKE is a word of SQL.
        "labels": {task: '"' + task.replace('"', '""') + '"' for task in config.world.tasks},
        "group": "user_id",
        "features": dict.fromkeys(world.vocabularies),
        "dense": dict.fromkeys(world.dense_names),
    }
