"""Deltas hold exactly what a run has changed, in every model, on any ranks, layout, plan, format and precision."""

import dataclasses
import itertools
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load, save
from torch import Tensor

from stem_torchrec.config import TrainConfig
from stem_torchrec.deltas.manifest import Piece, newest_delta, pieces_by_file, read_delta
from stem_torchrec.deltas.row_files import Rows, decode, encode, in_files, quantized, whole_rows
from stem_torchrec.deltas.shard_rows import ModelTensors
from stem_torchrec.deltas.touched import TouchedRows
from stem_torchrec.models.table import MODELS, with_arch
from stem_torchrec.runtime.errors import UserError
from stem_torchrec.training.table_changes import bits_by_table, moves_unlabeled, tables_that_move

from distributed import run_ranks
from reference import COLUMNS, TABLES, random_batch
from runs import MODEL, Run, batches_of_ranks, config_of, of_this_rank
from shipments import Shipment, apply, same, shipping_config, tables_of, weights_of_copy

Facts = tuple[dict[str, set[int]], dict[str, set[int]], bool]
"""By table the rows that changed and those that are shipped, and whether the shipped ones make the weights after."""


def changed_and_shipped(config: TrainConfig, steps: int = 3) -> Facts:
    """Of steps with missing labels; the shipped rows are those of all ranks."""
    run, batches = Run.build(config), of_this_rank(batches_of_ranks(steps, dist.get_world_size(), missing=0.5))
    before = tables_of(run.weights())
    touched = TouchedRows(
        {name: feature.num_embeddings for name, feature in COLUMNS.sparse.items()},
        len(COLUMNS.labels),
        every_lookup=moves_unlabeled(config.sparse),
    )
    run.train(batches)
    for batch in batches:
        touched.add(batch.sparse_features, batch.labels)
    bits, whole = bits_by_table(run.model, touched, len(COLUMNS.labels)), tables_that_move(run.model, config.sparse)
    rows = ModelTensors(run.model.state_dict(), bits, whole).changed_rows(touched.take(), None)
    gathered: list[list[Rows]] = [[]] * dist.get_world_size()
    dist.all_gather_object(gathered, rows)
    after, made = tables_of(run.weights()), {name: weight.clone() for name, weight in before.items()}
    shipped: dict[str, set[int]] = {table: set() for table in bits}
    for each in itertools.chain(*gathered):
        columns = slice(each.column, each.column + each.weights.shape[1])
        made[f"{TABLES}.{each.table}.weight"][each.numbers, columns] = each.weights
        shipped[each.table] |= set(each.numbers.tolist())
    changed = {
        table: set((before[name] != after[name]).any(dim=1).nonzero().flatten().tolist())
        for table in bits
        for name in [f"{TABLES}.{table}.weight"]
    }
    return changed, shipped, same(made, after)


def facts_of_models(archs: list[str]) -> dict[str, Facts]:
    facts = {}
    for arch in archs:
        facts[arch] = changed_and_shipped(config_of("adagrad", "table_wise", model=with_arch(MODEL, arch)))
    ablated = {
        "all trained": dataclasses.replace(MODEL, trains="all"),
        "decayed": dataclasses.replace(MODEL, embedding_l2=0.1, dropout=0.2),
        "packed": dataclasses.replace(MODEL, layout="packed"),
    }
    return facts | {
        name: changed_and_shipped(config_of("sgd", "table_wise", model=model, learning_rate=5.0))
        for name, model in ablated.items()
    }


