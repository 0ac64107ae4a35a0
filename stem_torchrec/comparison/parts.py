"""What one training run of a comparison trains: a model on all tasks, or on one of them where each has its own."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from stem_torchrec.comparison.built_in import built_in
from stem_torchrec.comparison.settings import Setting
from stem_torchrec.comparison.variants import Variant
from stem_torchrec.config import TrainConfig
from stem_torchrec.losses.table import of_some_tasks
from stem_torchrec.models.build import weights_by_label
from stem_torchrec.models.table import groups_with_tables


@dataclass(frozen=True)
class Part:
    """What one training run trains: a model on all tasks, or on one of them where each has its own."""

    variant: Variant
    """The model."""
    labels: tuple[str, ...]
    """Its tasks."""
    setting: Setting | None = None
    """What `--tune` has chosen for it, or lets it try."""

    @property
    def model(self) -> str:
        """The name of its model."""
        return self.variant.name

    @property
    def alone(self) -> bool:
        """Whether it is one of several models of a task each."""
        return self.variant.alone

    @property
    def name(self) -> str:
        """Its name in messages and its subfolder: `stem`, `single_task/like`."""
        return f"{self.model}/{self.labels[0]}" if self.alone else self.model

    @property
    def place(self) -> str:
        """Its name and its setting, for messages: `stem, learning_rate=0.02,embedding_l2=0`."""
        return f"{self.name}, {self.setting.name}" if self.setting else self.name

    def configure(self, config: TrainConfig) -> TrainConfig:
        """The configuration of this part: its model and tasks, with these tasks' weights, losses and learning rates.

        Args:
            config: of the comparison; it names its labels.
        """
        config = self.variant.configure(config)
        config = self.setting.configure(config) if self.setting else config
        weights = weights_by_label(config.model.task_weights, config.data.labels)
        task_weights = tuple(weights[config.data.labels.index(task)] for task in self.labels if weights)
        model = replace(config.model, task_weights=task_weights)
        groups = groups_with_tables(model, self.labels)
        rates = {group: rate for group, rate in config.sparse.group_learning_rates.items() if group in groups}
        spaces = {task: label for task, label in config.data.spaces.items() if task in self.labels}
        # The best weights of a single-task model are those of its task already.
        by_task = config.train.best_by_task and not self.alone
        metric = config.train.metric.partition("/")[0] if self.alone else config.train.metric
        return replace(
            config,
            model=model,
            loss=of_some_tasks(config.loss, self.labels),
            data=replace(config.data, labels=self.labels, spaces=spaces),
            sparse=replace(config.sparse, group_learning_rates=rates),
            train=replace(config.train, metric=metric, best_by_task=by_task),
        )


def parts_of(model: str, labels: Sequence[str], variants: Mapping[str, Variant] | None = None) -> list[Part]:
    """The parts of a model: one, or one for each task where each has its own, tuned and stopped by its task.

    Args:
        model: a key of `variants`.
        labels: the tasks.
        variants: the models that may be named; by default those that are built in.
    """
    variant = (variants or built_in())[model]
    return [Part(variant, of_part) for of_part in ([(label,) for label in labels] if variant.alone else [(*labels,)])]
