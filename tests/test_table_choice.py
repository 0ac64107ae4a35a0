"""Tables for chosen features, of several tasks, of other widths: what is read, trained, kept and saved."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import pad
from torchrec import EmbeddingBagCollection
from torchrec.datasets.utils import Batch

from stem_torchrec.config import ModelConfig, TrainConfig
from stem_torchrec.data.files import Columns
from stem_torchrec.models.build import build_model
from stem_torchrec.models.frame import MultiTaskModel
from stem_torchrec.models.stem import STEM, STEMOptions
from stem_torchrec.models.table import MODELS, groups_with_tables, table_choice_of, with_arch
from stem_torchrec.models.trained_by import tasks_of_parameters
from stem_torchrec.models.weight_groups import freeze, groups_with_weights
from stem_torchrec.runtime.errors import UserError
from stem_torchrec.serving.manifest import TableEntry
from stem_torchrec.serving.served_model import ServedModel
from stem_torchrec.starting.match_tables import match_tables
from stem_torchrec.starting.model_weights import ModelWeights
from stem_torchrec.tables import TableChoice, embedding_bag_configs, table_configs, table_feature

from distributed import run_ranks
from reference import TABLES, logits_by_formula, random_batch, sparse_features
from runs import MODEL, Run, config_of, with_labels_of
from starts import predictions, save_run, start
from test_layouts import resume, save
from test_stem import ROUNDING, build, gradients, small

TASKS = ("finish", "like", "share")
COLUMNS = Columns(sparse=sparse_features(uid=11, tags=7, tab=3), dense=("age",), labels=TASKS, group=None)
CHOICES: dict[str, dict] = {
    "own": {"own_tables": ("uid",)},
    "group": {"table_groups": {"like": "social", "share": "social"}},
    "another task's": {"table_groups": {"share": "like"}, "own_tables": ("uid", "tab")},
    "none": {"table_groups": {"like": "shared"}},
    "widths": {"table_widths": {"like": 8, "like/tags": 4, "finish/tab": 0, "shared/uid": 12}, "embedding_dim": 8},
    "all at once": {
        "own_tables": ("tags",),
        "table_groups": {"like": "social", "share": "social"},
        "table_widths": {"social": 8, "social/uid": 4},
    },
}
ISOLATED = dataclasses.replace(
    MODEL, own_tables=("uid",), table_groups={"like": "social", "share": "social"}, table_widths={"social": 4}
)
"""Tables finish/uid, social/uid and the shared ones, the second of another width."""


def tables_of(config: ModelConfig, columns: Columns = COLUMNS) -> dict[str, tuple[int, int]]:
    configs = table_configs(build_model(config, columns))
    return {table.name: (table.num_embeddings, table.embedding_dim) for table in configs}


def read_in_its_place(weights: Mapping[str, Tensor], config: STEMOptions) -> dict[str, Tensor]:
    """The weights under the names of a model with all tables, those that it lacks standing for what is read instead."""
    choice, whole = table_choice_of(config), dict(weights)
    for feature in COLUMNS.sparse:
        tables = {
            group: weights[name]
            for group in groups_with_tables(config, TASKS)
            if (name := f"{TABLES}.{group}/{feature}.weight") in weights
        }
        width = max(table.shape[1] for table in tables.values())
        for group in (*TASKS, "shared"):
            own = choice.groups.get(group, group)
            table = tables[own if own in tables else "shared"]
            whole[f"{TABLES}.{group}/{feature}.weight"] = pad(table, (0, width - table.shape[1]))
    return whole


@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("case", CHOICES)
def test_a_group_reads_and_trains_the_shared_table_where_it_has_none(case: str, num_layers: int) -> None:
    config = small(num_layers=num_layers, **CHOICES[case])
    model, batch = build(config, COLUMNS), random_batch(1, COLUMNS)
    weights = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}
    logits = model(batch.dense_features, batch.sparse_features)
    expected = logits_by_formula(read_in_its_place(weights, config), batch, TASKS, config)
    torch.testing.assert_close(logits, expected, **ROUNDING)
    factors = torch.randn(logits.shape)
    # Raises if the formula does not use a parameter.
    by_formula = torch.autograd.grad((expected * factors).sum(), list(weights.values()))
    own = gradients(model, (logits * factors).sum())
    for (name, gradient), other in zip(own.items(), by_formula, strict=True):
        torch.testing.assert_close(gradient, other, **ROUNDING, msg=lambda text, name=name: f"{name}: {text}")


def test_memory_lies_between_one_and_all_tables() -> None:
    def columns(**options) -> int:
        return sum(rows * width for rows, width in tables_of(small(**options)).values())

    # 21 rows of 4 columns for each of 4 groups.
    assert columns() == 4 * 21 * 4
    assert columns(own_tables=("uid",)) == 21 * 4 + 3 * 11 * 4
    assert columns(own_tables=("uid",), table_groups={"like": "social", "share": "social"}) == 21 * 4 + 2 * 11 * 4
    assert columns(table_groups=dict.fromkeys(TASKS, "shared")) == 21 * 4
    assert columns(embedding_dim=8, table_widths=dict.fromkeys(TASKS, 4)) == 21 * 8 + 3 * 21 * 4


def test_a_packed_table_has_the_groups_of_one_width() -> None:
    assert tables_of(dataclasses.replace(ISOLATED, layout="packed")) == {
        "finish+shared/uid": (11, 16), "social/uid": (11, 4), "shared/tags": (7, 8), "shared/tab": (3, 8),
    }  # fmt: skip


def test_the_tasks_that_train_a_table_are_those_that_read_it_and_may() -> None:
    train = build_model(dataclasses.replace(ISOLATED, num_layers=3), COLUMNS)
    trained = tasks_of_parameters(train, tasks=3, dense_in_features=1)
    by_table = {n.split(".")[-2]: tasks for n, tasks in trained.items() if "embedding_bags" in n}
    everybody = {f"shared/{feature}": {0, 1, 2} for feature in COLUMNS.sparse}
    assert by_table == {"finish/uid": {0}, "social/uid": {1, 2}, **everybody}


# On ranks


def batches(steps: int) -> list[Batch]:
    rank, rows = dist.get_rank(), 12 // dist.get_world_size()
    return [random_batch(step, BIG, part=slice(rank * rows, (rank + 1) * rows), missing=0.3) for step in range(steps)]


BIG = dataclasses.replace(COLUMNS, sparse=sparse_features(uid=5000, tags=7, tab=3))
LAYOUTS = ("split", "packed")


def config_for(layout: str) -> TrainConfig:
    return config_of("adagrad", "row_wise", model=dataclasses.replace(ISOLATED, layout=layout))


def on_ranks(folder: Path) -> tuple[dict[str, list[set[str]]], dict[str, dict[str, Tensor]]]:
    """By layout, the tables that steps on each task's labels change; before, weights after 4 steps on all labels."""
    changed: dict[str, list[set[str]]] = {layout: [] for layout in LAYOUTS}
    weights: dict[str, dict[str, Tensor]] = {}
    for layout, other in zip(LAYOUTS, reversed(LAYOUTS), strict=True):
        run = Run.build(config_for(layout), BIG)
        run.train(batches(3))
        save(run, folder / layout)
        run.train(batches(4)[3:])
        resumed = resume(config_for(other), folder / layout, BIG)
        resumed.train(batches(4)[3:])
        weights |= {layout: run.weights(), f"{layout}, then {other}": resumed.weights()}
        for task in range(3):
            before = run.table_bits()
            run.train(with_labels_of(task, batches(6)[4:], BIG))
            after = run.table_bits()
            same = {t: all(map(torch.equal, pieces, after[t])) for t, pieces in before.items()}
            changed[layout].append({table for table in same if not same[table]})
    return changed, weights


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[tuple]:
    return run_ranks(2, on_ranks, tmp_path_factory.mktemp("states"))


