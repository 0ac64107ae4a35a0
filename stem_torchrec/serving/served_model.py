"""A trained model as a function of plain tensors, which torch.export can take: no collection, no KeyedJaggedTensor."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, embedding_bag

from stem_torchrec.data.schema import SparseFeature
from stem_torchrec.models.frame import MultiTaskModel
from stem_torchrec.models.kept_tasks import keep_tasks
from stem_torchrec.models.links import typed_links
from stem_torchrec.serving.manifest import TableEntry, TablePrecision
from stem_torchrec.tables import split_columns, table_name


class ServedModel(nn.Module):
    """Maps dense features (B, N), bags of ids and tables to probabilities (B, T) in fp32, and of numbers to numbers.

    The tables are inputs, so that they stay outside of the exported program, and of any number of rows.

    Args:
        model: with its dense weights; its collection may be on the meta device and is dropped, as is what only other
            tasks need.
        tasks: the T tasks, in the order of the probabilities.
        features: the sparse features, in the order of `values` and `offsets` in `forward`.
        precision: of the tables.

    Example::

        served = ServedModel(stem, ["like"], features, "fp32")
        served.groups                        # ("finish", "like", "shared"): the groups that `like` reads
        served.take_tables(tables)           # table_entries(features, served.groups, ...)
        #        i = 0    i = 1
        # uid    [3]      [7]
        # tags   [1, 4]   []
        values = [torch.tensor([3, 7]), torch.tensor([1, 4])]
        offsets = [torch.tensor([0, 1, 2]), torch.tensor([0, 2, 2])]
        served(torch.empty(2, 0), values, offsets, [], weights_of_tables).shape  # (2, 1)
    """

    def __init__(
        self,
        model: MultiTaskModel,
        tasks: Sequence[str],
        features: Mapping[str, SparseFeature],
        precision: TablePrecision,
    ) -> None:
        super().__init__()
        self.groups = keep_tasks(model, tasks)
        # The order of a group's columns, which its experts' weights follow.
        self.parts = {g: [table_name(g, feature) for feature, _ in model.sparse_arch.columns[g]] for g in self.groups}
        del model.sparse_arch
        model.embedding_l2 = 0.0
        self.model = model.eval()
        self.positions = [list(model.towers).index(task) for task in tasks]
        # Modules of the model, by the column of their task.
        self.links = {list(tasks).index(task): link for task, link in typed_links(model.links).items() if task in tasks}
        self.features = dict(features)
        self.weighted = [name for name, feature in features.items() if feature.weights is not None]
        self.precision = precision
        self.tables: Sequence[TableEntry] = ()

    def take_tables(self, tables: Sequence[TableEntry]) -> None:
        """Sets which tables `forward` takes, in their order."""
        self.tables = tuple(tables)

    def forward(
        self, dense: Tensor, values: list[Tensor], offsets: list[Tensor], weights: list[Tensor], tables: list[Tensor]
    ) -> Tensor:
        """Probabilities (B, T); of tasks whose labels are numbers or levels, what they are expected to be.

        Args:
            dense: dense features (B, N).
            values: the ids of all B bags, by feature.
            offsets: where each bag starts, and the last one ends, (B + 1,), by feature.
            weights: of the ids, for the features that have weights, in their order.
            tables: what `quantized` makes of the tables, in the order of `take_tables`.
        """
        ids = dict(zip(self.features, zip(values, offsets, strict=True), strict=True))
        of_ids = dict(zip(self.weighted, weights, strict=True))
        pooled: dict[str, Tensor] = {}
        for entry, table in zip(self.tables, tables, strict=True):
            bags, starts = ids[entry.feature]
            sums = sum_bags(table, bags, starts, of_ids.get(entry.feature), self.precision)
            if self.features[entry.feature].pooling == "mean":
                sums = sums / starts.diff().clamp(min=1)[:, None]
            for name, columns in split_columns(entry.name, entry.columns).items():
                pooled[name] = sums[:, columns.start : columns.stop]
        x = {g: torch.cat([pooled[name] for name in parts], dim=1) for g, parts in self.parts.items()}
        logits = self.model.above_tables(dense, x).float()[:, self.positions]
        if not self.links:
            return logits.sigmoid()
        predicted = [self.links.get(i, torch.sigmoid)(logits[:, i]) for i in range(len(self.positions))]
        return torch.stack(predicted, dim=1)


class ServedTogether(nn.Module):
    """Served models as one, each of which predicts some of the tasks from its own weights and tables.

    The tables of the first model come first; the names of all of a model's begin with its number, as `0:like/uid`.

    Args:
        models: one for each part of the tasks, which have taken their tables.
        tasks: of each model, in the order of its probabilities.
        order: the T tasks, in the order of the probabilities.
    """

    def __init__(self, models: Sequence[ServedModel], tasks: Sequence[Sequence[str]], order: Sequence[str]) -> None:
        super().__init__()
        self.models = nn.ModuleList(models)
        self.counts = [len(model.tables) for model in models]
        predicted = [task for of_model in tasks for task in of_model]
        self.positions = [predicted.index(task) for task in order]
        self.features, self.weighted = models[0].features, models[0].weighted
        self.precision: TablePrecision = models[0].precision
        self.tables: Sequence[TableEntry] = tuple(
            replace(entry, name=f"{number}:{entry.name}")
            for number, model in enumerate(models)
            for entry in model.tables
        )

    def forward(
        self, dense: Tensor, values: list[Tensor], offsets: list[Tensor], weights: list[Tensor], tables: list[Tensor]
    ) -> Tensor:
        """Probabilities (B, T); see ServedModel.forward."""
        parts, first = [], 0
        for number, count in enumerate(self.counts):
            parts.append(self.models[number](dense, values, offsets, weights, tables[first : first + count]))
            first += count
        return torch.cat(parts, dim=1)[:, self.positions]


def sum_bags(
    table: Tensor, values: Tensor, offsets: Tensor, weights: Tensor | None, precision: TablePrecision
) -> Tensor:
    """The sums of the embeddings of each bag, (B, D) in fp32."""
    if precision == "int8":
        return torch.ops.quantized.embedding_bag_byte_rowwise_offsets(
            table, values, offsets, False, 0, False, weights, None, True
        )
    if precision == "fp16":
        # Looked up first: a bag of fp16 would be rounded to fp16 again, and large weights of ids would overflow.
        table, values = embedding(values, table).float(), torch.arange(values.shape[0], dtype=values.dtype)
    return embedding_bag(values, table, offsets, mode="sum", per_sample_weights=weights, include_last_offset=True)