@pytest.mark.stack
@pytest.mark.parametrize("archs", [["stem", "esmm", "me_mmoe"], pytest.param(list(MODELS), marks=pytest.mark.long)])
def test_the_rows_of_a_delta_are_all_that_changed_in_every_model(archs: list[str]) -> None:
    [facts] = run_ranks(1, facts_of_models, archs)
    labels = torch.cat([batch.labels for [batch] in batches_of_ranks(3, 1, missing=0.5)])
    ids = torch.cat([batch.sparse_features["uid"].values() for [batch] in batches_of_ranks(3, 1, missing=0.5)])
    known = ~labels.isnan()
    labeled = {"finish": known[:, 0], "like": known[:, 1], "shared": known.any(dim=1)}
    for name, (changed, shipped, exact) in facts.items():
        assert exact, name
        for table in changed:
            assert changed[table] <= shipped[table], (name, table)
    for name in ("stem", "decayed", "packed"):
        for group, rows in labeled.items():
            # Rows whose labels are missing are not shipped.
            assert facts[name][1][f"{group}/uid"] == set(ids[rows].tolist()), (name, group)
    for group in labeled:
        assert facts["all trained"][1][f"{group}/uid"] == set(ids[labeled["shared"]].tolist())


CASES = [
    ("adagrad", "row_wise", "split"),
    ("sgd", "column_wise", "packed"),
    ("rowwise_adagrad", "table_row_wise", "split"),
    ("adagrad", "grid_shard", "packed"),
    ("adam", "data_parallel", "split"),
    ("sgd", "table_column_wise", "split"),
    ("adagrad", "data_parallel", "packed"),
    ("sgd", "table_wise", "packed"),
]
"""Each optimizer, sharding type and layout; data_parallel tables leave the fused optimizer, and Adam moves all rows."""


def facts_of_cases(cases: list[tuple[str, str, str]]) -> list[Facts]:
    facts = []
    for optimizer, kind, layout in cases:
        model, options = dataclasses.replace(MODEL, layout=layout), {"eps": 1e-4} if optimizer != "sgd" else {}
        more = {"update_unlabeled_rows": True} if optimizer == "adam" else {}
        facts.append(changed_and_shipped(config_of(optimizer, kind, model=model, **options, **more)))
    return facts


def test_the_rows_of_all_ranks_make_the_tables_whatever_their_optimizer_plan_and_layout() -> None:
    for of_rank in zip(*run_ranks(2, facts_of_cases, CASES), strict=True):
        for (changed, shipped, exact), case in zip(of_rank, CASES * 2, strict=False):
            assert exact, case
            assert all(changed[table] <= shipped[table] for table in changed), case
    [[(_, adagrad, _), (_, dense_adam, _)]] = run_ranks(1, facts_of_cases, [CASES[0], CASES[4]])
    assert all(len(rows) < 40 for rows in adagrad.values())
    assert {len(rows) for rows in dense_adam.values()} == {5000, 7}


PLANS = [
    ("adagrad", "row_wise", "split", {"format": "parquet"}),
    ("adagrad", "column_wise", "packed", {}),
    ("sgd", "grid_shard", "split", {}),
    ("sgd", "data_parallel", "packed", {"format": "parquet"}),
    ("adagrad", "table_wise", "packed", {}),
]
Weights = dict[str, Tensor]


def ship_by_plan(folder: Path) -> list[list[Weights]]:
    """All weights at each delta, by plan."""
    shipped = []
    for i, (optimizer, kind, layout, delta) in enumerate(PLANS):
        shipment = Shipment.build(
            folder, f"run{i}", shipping_config(folder, f"run{i}", optimizer, kind, layout=layout, **delta)
        )
        weights = []
        for steps in (2, 3):
            shipment.make_steps(steps)
            shipment.ship()
            weights.append(shipment.run.weights())
        shipment.deltas.close()
        shipped.append(weights)
    return shipped


def test_a_copy_is_the_trainer_to_the_bit_at_each_delta_of_each_plan_and_format(tmp_path: Path) -> None:
    [shipped, _] = run_ranks(2, ship_by_plan, tmp_path)
    for i, weights in enumerate(shipped):
        source = tmp_path / f"run{i}-deltas"
        for number, expected in enumerate(weights):
            copy = tmp_path / f"copy{i}"
            assert apply(source, copy, until=number) == 1
            assert same(weights_of_copy(copy), expected), (PLANS[i], number)
        assert apply(source, tmp_path / f"anew{i}") == 2
        assert same(weights_of_copy(tmp_path / f"anew{i}"), weights[-1])
        manifests = [read_delta(source / f"{number:06d}").manifest for number in range(2)]
        assert [manifest.full for manifest in manifests] == [True, False]
        assert manifests[1].changed_rows < manifests[0].changed_rows / 20


