"""stem-tune --what tables: what a table is worth, what fits a budget, and the options that say so."""

import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from stem_torchrec.checkpoints.weights import load_state
from stem_torchrec.config import TrainConfig
from stem_torchrec.data.columns import Columns
from stem_torchrec.data.loader import data_loader
from stem_torchrec.inspection.inspected_run import tables_of
from stem_torchrec.inspection.train_ids import count_ids
from stem_torchrec.models.build import build_model
from stem_torchrec.models.stem import STEMOptions
from stem_torchrec.models.table import with_arch
from stem_torchrec.run_report.run_record import RunRecord
from stem_torchrec.runtime.errors import UserError
from stem_torchrec.table_search import options, search_tables
from stem_torchrec.table_search.kept_tables import keep_tables, model_to_take, sentence_of, with_kept
from stem_torchrec.table_search.linear_images import linear_images
from stem_torchrec.table_search.table_worth import TableWorth, first_half, measure_tables
from stem_torchrec.tables import table_configs, table_of
from stem_torchrec.training.configuration import load_config
from stem_torchrec.training.recipes import tiny
from stem_torchrec.training.run_evaluation import EvaluateConfig, open_run
from stem_torchrec.training.trainer import train
from stem_torchrec.tune import main

from distributed import run_ranks
from earlier_versions import add, forget
from reference import COLUMNS
from runs import this_process
from small_runs import run_script

TABLES = [f"{group}/{feature}" for group in ("finish", "like") for feature in ("uid", "tags")]


class Stored:
    """Tables in memory, as `linear_images` reads them."""

    features = ("uid",)

    def __init__(self, **weights: Tensor) -> None:
        self.weights = weights

    def sizes(self, feature: str) -> dict[str, tuple[int, ...]]:
        return {group: tuple(weight.shape) for group, weight in self.weights.items()}

    def read(self, feature: str) -> dict[str, Tensor]:
        return self.weights


def test_the_image_of_a_table_is_the_closest_one_where_ids_are_trained() -> None:
    torch.manual_seed(0)
    shared, map_to = torch.randn(50, 4), torch.randn(4, 8)
    own = shared @ map_to
    own[10] = 100.0
    counts = np.ones(50, np.int64)
    counts[10] = 0
    [image] = linear_images(Stored(shared=shared, like=own), {"uid": counts}).values()
    torch.testing.assert_close(image, map_to, rtol=1e-4, atol=1e-4)
    [anywhere] = linear_images(Stored(shared=shared, like=own), {}).values()
    assert (anywhere - map_to).abs().max() > 1


def trained(folder: Path, arch: str = "stem") -> TrainConfig:
    config = tiny()
    return dataclasses.replace(
        config,
        model=dataclasses.replace(with_arch(config.model, arch), embedding_std=0.5, embedding_dim=4),
        data=dataclasses.replace(
            config.data, synthetic=dataclasses.replace(config.data.synthetic, train_rows=2048, valid_rows=1024)
        ),
        train=dataclasses.replace(config.train, max_steps=8),
        output_dir=str(folder),
    )


def worth_two_ways(folder: Path, arch: str) -> tuple[list[TableWorth], dict[str, dict[str, float]]]:
    """What `measure_tables` finds, and by table and task how much the losses rise if its rows are replaced."""
    process = this_process()
    train(trained(folder, arch), process)
    measured = measure_tables(str(folder), process, rows=900)
    record, opened = RunRecord.read(folder, "run"), open_run(EvaluateConfig(str(folder)), process)
    images = linear_images(tables_of(record), count_ids(record, rows=None).counts)
    built = build_model(record.config.model, record.columns, table_device="cpu").eval()
    state = built.state_dict()
    load_state({"model": state}, opened.weights[0].folder)
    built.load_state_dict(state)
    opened.reader.start_epoch(0, [[[(0, 900)]]])
    items = list(data_loader(opened.reader))

    @torch.no_grad()
    def losses() -> Tensor:
        sums, counts = torch.zeros(2, dtype=torch.float64), torch.zeros(2)
        for item in items:
            rows = torch.from_numpy(first_half((item.rows if item.groups is None else item.groups).numpy()))
            outputs = built.model(item.batch.dense_features, item.batch.sparse_features)
            logits = outputs[: len(rows), :2][rows].double()
            labels = item.batch.labels[: len(rows)][rows].double()
            each = binary_cross_entropy_with_logits(logits, labels.nan_to_num(), reduction="none")
            sums, counts = sums + (each * ~labels.isnan()).sum(0), counts + (~labels.isnan()).sum(0)
        return sums / counts

    before, rises = losses(), {}
    weights = {table: weight for name, weight in state.items() if (table := table_of(name)) is not None}
    for table, image in images.items():
        kept = weights[table].clone()
        weights[table].copy_(weights[f"shared/{table.partition('/')[2]}"] @ image)
        rises[table] = dict(zip(record.tasks, (losses() - before).tolist(), strict=True))
        weights[table].copy_(kept)
    return measured, rises


