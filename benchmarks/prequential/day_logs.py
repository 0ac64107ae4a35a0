"""The logs of the days, each made once by stem-prepare from the same spec."""

import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from stem_torchrec.data.new_log import VOCABULARY
from stem_torchrec.data.schema import load_schema
from stem_torchrec.preparation.fitting.id_spaces import id_spaces
from stem_torchrec.preparation.options import PrepareOptions
from stem_torchrec.preparation.prepare_log import prepare_log
from stem_torchrec.preparation.specs.installed_specs import spec_path
from stem_torchrec.preparation.specs.spec import Spec
from stem_torchrec.preparation.specs.spec_file import read_spec
from stem_torchrec.runtime.errors import UserError
from stem_torchrec.runtime.paths import write_json

from prequential.options import DaysOptions
from prequential.policies import LogKind

SPLIT = "{random: {valid: 0.05, test: 0}}"
"""Of the rows of a log: by their MD5, so a row is in the same part of the log of its day and of all days."""

HASHES: Mapping[LogKind, int] = {"hashed": 1, "hashed_twice": 2}
"""Ids of a value in the kinds of logs that hash some."""
TESTED = "train"
"""The part of a day's log that is tested: what the day is trained on later."""


@dataclass(frozen=True)
class DayLogs:
    """Logs of single days and of all days so far; an existing one is kept.

    Args:
        options: the spec and the days.
        folder: of the results.
    """

    options: DaysOptions
    folder: Path

    @property
    def spec(self) -> Spec:
        """The spec of all rows."""
        return read_spec(spec_path(self.options.spec), self.options.set)

    def to_train(self, day: int, kind: LogKind) -> Path:
        """The log of all days up to one, or of a day alone, whose ids go on from those of the day before."""
        out, place = self.folder / "logs" / kind / str(day), self.options.days.index(day)
        if kind == "so_far":
            condition = f"{self.options.day} >= {self.options.days[0]} and {self.options.day} <= {day}"
            return self._prepared(out, condition, kind)
        earlier: dict[str, Any] = {}
        if place and not _done(out).exists():
            earlier = {"vocabularies": str(self.to_train(self.options.days[place - 1], kind)), "grow": True}
        return self._prepared(out, f"{self.options.day} = {day}", kind, **earlier)

    def to_test(self, day: int, kind: LogKind) -> Path:
        """The log of a day, with the ids of what the day before was trained on: values that it lacks are unseen."""
        trained = self.to_train(self.before(day), kind)
        out = self.folder / "logs" / f"tests_{kind}" / str(day)
        return self._prepared(out, f"{self.options.day} = {day}", kind, vocabularies=str(trained))

    def before(self, day: int) -> int:
        """The day before."""
        return self.options.days[self.options.days.index(day) - 1]

    def buckets(self) -> Mapping[str, int]:
        """By feature with hashed ids, how many there are, so that its tables take as many rows as by a vocabulary."""
        file = self.folder / "buckets.json"
        if not file.exists():
            # Kept, as more days may be added later.
            schema = load_schema(str(self.to_train(self.options.days[-2], "days")))
            sizes = {each.name: each.num_embeddings for each in schema.sparse_features}
            write_json(file, {name: sizes[name] - 1 for name in self.options.hashed})
        return json.loads(file.read_text())

    def check_hashed(self) -> None:
        """Raises UserError for a feature to hash that the spec has without a vocabulary."""
        spaces = id_spaces(self.spec)
        for name in self.options.hashed:
            if name not in spaces:
                raise UserError(f"--hashed names {name!r}, which has no vocabulary of its own; {', '.join(spaces)} do.")

    def seconds(self, day: int, kind: LogKind) -> float:
        """How long `to_train` took for this log."""
        return json.loads(_done(self.to_train(day, kind)).read_text())["seconds"]

    def new_ids(self, day: int) -> Mapping[str, int]:
        """By feature, the ids of the day's log that the log of the day before lacks."""
        schemas = [load_schema(str(self.to_train(each, "days"))) for each in (self.before(day), day)]
        old, new = ({each.name: each.num_embeddings for each in schema.sparse_features} for schema in schemas)
        return {name: size - old[name] for name, size in new.items()}

    def unseen(self, day: int, kind: LogKind) -> Mapping[str, float]:
        """By feature that has a vocabulary and one id in a row, the share of the tested rows whose id is 0."""
        log = self.to_test(day, kind)
        names = [file.stem for file in sorted((log / VOCABULARY).glob("*.parquet"))]
        table = pq.read_table(log / TESTED, columns=names)
        integers = [name for name in names if pa.types.is_integer(table[name].type)]
        return {name: float(pc.mean(pc.equal(table[name], 0)).as_py() or 0) for name in integers}

    def _prepared(self, out: Path, condition: str, kind: LogKind, **earlier: Any) -> Path:
        if _done(out).exists():
            return out
        # A log without its seconds is one whose maker was killed in between.
        shutil.rmtree(out, ignore_errors=True)
        out.parent.mkdir(parents=True, exist_ok=True)
        where = self.spec.where
        if where is not None:
            condition = f"({where}) and ({condition})"
        settings = (*self.options.set, f"where={json.dumps(condition)}", f"split={SPLIT}", *self._hashed(kind))
        begin = time.perf_counter()
        prepare_log(PrepareOptions(spec=self.options.spec, set=settings, out=str(out), report=False, **earlier))
        write_json(_done(out), {"seconds": time.perf_counter() - begin})
        return out

    def _hashed(self, kind: LogKind) -> list[str]:
        """What makes hashed ids of those by a vocabulary, for --set."""
        settings = []
        for name, buckets in self.buckets().items() if kind in HASHES else ():
            if self.spec.id_features[name].vocabulary is not None:
                settings.append(f"features.{name}.vocabulary=null")
            settings.append(f"features.{name}.hash={{buckets: {buckets}, hashes: {HASHES[kind]}}}")
        return settings


def _done(log: Path) -> Path:
    return log.with_name(f"{log.name}.json")
