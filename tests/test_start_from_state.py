"""A run starts from another one's state: the first step predicts as the last one would have, and states go on."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from stem_torchrec.checkpoints.state import restore_state
from stem_torchrec.checkpoints.weights import save_weights
from stem_torchrec.config import DenseOptimizerConfig, SparseOptimizerConfig, TrainConfig
from stem_torchrec.config.serialization import from_dict, to_dict
from stem_torchrec.models.table import MODELS as ARCHS
from stem_torchrec.models.table import with_arch
from stem_torchrec.runtime.errors import UserError
from stem_torchrec.starting.axis_labels import CLOSED
from stem_torchrec.starting.carried import Carried
from stem_torchrec.starting.carry_plan import first_step_of_a_new_row, plan_carry
from stem_torchrec.starting.id_maps import IdMap
from stem_torchrec.starting.source import StartSource

from distributed import run_ranks
from reference import COLUMNS, TABLES, random_batch, sparse_features
from runs import MODEL, Run, config_of
from starts import batches_for, predictions, save_run, start, whole_states, with_columns_of

CONFIG = config_of("adagrad", "table_wise", model=replace(MODEL, num_task_experts=2))
GROWN = {**COLUMNS.sparse, **sparse_features(uid=6500)}
CITY = sparse_features(city=20)
CHANGES: dict[str, Any] = {
    "nothing": COLUMNS,
    "features": replace(COLUMNS, sparse=CITY | COLUMNS.sparse, dense=("age", "height", "price")),
    "a task": replace(COLUMNS, labels=("share", "finish", "like")),
    "ids": replace(COLUMNS, sparse=GROWN),
    "all": replace(
        COLUMNS, sparse=dict(reversed((CITY | GROWN).items())), dense=("price", "height", "age"),
        labels=("like", "share", "finish"),
    ),
}  # fmt: skip
BATCH = random_batch(9, missing=0.0)
# The sums of a layer have more terms, of 0, and so another order.
ROUNDING = {"rtol": 1e-5, "atol": 1e-6}
Weights = dict[str, Tensor]


def started(source: StartSource, config: TrainConfig, columns: Any = COLUMNS, **chosen: Any) -> dict[str, Any]:
    """What a run is like that has just started."""
    run = Run.build(replace(config, seed=7), columns)
    fresh = run.weights()
    _, carried = start(source, config, columns, run=run, **chosen)
    weights, states = run.weights(), whole_states(run)
    return {
        "weights": weights, "states": states, "fresh": fresh, "carried": carried,
        "logits": predictions(run, with_columns_of(BATCH, columns)),
    }  # fmt: skip


def change_all(folder: Path) -> dict[str, dict[str, Any]]:
    source, run = save_run(folder / "stem", CONFIG)
    weights, states = run.weights(), whole_states(run)
    results = {change: started(source, CONFIG, columns) for change, columns in CHANGES.items()}
    results["yesterday"] = {"weights": weights, "states": states, "logits": predictions(run, BATCH)}
    dropped = replace(COLUMNS, sparse=sparse_features(tags=7), dense=("price",), labels=("like",))
    results["dropped"] = started(source, CONFIG, dropped)
    wide, narrow = (replace(CONFIG, model=replace(CONFIG.model, embedding_dim=d)) for d in (12, 4))
    results["wide"], results["narrow"] = started(source, wide), started(source, narrow)
    results["deep"] = started(source, replace(CONFIG, model=replace(CONFIG.model, tower_hidden=(8, 4))))
    rows = torch.tensor([0, 3, -1, 5, -1])
    of_tags = replace(COLUMNS, sparse={**COLUMNS.sparse, **sparse_features(tags=5)})
    for how in ("unseen", "mean"):
        results[how] = started(source, CONFIG, of_tags, id_maps={"tags": IdMap(7, 5, rows)}, new_rows=how)
    results["tables"] = started(source, CONFIG, CHANGES["a task"], tables_from="shared", gate_bias=-5.0)
    results["weights"] = started(
        replace(source, has_states=False, config=None, columns=None, step=None), CONFIG, CHANGES["ids"]
    )
    adamw = DenseOptimizerConfig("adamw", weight_decay=0.1)
    sparse = SparseOptimizerConfig("rowwise_adagrad")
    results["optimizers"] = started(source, replace(CONFIG, dense=adamw, sparse=sparse), CHANGES["a task"])
    return results


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    [results] = run_ranks(1, change_all, tmp_path_factory.mktemp("runs"))
    return results


@pytest.mark.parametrize("change", [*CHANGES, "wide", "weights"])
def test_the_first_step_predicts_as_the_source(results, change: str):
    for task, logits in results["yesterday"]["logits"].items():
        torch.testing.assert_close(results[change]["logits"][task], logits, **ROUNDING)
        assert logits.abs().max() > 0.02


def test_the_same_model_continues_every_weight_and_state_to_the_bit(results):
    for kind in ("weights", "states"):
        for name, value in results["yesterday"][kind].items():
            assert torch.equal(results["nothing"][kind][name], value), name
    assert {line.status for line in results["nothing"]["carried"].lines} == {"carried"}


def test_a_vocabulary_that_grows_by_30_percent_continues_every_row_and_state_to_the_bit(results):
    old, new = results["yesterday"], results["ids"]
    for group in ("finish", "like", "shared"):
        weight, sums = f"{TABLES}.{group}/uid.weight", f"{group}/uid.momentum1"
        assert torch.equal(new["weights"][weight][:5000], old["weights"][weight])
        assert torch.equal(new["weights"][weight][5000:], new["fresh"][weight][5000:])
        assert torch.equal(new["states"][sums][:5000], old["states"][sums])
        assert old["states"][sums].count_nonzero() > 100
        assert new["states"][sums][5000:].count_nonzero() == 0
    [line] = [line for line in new["carried"].lines if line.status == "grown"]
    assert (line.item, line.of, line.rows, line.new_rows) == ("tables of uid", ("finish", "like", "shared"), 5000, 1500)


def test_what_is_new_starts_as_it_is_initialized_with_states_of_0(results):
    for change in ("all", "optimizers"):
        new = results[change]
        own = [name for name in new["fresh"] if ".share." in f".{name}".replace("/", ".") or "/city." in name]
        assert len(own) > 20
        for name in own:
            assert torch.equal(new["weights"][name], new["fresh"][name]), name
        for name, state in new["states"].items():
            if ".share." in name or change == "optimizers":
                assert state.count_nonzero() == 0, name


def test_columns_of_a_new_feature_and_rows_of_a_new_expert_are_0_as_are_their_moments(results):
    new, old = results["all"], results["yesterday"]
    # Tags, uid and city of 8 columns each, and the projected dense features; before, uid and tags.
    columns = [*range(8, 16), *range(8), *range(24, 32)]
    name = "layers.0.experts.like.0.weight"
    assert torch.equal(new["weights"][name][:, columns], old["weights"][name])
    assert new["weights"][name][:, 16:24].count_nonzero() == 0
    for moment in ("exp_avg", "exp_avg_sq"):
        state = f"model.{name}.{moment}"
        assert torch.equal(new["states"][state][:, columns], old["states"][state])
        assert new["states"][state][:, 16:24].count_nonzero() == 0
    # Like, share, finish and shared of 2 experts each; before, finish, like and shared.
    rows, last = [4, 5, 0, 1, 6, 7], "layers.1.gates.like.mlp.2"
    for kind, closed in (("weight", 0.0), ("bias", CLOSED)):
        assert torch.equal(new["weights"][f"{last}.{kind}"][rows], old["weights"][f"{last}.{kind}"])
        assert new["weights"][f"{last}.{kind}"][[2, 3]].eq(closed).all()
        assert new["states"][f"model.{last}.{kind}.step"] == 4
    assert torch.equal(new["weights"]["dense_arch.like.weight"][:, [2, 0]], old["weights"]["dense_arch.like.weight"])
    assert new["weights"]["dense_arch.like.weight"][:, 1].count_nonzero() == 0


def test_what_is_dropped_leaves_the_rest_as_it_was(results):
    new, old = results["dropped"], results["yesterday"]
    assert torch.equal(
        new["weights"]["layers.0.experts.like.0.weight"], old["weights"]["layers.0.experts.like.0.weight"][:, 8:]
    )
    assert torch.equal(new["weights"]["dense_arch.like.weight"], old["weights"]["dense_arch.like.weight"][:, 1:])
    # Of the experts of finish, like and shared.
    last = "layers.0.gates.like.mlp.2.weight"
    assert torch.equal(new["weights"][last], old["weights"][last][2:])
    for name, weight in new["weights"].items():
        if name.startswith(("towers", TABLES)):
            assert torch.equal(weight, old["weights"][name])
    gone = {line.item: line.of for line in new["carried"].lines if line.status == "dropped"}
    assert gone["tables of uid"] == ("finish", "like", "shared")
    assert gone["towers"] == ("finish",)


def test_another_width_continues_the_first_columns(results):
    old = results["yesterday"]
    for change, width in (("wide", 8), ("narrow", 4)):
        for kind, name in (("weights", f"{TABLES}.like/uid.weight"), ("states", "like/uid.momentum1")):
            assert torch.equal(results[change][kind][name][:, :width], old[kind][name][:, :width])
    assert torch.equal(
        results["wide"]["weights"][f"{TABLES}.like/uid.weight"][:, 8:],
        results["wide"]["fresh"][f"{TABLES}.like/uid.weight"][:, 8:],
    )
    assert results["wide"]["states"]["like/uid.momentum1"][:, 8:].count_nonzero() == 0


def test_rows_of_new_ids_start_as_chosen_and_others_are_matched(results):
    old, name = results["yesterday"]["weights"][f"{TABLES}.like/tags.weight"], f"{TABLES}.like/tags.weight"
    carried = old[[0, 3, 5]]
    for how, row in (("unseen", old[0]), ("mean", carried.double().mean(dim=0).float())):
        new = results[how]
        assert torch.equal(new["weights"][name][[0, 1, 3]], carried)
        assert torch.equal(new["weights"][name][[2, 4]], row.expand(2, -1)), how
        sums = new["states"]["like/tags.momentum1"]
        assert torch.equal(sums[[0, 1, 3]], results["yesterday"]["states"]["like/tags.momentum1"][[0, 3, 5]])
        assert sums[[2, 4]].count_nonzero() == 0
        [line] = [line for line in new["carried"].lines if line.item == "tables of tags"]
        assert "4 old rows dropped" in line.details


def test_a_new_task_may_start_from_the_tables_of_a_group_with_fresh_states_and_open_gates(results):
    new, old = results["tables"], results["yesterday"]["weights"]
    for feature in COLUMNS.sparse:
        assert torch.equal(new["weights"][f"{TABLES}.share/{feature}.weight"], old[f"{TABLES}.shared/{feature}.weight"])
        assert new["states"][f"share/{feature}.momentum1"].count_nonzero() == 0
    assert new["weights"]["layers.1.gates.like.mlp.2.bias"][:2].eq(-5.0).all()


def test_a_part_of_another_size_is_fresh_and_the_others_are_not(results):
    new, old = results["deep"], results["yesterday"]["weights"]
    for name, weight in new["weights"].items():
        assert torch.equal(weight, new["fresh"][name] if name.startswith("towers") else old[name]), name
    [line] = [line for line in new["carried"].lines if line.status != "carried"]
    assert (line.item, line.status, line.details) == ("towers", "fresh", "another number of layers")
    assert new["carried"].notes == (
        "towers start fresh, as the model has other options than that of stem: --model.tower-hidden; without --recipe "
        "and --config it has those",
    )


def test_states_are_fresh_where_there_are_none_or_the_optimizer_is_another(results):
    new = results["weights"]
    assert all(state.count_nonzero() == 0 for state in new["states"].values())
    assert new["carried"].notes == ("stem has no optimizer states, so all of them are fresh",)
    assert {line.states for line in new["carried"].lines} == {"fresh"}
    assert results["optimizers"]["carried"].notes == (
        "the states of tables are fresh: stem has those of adagrad, not of rowwise_adagrad",
        "the states of dense parts are fresh: stem has those of adam, not of adamw",
    )


def test_the_table_names_what_is_alike_once_and_goes_through_plain_values(results):
    carried = results["all"]["carried"]
    assert from_dict(Carried, to_dict(carried)) == carried
    lines = [" ".join(line.split()) for line in carried.format().splitlines()]
    assert "tables of uid like, finish, shared grown carried 5,000 1,500 new rows as initialized" in lines
    assert "tables of city like, share, finish, shared fresh fresh 20 new feature" in lines
    assert "layers.0.gates like, finish, shared grown carried 8 new input columns, 2 new experts" in lines
    assert "towers share fresh fresh new" in lines


def test_features_that_fare_alike_without_new_rows_share_a_line_of_the_text_alone(results):
    for change, details in {"nothing": "", "wide": " 4 new columns", "narrow": " 4 columns dropped"}.items():
        carried = results[change]["carried"]
        assert [line.item for line in carried.lines[:2]] == ["tables of uid", "tables of tags"]
        status = "grown" if change == "wide" else "carried"
        lines = [" ".join(line.split()) for line in carried.format().splitlines()]
        assert f"tables of uid, tags finish, like, shared {status} carried 5,007 0{details}" in lines
    uid = results["nothing"]["carried"].lines[0]
    many = Carried("stem", tuple(replace(uid, item=f"tables of f{n}", rows=n) for n in range(38)))
    assert [line.split()[:8] for line in many.format().splitlines()[2:]] == [
        ["tables", "of", "f0,", "37", "others", "finish,", "like,", "shared"]
    ]


def models_all(folder: Path) -> dict[str, tuple[dict[str, Tensor], dict[str, Tensor], Any]]:
    results = {}
    for arch in ARCHS:
        # Tasks of AITM and ESMM are steps after each other: only one at the end leaves the others as they are.
        columns = replace(CHANGES["all"], labels=("finish", "like", "share"))
        # The other tests have STEM with two layers.
        config = replace(CONFIG, model=with_arch(replace(CONFIG.model, num_layers=1 + (arch != "stem")), arch))
        source, run = save_run(folder / arch, config)
        new, carried = start(source, config, columns)
        results[arch] = predictions(run, BATCH), predictions(new, with_columns_of(BATCH, columns)), carried
    return results


def test_every_model_predicts_as_its_source_with_more_ids_features_and_tasks(tmp_path: Path):
    [results] = run_ranks(1, models_all, tmp_path)
    for arch, (old, new, carried) in results.items():
        for task, logits in old.items():
            torch.testing.assert_close(new[task], logits, **ROUNDING, msg=lambda text, arch=arch: f"{arch}: {text}")
        # A transfer of AITM belongs to the task that it starts from.
        fresh = [line for line in carried.lines if line.status == "fresh" and line.item != "transfers"]
        assert all(line.of == ("share",) or line.item == "tables of city" for line in fresh), arch


CASES = {"adagrad": "row_wise", "rowwise_adagrad": "table_wise", "adam": "data_parallel"}
"""Sharding type by table optimizer."""


def next_steps(folder: Path) -> tuple[dict[str, list[tuple[Weights, Weights]]], dict[str, tuple[str, ...]]]:
    """Weights and states after further steps of a resumed run and of one that started from the same checkpoint.

    And, by optimizer, the notes on a run with more ids.
    """
    results, notes = {}, {}
    for optimizer, sharding_type in CASES.items():
        config = config_of(optimizer, sharding_type, update_unlabeled_rows=True)
        source, _ = save_run(folder / optimizer, config)
        resumed = Run.build(replace(config, seed=7))
        restore_state(resumed.model, resumed.optimizer, source.weights, step=4, tasks=2, same_ranks=True)
        new, _ = start(source, config, COLUMNS)
        results[optimizer] = []
        for run in (resumed, new):
            run.train(batches_for(COLUMNS, range(4, 6)))
            results[optimizer].append((run.weights(), whole_states(run)))
        carried = plan_carry(source, config=config, columns=COLUMNS, id_maps={}, tables_from="shared").carried
        assert carried.notes == ("--start.tables-from shared has no effect, as the run has no new task",)
        notes[optimizer] = plan_carry(source, config=config, columns=CHANGES["ids"], id_maps={}).carried.notes
    return results, notes


def test_a_run_that_starts_makes_the_next_steps_of_the_resumed_one_bit_for_bit(tmp_path: Path):
    [(results, notes)] = run_ranks(1, next_steps, tmp_path)
    assert notes["adagrad"] == notes["rowwise_adagrad"] == ()
    [note] = notes["adam"]
    assert note.startswith("adam corrects its moments by one count of steps, 4, also in new rows, whose first step is ")
    for optimizer, (resumed, new) in results.items():
        for expected, values in zip(resumed, new, strict=True):
            assert expected.keys() == values.keys()
            for name, value in values.items():
                assert torch.equal(value, expected[name]), (optimizer, name)


@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.8, 0.9)])
def test_the_first_step_of_a_new_row_of_adam_is_as_long_as_the_note_says(betas: tuple[float, float]):
    table = torch.nn.Parameter(torch.zeros(2, 1))
    adam = torch.optim.Adam([table], lr=0.1, betas=betas, eps=0.0, foreach=False)
    steps = 12
    for step in range(steps + 1):
        table.grad = torch.tensor([[1.0], [0.3 * (step == steps)]])
        before = table.detach().clone()
        adam.step()
        # A row without gradients divides 0 by 0 if eps is 0, as here.
        table.data.nan_to_num_(nan=0.0)
    moved = (before - table.detach()).abs()
    assert moved[1].item() == pytest.approx(0.1 * first_step_of_a_new_row(steps, betas), rel=1e-5)
    assert first_step_of_a_new_row(0, betas) == pytest.approx(1)


def refusals(folder: Path) -> dict[str, str]:
    source, run = save_run(folder / "stem", CONFIG)
    save_weights(run.model, folder / "weights")
    shrunk = replace(COLUMNS, sparse=sparse_features(uid=4000, tags=7))
    wrong = replace(CONFIG, model=replace(CONFIG.model, tower_hidden=(9,)))
    messages = {}
    for case, (given, config, columns, chosen) in {
        "shrunk": (source, CONFIG, shrunk, {}),
        "tables": (source, CONFIG, CHANGES["a task"], {"tables_from": "shard"}),
        "weights": (replace(source, config=None, columns=None), wrong, COLUMNS, {}),
        "states": (replace(source, weights=str(folder / "weights")), CONFIG, COLUMNS, {}),
    }.items():
        run = Run.build(config, columns)
        before = run.weights()
        with pytest.raises(UserError) as error:
            start(given, config, columns, run=run, **chosen)
        messages[case] = str(error.value).replace(str(folder), "RUNS")
        assert all(torch.equal(weight, before[name]) for name, weight in run.weights().items())
    return messages


@pytest.fixture(scope="module")
def messages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    [messages] = run_ranks(1, refusals, tmp_path_factory.mktemp("refused"))
    return messages


@pytest.mark.parametrize(
    ("case", "message"),
    [
        (
            "shrunk",
            "the tables of 'uid' would shrink from 5000 rows in stem to 4000, and nothing tells which ids are gone; "
            "keep the old ids, or start from a run whose log has its vocabularies.",
        ),
        (
            "tables",
            "--start.tables-from is shard, but stem has only tables of finish, like, shared; did you mean 'shared'?",
        ),
        (
            "weights",
            "the weights in RUNS/stem/step-000000004 are another model's: model.towers.finish.0.bias is (8,) there and "
            "(9,) in this model.",
        ),
        (
            "states",
            f"stem lacks optimizer.model.{TABLES}.finish/uid.weight.momentum1, which its own model or optimizer has; "
            "start from another.",
        ),
    ],
)
def test_what_does_not_fit_is_refused_in_a_sentence_before_a_weight_changes(messages, case: str, message: str):
    assert messages[case] == message