@pytest.mark.parametrize("arch", ["stem", "duet"])
def test_the_worth_of_a_table_is_the_loss_without_it_on_half_of_the_users(tmp_path: Path, arch: str) -> None:
    [(measured, rises)] = run_ranks(1, worth_two_ways, tmp_path / "run", arch)
    assert [each.worth for each in measured] == sorted((each.worth for each in measured), reverse=True)
    assert {each.table for each in measured} == set(rises)
    for each in measured:
        # Sums of fp32 logits in another order.
        assert each.by_task == pytest.approx(rises[each.table], abs=1e-6)
        assert each.worth == pytest.approx(sum(each.by_task.values()), abs=1e-9)
        assert each.bytes == 4 * each.rows * (each.dim + 1)
        assert each.error > 0


def worths(**of_tables: tuple[int, float]) -> list[TableWorth]:
    return [
        TableWorth(name, 1, 4, size, worth, error=0.1, by_task={})
        for name, (size, worth) in zip(TABLES, of_tables.values(), strict=False)
    ]


def test_a_budget_keeps_the_tables_that_are_worth_the_most_for_their_bytes() -> None:
    measured = worths(a=(100, 1.0), b=(10, 0.5), c=(10, 0.15), d=(10, -0.5))
    finish_uid, finish_tags, like_uid, _ = measured
    assert keep_tables(measured, shared_bytes=50, budget=1000) == [finish_tags, like_uid, finish_uid]
    assert keep_tables(measured, shared_bytes=50, budget=165) == [finish_tags, like_uid]
    assert keep_tables(measured, shared_bytes=50, budget=50) == []
    # 0.15 is less than two standard errors.
    assert keep_tables(measured, shared_bytes=50, budget=None) == [finish_tags, finish_uid]
    with pytest.raises(UserError, match=r"--budget-gb is 4.9e-08, but the shared tables alone take 5e-08; give more"):
        keep_tables(measured, shared_bytes=50, budget=49)


@pytest.mark.parametrize(
    ("beside_all", "beside_shared", "fitting", "taken", "sentence"),
    [
        ("within noise", "within noise", ["shared", "all"], "chosen", "trains with the tables that are kept."),
        ("worse", "better", ["shared", "all"], "all", "with all tables: beside these those that are kept are worse"),
        ("worse", "better", ["shared"], "chosen", "kept; all tables are better, and do not fit --budget-gb."),
        (
            "within noise",
            "worse",
            ["shared", "all"],
            "shared",
            "trains with shared tables alone: beside these those",
        ),
        ("worse better", "within noise", ["shared", "all"], "chosen", "trains with the tables that are kept."),
    ],
)
def test_what_the_comparison_finds_better_is_taken_where_it_fits(
    beside_all: str, beside_shared: str, fitting: list[str], taken: str, sentence: str
) -> None:
    choice_is = {"all": [beside_all.split()[0], *beside_all.split()[1:]], "shared": [beside_shared, "within noise"]}
    assert model_to_take(choice_is, fitting) == taken
    assert sentence in sentence_of(taken, choice_is)


@pytest.mark.parametrize(
    ("kept", "options"),
    [
        (TABLES, {}),
        (["finish/uid", "like/uid"], {"own_tables": ("uid",)}),
        (["like/tags"], {"own_tables": ("tags",), "table_groups": {"finish": "shared"}}),
        (["finish/uid", "like/uid", "like/tags"], {"table_widths": {"finish/tags": 0}}),
        ([], {"table_groups": {"finish": "shared", "like": "shared"}}),
    ],
)
def test_the_options_of_a_choice_make_its_tables(kept: list[str], options: dict) -> None:
    chosen = with_kept(STEMOptions(), TABLES, kept, ["finish", "like"])
    assert chosen == STEMOptions(**options)
    built = {table.name for table in table_configs(build_model(chosen, COLUMNS))}
    assert built - {"shared/uid", "shared/tags"} == set(kept)


