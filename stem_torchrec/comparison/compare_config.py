"""The options of a comparison, beside those of train.py."""

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Interval

from stem_torchrec.comparison.comparable import EDGES
from stem_torchrec.comparison.multiplicity import Correction
from stem_torchrec.runtime.path_options import LocalFile, LocalOutput


@dataclass(frozen=True)
class CompareConfig:
    """What to compare, beside the options of train.py."""

    out: LocalOutput = ""
    """Folder for the runs and the report. The same command resumes an interrupted comparison."""
    models: str = "stem,duet_by_task,single_task"
    """Models, separated by commas: those of --model.arch, `all` for all of them, the ablations stem_reads_own,
    stem_trains_all, stem_gate_task, stem_gate_shared, stem_alone (a STEM for each task), STEM with one method more:
    stem_norm, stem_cross, stem_cross_norm, stem_feature_gate, stem_self_gate, stem_gates, stem_covariance, stem_focal,
    stem_smoothed, stem_pairs, stem_jrc, stem_positives, stem_uncertainty, stem_dwa, stem_pareto, stem_pcgrad,
    stem_cagrad, stem_gradcraft, stem_mgda, stem_by_task and duet_by_task (the best weights of each task), duet_mlp,
    escm2_dr, stem_published and single_task_published (with the options of the public code, whatever those of this
    command line are), and those of --variants."""
    variants: LocalFile | None = None
    """YAML file of further models, each a name with options of train.py over those of this command line:
    `stem_wide: {model.arch: stem, model.embedding_dim: 32}`. `alone: true` trains one for each task by itself,
    `recipe: published` starts from a recipe."""
    seeds: str = "0,1,2"
    """Seeds, separated by commas; every model trains with each."""
    base: str = "single_task"
    """The model that the others are compared with."""
    logs: tuple[str, ...] = ()
    """Folders of several logs in place of --data.path, such as one source split by other seeds or by other days: each
    model trains on each, and the report is on the test rows of all. Their group must be the same raw ids."""
    split: str = "test"
    """The split to report on: one on which nothing was chosen, so neither train nor valid."""
    resamples: Annotated[int, Interval(ge=1, le=10**6)] | None = None
    """Draws of users behind each interval and p-value; by default as many as the number of comparisons needs, from 1000
    to 20,000."""
    correction: Correction = "holm"
    """How p-values are adjusted for the number of comparisons: holm bounds the probability that any is wrong,
    benjamini_hochberg the expected share of wrong ones among the differences that are found."""
    confidence: Annotated[float, Interval(gt=0, lt=1)] = 0.95
    """Share of the draws that an interval covers."""
    recommend: bool = False
    """Ends in a line on which model to take: the one that validates best, if the test rows confirm it over --base. Of
    two forms that differ in --train.best-by-task, that with the weights of each task has to be confirmed as well."""
    pair: str = ""
    """The two tasks of the comparable-samples analysis, separated by a comma; by default the first two whose labels are
    0 and 1."""
    ratio_edges: tuple[Annotated[float, Interval(gt=0, le=1e6)], ...] = EDGES
    """Edges of its bins: how much more of a user's positives are of the first task than over the whole log."""
    item: str = ""
    """The sparse feature that identifies the item, for the same analysis by item; without it only by user."""
    tune: bool = False
    """Chooses --sparse.learning-rate and --model.embedding-l2 for each model from the two lists below, or the options
    of --space, by validation (--train.metric) with the first seed, before it trains with all."""
    tune_runs: Annotated[int, Interval(ge=1, le=10**6)] | None = None
    """Settings that each model tries with --tune, instead of all: first that of the other options, then ones drawn
    between the ends of the lists or from the space, the same for all. A single-task model of a task counts as a part of
    one run, so each tries as many."""
    tune_minutes: Annotated[float, Interval(gt=0, le=1e6)] | None = None
    """Minutes that each model may train for with --tune, instead of a number of settings; single-task models share
    them. What is under way when they end is taken to its end."""
    learning_rates: tuple[Annotated[float, Interval(ge=0, le=1e6)], ...] = ()
    """Learning rates of the tables to choose from; by default --sparse.learning-rate, half of it and twice."""
    embedding_l2: tuple[Annotated[float, Interval(ge=0, le=1e6)], ...] = ()
    """L2 regularization of embeddings to choose from; by default 0, 0.1 and --model.embedding-l2."""
    space: LocalFile | None = None
    """YAML file of what --tune chooses from in their place, options that all models have: a mapping to choices ([true,
    false]), of which all combinations are tried, or with a budget also to ranges ({low: 0.005, high: 0.1, log: true}),
    as stem-tune takes it; or a list of settings, such as - {sparse.eps: 1e-8, train.patience: 4}."""