def test_steps_on_a_task_change_the_tables_of_its_group_and_the_shared_ones_and_no_bit_of_others(ranks) -> None:
    shared = {"shared/uid", "shared/tags", "shared/tab"}
    for layout in LAYOUTS:
        changed = [set().union(*(rank[0][layout][task] for rank in ranks)) for task in range(3)]
        assert changed == [{"finish/uid"} | shared, {"social/uid"} | shared, {"social/uid"} | shared]


def test_both_layouts_learn_and_save_the_same_bits(ranks) -> None:
    [_, weights], _ = ranks
    first, *others = weights.values()
    assert len(others) == 3
    for other in others:
        assert set(other) == set(first)
        assert all(torch.equal(other[name], weight) for name, weight in first.items())


# Frozen, served, started from


def test_a_frozen_group_of_tables_keeps_them_and_a_frozen_task_trains_only_what_is_not_frozen() -> None:
    batch = random_batch(1, COLUMNS, missing=0.0)
    for frozen, kept in {
        "social": {"social/uid"},
        "like": set(),
        "shared": {f"shared/{f}" for f in COLUMNS.sparse},
    }.items():
        train = build_model(ISOLATED, COLUMNS, table_device="cpu")
        assert isinstance(train.model, MultiTaskModel)
        assert groups_with_weights(train.model) == (*TASKS, "social", "shared")
        freeze(train.model, [frozen])
        train(batch)[0].backward()
        tables = {n.split(".")[-2]: p for n, p in train.named_parameters() if TABLES in n}
        assert {t for t, p in tables.items() if p.grad is None or not p.grad.any()} == kept