def test_a_choice_among_tables_that_tasks_share_keeps_their_groups_and_widths() -> None:
    columns: Columns = dataclasses.replace(COLUMNS, labels=("finish", "like", "share"))
    model = STEMOptions(table_groups={"like": "social", "share": "social"}, table_widths={"social": 8, "finish": 4})
    every = ["finish/uid", "finish/tags", "social/uid", "social/tags"]
    for kept in (["social/uid"], ["finish/tags", "social/tags"], every, []):
        built = table_configs(build_model(with_kept(model, every, kept, columns.labels), columns))
        sizes = {table.name: table.embedding_dim for table in built}
        assert {t: d for t, d in sizes.items() if "shared" not in t} == {t: 8 if "social" in t else 4 for t in kept}


def test_options_that_make_no_sense_are_one_sentence() -> None:
    with pytest.raises(UserError, match="--out is missing"):
        options.read_command_line(["--recipe", "tiny"])
    with pytest.raises(UserError, match=r"which shared_bottom does not have; give --model.arch stem"):
        options.read_command_line(["--recipe", "tiny", "--model.arch", "shared_bottom", "--out", "x"])
    with pytest.raises(UserError, match="do not apply, as the runs are kept below --out"):
        options.read_command_line(["--recipe", "tiny", "--output-dir", "run", "--out", "x"])


def searched_without_memory(folder: Path) -> str:
    """The report of a search whose choice cannot be trained."""
    process = this_process()
    train(trained(folder / "run"), process)

    def fail(*_: object) -> None:
        torch.empty(2**60)

    pytest.MonkeyPatch().setattr(search_tables, "train", fail)
    line = ["--what", "tables", "--run", str(folder / "run"), "--rows", "900", "--out", str(folder / "out")]
    search_tables.search_tables(*options.read_command_line(line), process)
    return (folder / "out" / "report.md").read_text()


@pytest.mark.long
def test_a_choice_that_cannot_be_trained_is_left_out_of_the_comparison(tmp_path: Path) -> None:
    [report] = run_ranks(1, searched_without_memory, tmp_path)
    for name in ("chosen", "shared"):
        assert f"Left out, as it could not be trained: {name}: the memory does not suffice (" in report
    assert "beside" not in report
    assert "best.yaml trains with the tables that are kept." in report
    assert load_config(str(tmp_path / "out" / "best.yaml")).model.arch == "stem"


@pytest.mark.parametrize(("words", "option"), [([], "--trials"), (["--what", "tables"], "--budget-gb")])
def test_the_help_of_either_search_names_what_is_searched_for(
    words: list[str], option: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["tune.py", *words, "--help"])
    main()
    text = capsys.readouterr().out
    assert "--what {options,tables}" in text
    assert option in text


@pytest.mark.long
def test_the_command_trains_measures_and_judges_and_continues(tmp_path: Path) -> None:
    line = ["--what", "tables", "--recipe", "tiny", "--train.max-steps", "20", "--out", tmp_path / "found"]
    text = run_script("stem_torchrec/tune.py", *line, "--budget-gb", "6e-5", "--rows", "2000")
    chosen = load_config(str(tmp_path / "found" / "best.yaml")).model
    assert (tmp_path / "found" / "report.md").read_text().count("\n| ") > 20
    assert "best.yaml trains with the tables that are kept" in text
    # As an earlier version has searched, which did not have these options.
    forget(tmp_path / "found" / "search.yaml", "train.balance", "train.model.dropout", "run")
    again = run_script("stem_torchrec/tune.py", *line, "--budget-gb", "6e-5", "--rows", "2000")
    assert "step 20" not in again
    assert load_config(str(tmp_path / "found" / "best.yaml")).model == chosen
    add(tmp_path / "found" / "search.yaml", "train.model.new_option", 3)
    error = run_script("stem_torchrec/tune.py", *line, "--rows", "2000", status=2)
    assert "search.yaml: there is no field 'model.new_option'; if a newer stem_torchrec wrote the file" in error
    with_run = ["--what", "tables", "--run", tmp_path / "found" / "runs" / "all", "--no-trains-choice"]
    text = run_script(
        "stem_torchrec/tune.py", *with_run, "--budget-gb", "6e-5", "--rows", "2000", "--out", tmp_path / "b"
    )
    assert load_config(str(tmp_path / "b" / "best.yaml")).model == chosen
