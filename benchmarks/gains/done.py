"""What is done of the comparison on a source: which models, with which seeds, on all of its logs."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from stem_torchrec.comparison.costs import Cost, cost_of
from stem_torchrec.comparison.runs import Run
from stem_torchrec.comparison.scored_rows import Comparison, ScoredRows
from stem_torchrec.comparison.several_logs import RowsOfLogs, together
from stem_torchrec.comparison.train_all import left_out_of

from gains.sources import OfSource


class Done:
    """The runs of a source that are trained and tested.

    Args:
        of_source: the comparison; its runs need not be done.
    """

    def __init__(self, of_source: OfSource) -> None:
        self.name, self.source = of_source.name, of_source.source
        self._request, self._by_log = of_source.request, of_source.by_log
        self.base = self._request.config.base
        self.of_two = f"{self.base}_of_two"
        """The name of two runs of the base averaged."""
        self.folder = of_source.request.config.out
        self.tasks = self._by_log[0].train.data.labels
        runs = [run for each in self._by_log for run in each.runs]
        results = {run: run.test_results() for run in runs if run.done}
        self.left_out = {model: reason for each in self._by_log for model, reason in left_out_of(each).items()}
        """Why a model could not be trained on some log."""
        self._missing = [run for run in runs if run not in results and run.model not in self.left_out]
        self.asked = list(dict.fromkeys(run.seed for run in runs))
        self.models = list(dict.fromkeys(run.model for run in runs))
        self._aucs = {run: each["metrics"] for run, each in results.items() if run.left_out() is None}

    def seeds(self, model: str) -> list[int]:
        """The seeds with which a model, and the base, are done on every log."""
        if {model, self.base} & set(self.left_out):
            return []
        lacking = {run.seed for run in self._missing if run.model in (model, self.base)}
        return [seed for seed in self.asked if seed not in lacking]

    def runs(self) -> list[tuple[str, Run]]:
        """All runs that are done and did not diverge, with the folder of their log."""
        by_log = zip(self.source.logs, self._by_log, strict=True)
        return [(log, run) for log, request in by_log for run in request.runs if run in self._aucs]

    def missing(self) -> list[str]:
        """The runs that are not done yet, such as `stem seed 1`; several logs are one run."""
        return list(dict.fromkeys(f"{run.model} seed {run.seed}" for run in self._missing))

    def settings(self) -> dict[str, Counter[str]]:
        """What `--tune` has chosen, by the name of what is tuned: on how many logs each setting.

        Example::

            # {"stem": Counter({"fresh_tables=True": 3, "fresh_tables=False": 1}), "single_task/like": ...}
        """
        chosen: dict[str, Counter[str]] = {}
        for request in self._by_log:
            if (grid := request.grid) is None:
                continue
            for parts in request.parts().values():
                tuned = [part for part in parts if grid.next_setting(part, parts=len(parts)) is None]
                for part in tuned:
                    if (setting := grid.best_setting(part)) is not None:
                        chosen.setdefault(part.name, Counter())[setting.name] += 1
        return chosen

    def aucs(self, model: str, seeds: Sequence[int], task: str) -> list[float]:
        """The AUC of each run of a model, log by log."""
        return [self._aucs[run][task]["auc"] for each in self._by_log for run in each.runs if _is_of(run, model, seeds)]

    def scored(self, model: str, seeds: Sequence[int]) -> ScoredRows | RowsOfLogs:
        """The rows of all logs with the predictions of a model."""
        comparisons = [self.comparison(i, model, seeds) for i in range(len(self._by_log))]
        if len(comparisons) == 1:
            return ScoredRows(comparisons[0])
        return RowsOfLogs(together(self._request, comparisons), comparisons)

    def cost(self, model: str, seeds: Sequence[int]) -> Cost:
        """What a model costs; two runs of the base twice what one does."""
        if model == self.of_two:
            one = self.cost(self.base, seeds)
            twice = {name: 2 * getattr(one, name) for name in ("tables", "dense", "states", "parts")}
            return replace(one, **twice, speeds=[speed and speed / 2 for speed in one.speeds])
        runs = [run for i in range(len(self._by_log)) for run in self.comparison(i, model, seeds).runs]
        return cost_of(replace(self.comparison(0, model, seeds), runs=runs), model)

    def comparison(self, number: int, model: str, seeds: Sequence[int]) -> Comparison:
        """A model by itself on one of the logs."""
        request = self._by_log[number]
        runs = [run for run in request.runs if _is_of(run, model, seeds)]
        return Comparison(request.config, request.train, runs, pair=None, variants=request.variants)


def _is_of(run: Run, model: str, seeds: Sequence[int]) -> bool:
    return run.model == model and run.seed in seeds