def test_the_decay_of_embeddings_counts_a_shared_column_once() -> None:
    batch = random_batch(1, COLUMNS, missing=0.0)
    grads = []
    for l2 in (0.0, 0.5):
        model = build(small(own_tables=("uid",), embedding_l2=l2), COLUMNS)
        logits = model(batch.dense_features, batch.sparse_features)
        grads.append(gradients(model, logits.sum()))
        pooled = model.sparse_arch(batch.sparse_features)["shared"]
    name = f"{TABLES}.shared/tab.weight"
    ids, lengths = batch.sparse_features["tab"].values(), batch.sparse_features["tab"].lengths()
    rows = pooled[:, -4:].detach().repeat_interleave(lengths.long(), dim=0)
    expected = torch.zeros(3, 4).index_add(0, ids, 0.5 / len(pooled) * rows)
    torch.testing.assert_close(grads[1][name] - grads[0][name], expected, **ROUNDING)


@pytest.mark.parametrize("tasks", [TASKS, ("like",)])
@pytest.mark.parametrize("layout", ["split", "packed"])
def test_what_is_served_predicts_the_same(layout: str, tasks: tuple[str, ...]) -> None:
    torch.manual_seed(0)
    train = build_model(dataclasses.replace(ISOLATED, layout=layout), COLUMNS, table_device="cpu").eval()
    batch = random_batch(1, COLUMNS)
    expected = train.model(batch.dense_features, batch.sparse_features).sigmoid()
    entries = [
        TableEntry(table.name, table_feature(table.name), table.num_embeddings, table.embedding_dim)
        for table in table_configs(train)
    ]
    weights = [p.detach() for n, p in train.named_parameters() if TABLES in n]
    served = ServedModel(train.model, tasks, COLUMNS.sparse, "fp32")
    # A gate reads the experts of all tasks, finish of its own tables among them.
    assert served.groups == ("finish", "social", "shared")
    served.take_tables(entries)
    bags = [batch.sparse_features[feature] for feature in COLUMNS.sparse]
    ids, offsets = [each.values() for each in bags], [each.offsets() for each in bags]
    predicted = served(batch.dense_features, ids, offsets, [], weights)
    columns = [TASKS.index(task) for task in tasks]
    torch.testing.assert_close(predicted, expected[:, columns], **ROUNDING)


WHOLE = dataclasses.replace(MODEL, own_tables=(), table_groups={})
# Of one width, as new columns start as initialized.
FEWER = dataclasses.replace(ISOLATED, table_widths={})


def started(folder: Path) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, str]]:
    """What a run predicts, what one with more tables predicts that starts from it, and the details on its tables."""
    source, run = save_run(folder, config_of("adagrad", "table_wise", model=FEWER), BIG)
    new, carried = start(source, config_of("adagrad", "table_wise", model=WHOLE), BIG)
    batch = random_batch(99, BIG, missing=0.0)
    lines = {f"{group}, {line.item}": line.details for line in carried.lines for group in line.of}
    return predictions(run, batch), predictions(new, batch), lines


