"""What a comparison can be told, beside the options of a run."""

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Interval

from stem_torchrec.comparison.comparable import EDGES


@dataclass(frozen=True)
class CompareConfig:
    """What to compare, beside the options of train.py."""

    out: str = ""
    """Folder for the runs and the report. The same command again goes on where an interrupted one stopped."""
    models: str = "stem,single_task,shared_bottom,mmoe,ple"
    """Models, separated by commas: those of --model.arch, `all` for all of them, and the ablations stem_reads_own,
    stem_trains_all, stem_gate_task, stem_gate_shared."""
    seeds: str = "0,1,2"
    """Seeds, separated by commas; every model trains with each."""
    base: str = "single_task"
    """The model that the others are compared with."""
    split: str = "test"
    """The part of the log to report on: one on which nothing was chosen, so neither train nor valid."""
    resamples: Annotated[int, Interval(ge=1, le=10**6)] = 1000
    """Draws of users behind each interval."""
    confidence: Annotated[float, Interval(gt=0, lt=1)] = 0.95
    """Share of the draws that an interval holds."""
    pair: str = ""
    """The two tasks of the comparable-samples analysis, separated by a comma; by default the first two."""
    ratio_edges: tuple[Annotated[float, Interval(gt=0, le=1e6)], ...] = EDGES
    """Edges of its bins: how much more of a user's positives are of the first task than over the whole log."""
    item: str = ""
    """The sparse feature that names the item, for the same analysis by item; without it only by user."""
    tune: bool = False
    """Chooses --sparse.learning-rate and --model.embedding-l2 for each model from the two lists below, by validation
    (--train.metric) with the first seed, before it trains with all."""
    learning_rates: tuple[Annotated[float, Interval(ge=0, le=1e6)], ...] = ()
    """Learning rates of the tables to choose from; by default --sparse.learning-rate, half of it and twice."""
    embedding_l2: tuple[Annotated[float, Interval(ge=0, le=1e6)], ...] = ()
    """L2 regularisations of embeddings to choose from; by default 0, 0.1 and --model.embedding-l2."""