def ship_in_precisions(folder: Path) -> Weights:
    for precision in ("fp16", "int8"):
        config = shipping_config(folder, precision, "adagrad", "row_wise", precision=precision)
        shipment = Shipment.build(folder, precision, config)
        shipment.make_steps(1)
        shipment.ship()
        shipment.deltas.close()
    return shipment.run.weights()


def test_rows_in_other_precisions_are_those_that_a_bundle_has(tmp_path: Path) -> None:
    [weights, _] = run_ranks(2, ship_in_precisions, tmp_path)
    for precision in ("fp16", "int8"):
        delta = newest_delta(tmp_path / f"{precision}-deltas")
        assert delta is not None
        for file, pieces in pieces_by_file(delta.manifest.pieces).items():
            for rows in decode(delta.read(file), pieces, "safetensors"):
                table = weights[f"{TABLES}.{rows.table}.weight"]
                assert torch.equal(rows.weights, quantized(table[rows.numbers], precision))
        with pytest.raises(UserError, match=f"are in {precision}, and a copy has fp32"):
            apply(tmp_path / f"{precision}-deltas", tmp_path / "copy")


def test_ids_are_recorded_by_the_labels_of_their_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stem_torchrec.deltas.touched._WAITING_IDS", 60)
    touched = TouchedRows({"uid": 5000, "tags": 7}, tasks=2)
    expected = {name: torch.zeros(len(rows)).byte() for name, rows in touched.arrays.items()}
    for seed in range(20):
        batch = random_batch(seed, missing=0.6 if seed < 12 else 0.0)
        weights = torch.ones(12, 2)
        weights[: 0 if seed > 15 else 4, 1] = 0.0
        touched.add(batch.sparse_features, batch.labels, weights)
        known = ~batch.labels.isnan() & (weights > 0)
        for name, bags in batch.sparse_features.to_dict().items():
            for row, ids in enumerate(bags.values().split(bags.lengths().tolist())):
                for task in range(2):
                    if known[row, task]:
                        expected[name][ids] |= 1 << task
        # Batches that wait are recorded together.
        if seed % 4 == 3:
            taken = touched.take()
            assert all(torch.equal(torch.from_numpy(taken[name]), rows) for name, rows in expected.items()), seed
            expected = {name: torch.zeros_like(rows) for name, rows in expected.items()}
    many = TouchedRows({"uid": 5000}, tasks=70)
    assert many.bits_of([3, 67]) == many.bits_of([3])


@pytest.mark.parametrize("row_format", ["safetensors", "parquet"])
def test_files_of_rows_hold_blocks_and_cut_columns_come_together(
    monkeypatch: pytest.MonkeyPatch, row_format: str
) -> None:
    monkeypatch.setattr("stem_torchrec.deltas.row_files.FILE_BYTES", 400)
    weight = torch.randn(50, 8)
    rows = torch.tensor([0, 3, 7, *range(20, 45)])
    parts = [Rows("like/uid", start, rows, weight[rows, start : start + 4]) for start in (0, 4)]
    decoded = []
    for block in in_files([*parts, Rows("like/tags", 0, torch.arange(5), weight[:5])], row_format):
        pieces = [Piece(r.table, "f", r.column, r.weights.shape[1], len(r.numbers), r.first) for r in block]
        content = b"".join(encode(block, row_format))
        decoded += decode(content, pieces, row_format)
        if row_format == "safetensors":
            # What the library writes, to the byte, for all that it can be asked to write.
            assert content == save(load(content))
    assert len(decoded) > 4
    whole = whole_rows([each for each in decoded if each.table == "like/uid"], 8)
    assert torch.equal(whole.numbers, rows)
    assert torch.equal(whole.weights, weight[rows])