def test_a_table_that_appears_continues_the_one_that_its_group_has_read(tmp_path: Path) -> None:
    [(before, after, lines)] = run_ranks(1, started, tmp_path)
    assert all(torch.equal(before[task], after[task]) for task in TASKS)
    assert lines["like, tables of uid"] == "as those of social"
    assert lines["like, tables of tags"] == lines["finish, tables of tab"] == "as those of shared"


def test_tables_that_are_gone_are_dropped_and_groups_of_another_name_start_where_they_are_told() -> None:
    def lines(old: STEMOptions, new: STEMOptions, tables_from: str | None = None) -> dict[str, tuple[str, str]]:
        weights = [ModelWeights(each, COLUMNS) for each in (old, new)]
        options = {"source": "old", "new_rows": "initial", "tables_from": tables_from, "states": "carried"}
        _, of_tables = match_tables(*weights, {}, **options)
        return {f"{line.of[0]}, {line.item}": (line.status, line.details) for line in of_tables}

    dropped = lines(WHOLE, FEWER)
    assert dropped["finish, tables of tags"] == dropped["like, tables of uid"] == ("dropped", "")
    assert dropped["social, tables of uid"] == ("fresh", "new group")
    assert lines(WHOLE, FEWER, "like")["social, tables of uid"] == ("carried", "as those of like")


# What is refused


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"own_tables": ("uids",)}, "--model.own-tables names 'uids', but the features are uid, tags, tab; did you"),
        ({"table_groups": {"likes": "a"}}, "-groups names the task 'likes', but the tasks are finish, like, share;"),
        ({"table_groups": {"like": "a+b"}}, "a task cannot be called 'a+b'"),
        ({"table_groups": {"like": "share", "share": "a"}}, "gives like the tables of share, which has those of a;"),
        ({"table_widths": {"likes": 8}}, "names the group 'likes', but there are tables only of finish, like,"),
        ({"table_widths": {"like/uids": 8}}, "names the feature 'uids', but there are tables only of uid, tags,"),
        ({"table_widths": {"like": 6}}, "gives like 6 columns, but must give a multiple of 4 from 4 on"),
        ({"table_widths": {"like": 0}}, "has no tables of its own with --model.table-groups TASK shared."),
        ({"table_widths": {"shared/uid": 0}}, "gives shared/uid 0 columns, but must give a multiple of 4 from 4 on"),
        ({"own_tables": ("uid",), "table_widths": {"like/uid": 0}}, "leave no table to 'like'; say so by --model."),
    ],
)  # fmt: skip
def test_a_choice_that_does_not_fit_is_one_sentence(options: dict, sentence: str) -> None:
    with pytest.raises(UserError) as error:
        build_model(small(**options), COLUMNS)
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


def test_a_model_over_tables_of_another_choice_is_refused() -> None:
    features, own = list(COLUMNS.sparse.values()), TableChoice(own=["uid"])
    configs = embedding_bag_configs(features, [*TASKS, "shared"], table_choice=own)
    collection = EmbeddingBagCollection(tables=configs)
    assert STEM(collection, TASKS, table_choice=own).in_features == 48
    with pytest.raises(UserError, match="'finish' has tables of uid, but the table choice wants those of tags; give"):
        STEM(collection, TASKS, table_choice=TableChoice(own=["tags"]))
    with pytest.raises(UserError, match="has no table for the feature 'tags', which 'shared' has"):
        STEM(collection, TASKS)


@pytest.mark.parametrize("arch", MODELS)
def test_models_without_tables_for_each_task_and_shared_ones_have_no_such_options(arch: str) -> None:
    model = with_arch(small(own_tables=("uid",)), arch)
    both = tuple(MODELS[arch].groups(TASKS)) == (*TASKS, "shared")
    assert hasattr(model, "own_tables") == both
    assert ("finish/tags" in tables_of(model)) == (arch == "single_task")
