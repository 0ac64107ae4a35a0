"""The offline planner: what it says of memory, what fits and what spills, growth, calibration, and its files."""

import json
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from stem_torchrec.config import Layout, SparseOptimizerConfig, SparseOptimizerName, TrainConfig, dump_config
from stem_torchrec.config.serialization import to_dict
from stem_torchrec.models.stem import STEMOptions
from stem_torchrec.models.table import with_arch
from stem_torchrec.runtime.errors import UserError
from stem_torchrec.sharding.plan import Plan
from stem_torchrec.sharding.plan_file import plan_to_json, read_plan, tables_of_plan
from stem_torchrec.sharding.topology import Bandwidths

from common.table_list import TableSpec, read_table_list
from planning.advice import HALF_FULL, UNEVEN, Candidate, advise, cheapest
from planning.arithmetic import model_bytes, pooled_bytes, state_bytes, weight_bytes, wire
from planning.calibrate import Priced, calibrate, fit
from planning.config import FIGURES, PlanConfig, read_options
from planning.plans import PlanFolder
from planning.report import Report, format_advice
from planning.run import run_plan
from planning.step import Dense, dense_part, estimate_step, ids_received
from planning.strategies import Planned, Strategy, build_tables, grow, list_strategies, plan_strategy
from sweep.cases import TYPES, Case
from sweep.results import CASES, SWEEP_FILE, Measurement, Outcome

TABLES = [TableSpec("user", 100_000, 16), TableSpec("item", 40_000, 16), TableSpec("tags", 1_000, 16, pooling=5)]
CONFIG = PlanConfig(out="-", nodes=(2,), ranks_per_node=2, tasks=2, batch_size=512, optimizers=("adagrad",))
RUN = TrainConfig()


def planned(
    kind: str,
    layout: Layout = "split",
    optimizer: SparseOptimizerName = "adagrad",
    config: PlanConfig = CONFIG,
    tables: Sequence[TableSpec] = TABLES,
    bandwidths: Bandwidths = FIGURES["cuda"],
) -> Planned:
    return plan_strategy(Strategy(kind, layout, optimizer), tables, config, bandwidths)


def plan_of(kind: str, layout: Layout = "split", **options) -> Plan:
    made = planned(kind, layout, **options)
    assert made.plan is not None, made.reason
    return made.plan


def weights(plan: Plan) -> int:
    return sum(shard.rows * shard.columns * 4 for table in plan.tables for shard in table.shards)


@pytest.mark.parametrize("layout", ["split", "packed"])
@pytest.mark.parametrize("kind", [*TYPES, "auto"])
def test_the_weights_of_a_plan_are_those_by_hand_to_the_byte(kind: str, layout: Layout) -> None:
    by_hand = 3 * sum(map(weight_bytes, TABLES))
    assert weights(plan_of(kind, layout)) == by_hand * (4 if kind == "data_parallel" else 1)


@pytest.mark.parametrize("optimizer", ["sgd", "adagrad", "rowwise_adagrad", "adam"])
def test_the_planner_counts_the_state_that_is_worked_out_by_hand(optimizer: SparseOptimizerName) -> None:
    with_state, bare = (plan_of("table_wise", optimizer=name) for name in (optimizer, "sgd"))
    counted = sum(with_state.per_rank("memory")) - sum(bare.per_rank("memory"))
    assert counted * 2**20 == 3 * sum(state_bytes(table, optimizer) for table in TABLES)


@pytest.mark.parametrize("nodes", [1, 2, 4])
@pytest.mark.parametrize("kind", [kind for kind in TYPES if kind != "data_parallel"])
def test_the_planner_takes_for_the_wire_what_is_worked_out_by_hand(kind: str, nodes: int) -> None:
    config = replace(CONFIG, nodes=(nodes,))
    sent = wire(kind, pooled_bytes(TABLES, batch_size=512, tasks=2), nodes=nodes, ranks_per_node=2)
    ranks = plan_of(kind, config=config).per_rank("communication")
    assert sent is not None
    assert sum(ranks) / len(ranks) == pytest.approx(sent.ms(FIGURES["cuda"], device="cuda"), rel=1e-9)


def test_what_does_not_fit_is_a_row_with_a_reason() -> None:
    config = replace(CONFIG, hbm_gb=0.03, host_gb=0.0001)
    assert planned("row_wise", config=config).plan is not None
    alone = planned("data_parallel", config=config)
    assert alone.plan is None
    assert "every rank would hold all 0.05 GiB" in alone.reason
    assert "4 ranks has 0.0255 GiB of GPU" in alone.reason
    assert math.isnan(alone.peak("weights"))
    packed = planned("row_wise", "packed", "rowwise_adagrad")
    assert "packed table task_1+task_2+shared/user" in packed.reason
    assert (
        "does not fuse adam on CPU"
        in planned("row_wise", optimizer="adam", config=replace(CONFIG, device="cpu")).reason
    )


def test_tables_that_gpu_memory_does_not_hold_spill_to_the_host_and_say_so() -> None:
    roomy, tight = planned("table_wise"), planned("table_wise", config=replace(CONFIG, hbm_gb=0.016))
    assert (roomy.uvm_tables, roomy.peak("host_memory")) == (0, 0)
    assert tight.uvm_tables > 0
    assert tight.peak("host_memory") > 0
    assert tight.peak("memory") <= 0.85 * 0.016 * 1024
    assert tight.peak("estimate") > roomy.peak("estimate")


def test_memory_grows_with_the_groups_and_the_rows() -> None:
    by_tasks = {
        tasks: plan_strategy(
            Strategy("row_wise", "split", "adagrad"), TABLES, CONFIG, FIGURES["cuda"], tasks=tasks
        ).plan
        for tasks in (1, 2, 5)
    }
    one = sum(map(weight_bytes, TABLES))
    assert {tasks: weights(plan) for tasks, plan in by_tasks.items() if plan} == {1: 2 * one, 2: 3 * one, 5: 6 * one}
    assert weights(plan_of("row_wise", tables=grow(TABLES, 10))) == 30 * one
    assert model_bytes(grow(TABLES, 0.5), "adagrad", 2) == 3 * one


def test_auto_is_at_least_as_fast_as_each_type_alone() -> None:
    # Where tables spill, TorchRec's own search has ended at three times the estimate of table_wise alone. Types that
    # cut columns are left out, as auto cuts all by one width.
    config = replace(CONFIG, hbm_gb=0.016)
    best = min(planned(kind, config=config).peak("estimate") for kind in ("table_wise", "row_wise", "table_row_wise"))
    assert planned("auto", config=config).peak("estimate") <= best


@pytest.mark.long
def test_hundreds_of_ranks_and_billions_of_rows_can_be_planned() -> None:
    tables = [TableSpec("user", 10_000_000_000, 16), TableSpec("item", 200_000_000, 16)]
    config = replace(CONFIG, nodes=(64,), ranks_per_node=8, tasks=8)
    made = planned("auto", optimizer="rowwise_adagrad", config=config, tables=tables)
    assert made.plan is not None
    assert weights(made.plan) == 9 * 10_200_000_000 * 64


def test_a_search_that_has_no_time_left_says_so() -> None:
    assert (
        "no plan that fits was found in 1e-09 s" in planned("table_wise", config=replace(CONFIG, seconds=1e-9)).reason
    )


def test_a_strategy_that_learns_otherwise_is_not_recommended() -> None:
    cut, whole = (planned(kind, optimizer="rowwise_adagrad") for kind in ("column_wise", "row_wise"))
    assert cut.cut_rows == 9
    assert cut.peak("estimate") < whole.peak("estimate")
    advice = advise([candidate(cut), candidate(whole)])
    assert advice is not None
    assert (advice.best.planned, advice.runner_up) == (whole, None)
    assert advise([candidate(cut)]) is None


def candidate(made: Planned, **values: float) -> Candidate:
    """A plan with the estimate of its step, in which `values` are others."""
    step = estimate_step(made, TABLES, CONFIG, RUN, FIGURES["cuda"])
    assert step is not None
    return Candidate(made, replace(step, **values))


def test_an_even_plan_with_room_comes_before_one_that_is_hardly_faster() -> None:
    fast, even, slow = (planned(kind) for kind in ("table_wise", "row_wise", "grid_shard"))
    parts = {"ids": 0.0, "dense": 0.0, "all_reduce": 0.0}
    full = candidate(fast, **parts, tables=1.0, fill=0.92)
    roomy = candidate(even, **parts, tables=1.05, fill=0.3)
    late = candidate(slow, **parts, tables=1.3, fill=0.1)
    advice = advise([full, roomy, late])
    assert advice is not None
    assert (advice.best, advice.runner_up) == (roomy, full)
    assert advice.reason == "its step is 4.8% shorter, but its fullest rank uses 92% of the memory for tables"
    # With room it wins, and the next one is longer.
    advice = advise([candidate(fast, **parts, tables=1.0, fill=0.5), roomy, late])
    assert advice is not None
    assert (advice.best.planned, advice.runner_up) == (fast, roomy)
    assert advice.reason == "its step is 5.0% longer"
    # A step that is much longer is not worth the room; the advice warns, and names the plan with room.
    advice = advise([full, candidate(even, **parts, tables=1.01, fill=0.95), late])
    assert advice is not None
    assert (advice.best, advice.runner_up) == (full, late)
    assert "92%" in advice.best.crowded
    assert advice.reason == "its step is 30.0% longer, but it leaves room"


def test_a_plan_that_is_uneven_while_half_full_comes_after_an_even_one() -> None:
    # Two groups of one table lie on two of four ranks.
    uneven = planned("table_wise", tables=TABLES[:1], config=replace(CONFIG, tasks=1))
    parts = {"ids": 0.0, "dense": 0.0, "all_reduce": 0.0}
    roomy = candidate(planned("row_wise"), **parts, tables=1.1, fill=0.3)
    for fill, crowded in ((HALF_FULL - 0.01, False), (HALF_FULL + 0.01, True)):
        fast = candidate(uneven, **parts, tables=1.0, fill=fill)
        assert fast.imbalance == 2 > UNEVEN > roomy.imbalance
        advice = advise([fast, roomy])
        assert advice is not None
        assert (advice.best, advice.runner_up) == ((roomy, fast) if crowded else (fast, roomy))
    assert advice.reason == "its step is 9.1% shorter, but its fullest rank has 2.0 times the mean of the ranks"


def test_the_advice_names_the_runner_up_with_what_is_against_it_and_the_cost_for_a_price() -> None:
    parts = {"ids": 0.0, "dense": 0.0, "all_reduce": 0.0}
    best = candidate(planned("row_wise"), **parts, tables=1.1, fill=0.3, samples_per_second=1_861_818.2, cost=1234.56)
    full = candidate(planned("table_wise"), **parts, tables=1.0, fill=0.92, samples_per_second=2_048_000.0)
    advice = advise([best, full])
    report = Report(CONFIG, RUN, {}, TABLES, FIGURES["cuda"], [], [], advice, [], [], None)
    assert format_advice(report) == (
        "Take row_wise/split/adagrad: estimated 1.10 ms a step, 1,861,818 samples/s, its fullest rank 30% full, "
        "imbalance 1.00, 1,235 for 10^9 samples (row_wise 9): --sharding.plan -/plan.json --model.layout split "
        "--sparse.name adagrad. Runner-up: table_wise/split/adagrad, estimated 1.00 ms a step, 2,048,000 samples/s, "
        "its fullest rank 92% full, imbalance 1.33; its step is 9.1% shorter, but its fullest rank uses 92% of the "
        "memory for tables."
    )
    free = advise([replace(best, step=replace(best.step, cost=None))])
    text = format_advice(replace(report, advice=free))
    assert "10^9" not in text
    assert "Runner-up" not in text
    warned = format_advice(replace(report, config=replace(CONFIG, nodes=(1, 2)), advice=advise([full])))
    assert warned.startswith("Take table_wise/split/adagrad on 2 hosts: estimated 1.00 ms")
    assert warned.endswith("Beware: its fullest rank uses 92% of the memory for tables.")


def test_the_smallest_cluster_with_the_shortest_step_is_cheapest() -> None:
    made = [replace(planned("row_wise"), nodes=nodes) for nodes in (2, 4, 8)]
    parts = {"ids": 0.0, "dense": 0.0, "all_reduce": 0.0}
    steps = [candidate(each, **parts, tables=ms) for each, ms in zip(made, (2.0, 1.005, 1.0), strict=True)]
    advised = [advice for each in steps if (advice := advise([each]))]
    assert cheapest(advised) == advised[1]
    assert cheapest([]) is None
    # The shortest step is of a cluster without room.
    crowded = advise([candidate(made[0], **parts, tables=0.9, fill=0.99)])
    assert crowded is not None
    assert cheapest([crowded, *advised[1:]]) == advised[1]
    assert cheapest([crowded]) == crowded


def test_a_step_is_what_is_worked_out_by_hand() -> None:
    bandwidths, model = FIGURES["cuda"], STEMOptions(expert_hidden=(32, 16), gate_hidden=(8,), tower_hidden=(4,))
    run = replace(RUN, model=model)
    config = replace(CONFIG, price=3.6, tflops=2.0)
    made = planned("row_wise")
    step = estimate_step(made, TABLES, config, run, bandwidths)
    assert step is not None
    # 8 shared experts and one for each of two tasks, on 3 features of 16 columns; gates and towers of two tasks.
    products = 10 * (48 * 32 + 32 * 16) + 2 * (48 * 8 + 8 * 10) + 2 * (16 * 4 + 4 * 1)
    biases = 10 * (32 + 16) + 2 * (8 + 10) + 2 * (4 + 1)
    assert dense_part(model, tuple(TABLES), ("a", "b")) == Dense(products + biases, products)
    assert step.dense == pytest.approx(3 * 2 * 512 * products / 2e12 * 1000)
    assert step.all_reduce == pytest.approx(2 * 3 / 4 * 4 * (products + biases) / 50e9 * 1000)
    # From 4 ranks of 512 rows: a quarter of the 7 ids of a row, and the lengths of 3 features, for 3 groups.
    assert step.ids == pytest.approx(4 * 512 * 3 * (8 * 7 / 4 + 4 * 3) / 50e9 * 1000)
    assert step.tables == made.peak("estimate")
    assert step.ms == step.ids + step.tables + step.dense + step.all_reduce
    assert step.samples_per_second == pytest.approx(4 * 512 / step.ms * 1000)
    # 4 ranks at 3.6 an hour are 0.004 a second.
    assert step.cost == pytest.approx(0.004 * 1e9 / step.samples_per_second)
    assert step.fill == pytest.approx(max(made.plan.per_rank("memory")) / 1024 / (0.85 * 80)) if made.plan else False
    assert estimate_step(planned("data_parallel", optimizer="lamb"), TABLES, config, run, bandwidths) is None


def test_ids_sent_once_are_received_once_by_a_rank_with_several_tables() -> None:
    def received(kind: str, layout: Layout = "split", **options: Any) -> float:
        return sum(ids_received(plan_of(kind, layout), TABLES, batch_size=512, **options))

    all_ids = 4 * 512 * (8 * 7 + 4 * 3)
    assert received("table_wise") == 3 * all_ids
    assert received("table_wise", "packed") == all_ids
    assert received("column_wise") > received("table_wise")
    assert received("data_parallel") == 0
    # Every rank has a shard of every table, with lengths of its own.
    assert received("row_wise") == 3 * received("row_wise", input_dist="once") == 3 * 4 * 512 * (8 * 7 + 4 * 4 * 3)


def test_a_search_continues_and_may_grow(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = replace(CONFIG, out=str(tmp_path), types=("table_wise",), layouts=("split",), grow_tasks=(), grow_rows=())
    run_plan(config, TABLES, RUN)
    [first] = (tmp_path / "plans").glob("[!.]*.json")
    before, report = first.read_text(), (tmp_path / "report.md").read_text()
    capsys.readouterr()
    more = run_plan(replace(config, types=("table_wise", "row_wise"), nodes=(1, 2)), TABLES, RUN)
    printed = capsys.readouterr().out
    assert "4 plans, each searched for at most 60 s" in printed
    assert re.search(r"\[3/4.*\] 2 hosts, T=2.* table_wise/split/adagrad .*\(as before\)", printed)
    assert re.search(r"\[4/4, 00:00 left\] 2 hosts, T=2.* row_wise/split/adagrad .* ms a step", printed)
    assert first.read_text() == before
    assert "not finished" not in report
    again = next(planned for planned in more.planned if (planned.nodes, planned.strategy.type) == (2, "table_wise"))
    fresh = planned("table_wise")
    assert again.plan is not None
    assert fresh.plan is not None
    assert again.plan.tables == fresh.plan.tables
    assert plan_to_json(again.plan) == plan_to_json(fresh.plan)
    assert "## By number of hosts" in (tmp_path / "report.md").read_text()
    with pytest.raises(UserError, match="holds another search, where batch_size is 512 and not 256"):
        run_plan(replace(config, batch_size=256), TABLES, RUN)
    first.write_text("{")
    with pytest.raises(UserError, match="is not a plan of this search"):
        run_plan(config, TABLES, RUN)


def test_an_interrupted_search_leaves_a_report_of_its_plans(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(CONFIG, out=str(tmp_path), types=("table_wise", "row_wise"), layouts=("split",), grow_rows=())

    def write_and_stop(folder: PlanFolder, made: Planned) -> None:
        if made.strategy.type == "row_wise":
            raise KeyboardInterrupt
        write(folder, made)

    write = PlanFolder.write
    monkeypatch.setattr(PlanFolder, "write", write_and_stop)
    with pytest.raises(KeyboardInterrupt):
        run_plan(config, TABLES, RUN)
    report = (tmp_path / "report.md").read_text()
    assert "- not finished: 5 plans are missing; the same command continues" in report
    assert "Take table_wise/split/adagrad: estimated" in report
    assert [row["type"] for row in pq.read_table(tmp_path / "report.parquet").to_pylist()] == ["table_wise"]


def test_the_files_tell_the_same_and_training_reads_the_plan(tmp_path: Path) -> None:
    config = replace(
        CONFIG,
        out=str(tmp_path),
        hbm_gb=0.03,
        host_gb=0.01,
        labels=("finish",),
        grow_tasks=(1, 2),
        grow_rows=(0.5, 1000),
    )
    report = run_plan(config, TABLES, RUN)
    rows = pq.read_table(tmp_path / "report.parquet").to_pylist()
    assert [row["fits"] for row in rows if row["part"] == "strategy"] == [p.plan is not None for p in report.planned]
    assert len(report.planned) == len(list_strategies(config)) == 16
    grown = [row for row in rows if row["part"] == "rows"]
    assert [row["fits"] for row in grown] == [True, False]
    assert grown[1]["weights_gib"] is None
    text = (tmp_path / "report.md").read_text()
    assert "| user      | 100,000 |    16 |       6,400,000 |     6,400,000 |" in text
    assert "does not fit" in text
    assert (tmp_path / "growth.png").stat().st_size > 0
    assert report.advice is not None
    best = report.advice.best.planned
    assert best.plan is not None
    strategy = best.strategy
    tables = build_tables(TABLES, strategy.layout, strategy.optimizer, ("finish", "task_2")).embedding_bag_configs()
    pinned = read_plan(str(tmp_path / "plan.json"), tables, config.topology(2, config.bandwidths))
    assert {name: p.sharding_type for name, p in pinned.items()} == {
        table.name: table.sharding_type for table in best.plan.tables
    }


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ([], "say where the results go: --out DIR"),
        (["--out", "x", "--nodes", "0"], "--nodes is 0, but must be from 1 to 100000"),
        (["--out", "x", "--hbm-gb", "-1"], "--hbm-gb is -1.0, but must be from 0.001 to 1e.06"),
        (["--out", "x", "--inter-host", "0"], "--inter-host is 0.0, but must be from 1e-06 to 1e.09"),
        (["--out", "x", "--grow-tasks", "2", "0"], "--grow-tasks is 0, but must be from 1 to 1000"),
        (["--out", "x", "--grow-rows", "nan"], "--grow-rows is nan, but must be above 0 and at most 1e.06"),
        (["--out", "x", "--types", "rowwise"], "'rowwise', but must be one of .*did you mean 'row_wise'"),
        (["--out", "x", "--tables", "no.yaml"], "the table list no.yaml cannot be read"),
        (["--out", "x", "--node", "2"], "unknown option '--node'; did you mean '--nodes'"),
        (["--out", "x", "--labels", "a", "a"], "--labels is a a, so two of 16 tasks would be called 'a'"),
        (["--out", "x", "--labels", "task_3"], "would be called 'task_3'"),
        (["--out", "x", "--labels", "a", "b", "--tasks", "1"], "--labels names 2 tasks, but --tasks is 1"),
        (["--out", "x", "--labels", "shared"], "--labels is shared: a task cannot be called 'shared'"),
        (["--out", "x", "--price", "0"], "--price is 0.0, but must be above 0 and at most 1e"),
        (["--out", "x", "--config", "no.yaml"], "no.yaml"),
    ],
)
def test_bad_options_are_answered_in_a_sentence(options: list[str], sentence: str, monkeypatch) -> None:
    monkeypatch.chdir(Path(__file__).parent.parent)
    with pytest.raises(UserError, match=sentence):
        read_options(options)


def test_tables_may_have_several_widths_and_the_optimizer_is_that_of_a_run(tmp_path: Path) -> None:
    path, run = tmp_path / "tables.yaml", tmp_path / "config.yaml"
    path.write_text("- {name: a, rows: 1000, dim: 16}\n- {name: b, rows: 3000, dim: 8}\n")
    config, tables, train = read_options(["--out", "x", "--tables", str(path), "--tasks", "2"])
    assert config.optimizers == (train.sparse.name,) == ("rowwise_adagrad",)
    for layout, optimizer in (("split", "rowwise_adagrad"), ("packed", "adagrad")):
        made = planned("row_wise", layout, optimizer, tables=tables)
        assert made.plan is not None
        assert weights(made.plan) == 3 * 4 * (1000 * 16 + 3000 * 8)
    assert dense_part(train.model, tuple(tables), ("a", "b")).products > 10 * 24 * 512
    run.write_text(dump_config(replace(RUN, sparse=SparseOptimizerConfig(name="sgd"))))
    config, _, train = read_options(["--out", "x", "--tables", str(path), "--config", str(run)])
    assert config.optimizers == ("sgd",)
    run.write_text(dump_config(replace(RUN, model=with_arch(train.model, "mmoe"))))
    with pytest.raises(UserError, match="has the model mmoe, whose tables are not those of each task and a shared one"):
        read_options(["--out", "x", "--tables", str(path), "--config", str(run)])


def a_sweep(
    folder: Path,
    true: Bandwidths,
    kinds: Sequence[str],
    *,
    device: str = "NVIDIA H100",
    nodes: int = 2,
    ranks_per_host: int = 2,
) -> str:
    """Results of a machine on which the planner is right with the bandwidths `true`."""
    kind = "cpu" if device == "cpu" else "cuda"
    config = replace(CONFIG, nodes=(nodes,), ranks_per_node=ranks_per_host, device=kind)
    (folder / CASES).mkdir(parents=True)
    sweep = {
        "tables": [to_dict(table) for table in TABLES],
        "data": {"batch_size": 512},
        "ranks": ranks_per_host * nodes,
        "ranks_per_host": ranks_per_host,
    }
    (folder / SWEEP_FILE).write_text(json.dumps({"sweep": sweep, "head": {}}))
    for kind in kinds:
        plan = plan_of(kind, config=config, bandwidths=true)
        case = Case(kind, "split", "stock", 2, "adagrad", "auto", "fp32")
        ranks = ranks_per_host * nodes
        one = (1.0,) * ranks
        numbers = dict.fromkeys(("ids", "embeddings", "gradients", "memory_before", "memory_peak", "weights"), one)
        measurement = Measurement(
            **numbers,
            step_ms=((9.0,),) * ranks,
            lookup_ms=((max(plan.per_rank("estimate")),),) * ranks,
            losses=(1.0,) * 4,
            device_memory_peak=one,
            compute=one,
            communication=one,
            plan=plan_to_json(plan),
            tables=f"{kind} 9",
            device=device,
        )
        outcome = Outcome(case, 0, "ok", "", 1.0, "", "", 0.0, measurement)
        path = folder / CASES / f"{case.name.replace('/', '.')}.0"
        path.with_name(path.name + ".json").write_text(json.dumps(to_dict(outcome)))
        path.with_name(path.name + ".plan.json").write_text(measurement.plan)
    return str(folder)


@pytest.mark.parametrize(("device", "nodes"), [("NVIDIA H100", 2), ("NVIDIA H100", 1), ("cpu", 1)])
def test_calibration_recovers_the_bandwidths_of_the_machine(tmp_path: Path, device: str, nodes: int) -> None:
    kind = "cpu" if device == "cpu" else "cuda"
    given = FIGURES[kind]
    memory = "ddr" if kind == "cpu" else "hbm"
    wanted = {memory: getattr(given, memory) / 4, "intra_host": 20.0}
    if nodes > 1:
        # One factor for all links.
        wanted["inter_host"] = 20.0 * given.inter_host / given.intra_host
    folder = a_sweep(
        tmp_path / "sweep",
        replace(given, **wanted),
        ["table_wise", "row_wise", "grid_shard"],
        device=device,
        nodes=nodes,
    )
    fitted = calibrate(folder, given, device=kind)
    assert fitted.changed == tuple(wanted)
    assert not fitted.together
    for name in wanted:
        # The busiest rank may be another one before and after.
        assert getattr(fitted.bandwidths, name) == pytest.approx(wanted[name], rel=0.05)
    assert fitted.before[1] < 0.5
    assert fitted.after == pytest.approx((1, 1, 1), rel=0.05)


def test_a_sweep_on_one_rank_tells_the_bandwidth_of_its_memory_and_nothing_of_links(tmp_path: Path) -> None:
    given = FIGURES["cuda"]
    true = replace(given, hbm=given.hbm / 4)
    kinds = ["table_wise", "row_wise", "grid_shard"]
    fitted = calibrate(a_sweep(tmp_path / "sweep", true, kinds, nodes=1, ranks_per_host=1), given, device="cuda")
    assert fitted.changed == ("hbm",)
    assert not fitted.together
    assert fitted.bandwidths == replace(given, hbm=pytest.approx(given.hbm / 4, rel=0.05))
    assert fitted.after == pytest.approx((1, 1, 1), rel=0.05)


def test_factors_that_cannot_be_told_apart_become_one() -> None:
    assert fit([Priced(ms, 1.0, 1.0) for ms in (2.0, 4.0, 8.0)])[2]
    # Would need a negative time of links.
    memory, link, together = fit([Priced(10.0, 1.0, 0.0), Priced(2.0, 1.0, 1.0), Priced(10.0, 1.0, 0.1)])
    assert together
    assert memory == link > 0


def test_results_that_say_nothing_of_the_device_are_refused(tmp_path: Path) -> None:
    folder = a_sweep(tmp_path / "sweep", FIGURES["cuda"], ["table_wise", "row_wise"])
    with pytest.raises(UserError, match="measured on cuda, but this plan is for cpu"):
        calibrate(folder, FIGURES["cpu"], device="cpu")
    with pytest.raises(UserError, match=r"has 2 cases that can be compared .* but needs 3"):
        calibrate(folder, FIGURES["cuda"], device="cuda")
    with pytest.raises(UserError, match="holds no results of benchmarks"):
        calibrate(str(tmp_path), FIGURES["cuda"], device="cuda")


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda content: {"sweep": {}}, "holds no results of benchmarks/sharding.py ('ranks' is missing); give"),
        (
            lambda content: {"sweep": {**content["sweep"], "ranks": "2"}},
            "holds no results of benchmarks/sharding.py (ranks is '2', but must be a whole number); give",
        ),
    ],
)
def test_a_damaged_sweep_is_refused_with_its_folder(tmp_path: Path, damage: Any, reason: str) -> None:
    folder = a_sweep(tmp_path / "sweep", FIGURES["cuda"], ["table_wise", "row_wise", "grid_shard"])
    file = Path(folder) / SWEEP_FILE
    file.write_text(json.dumps(damage(json.loads(file.read_text()))))
    with pytest.raises(UserError) as error:
        calibrate(folder, FIGURES["cuda"], device="cuda")
    assert str(error.value).startswith(f"--calibrate {folder} {reason}")


@pytest.mark.parametrize("plan", ["{", "{}", '"x"'])
def test_a_damaged_plan_of_a_sweep_is_refused_with_its_folder(tmp_path: Path, plan: str) -> None:
    folder = a_sweep(tmp_path / "sweep", FIGURES["cuda"], ["table_wise", "row_wise", "grid_shard"])
    file = next((Path(folder) / CASES).glob("*.0.json"))
    outcome = json.loads(file.read_text())
    outcome["measurement"]["plan"] = plan
    file.write_text(json.dumps(outcome))
    with pytest.raises(UserError, match=re.escape(folder)):
        calibrate(folder, FIGURES["cuda"], device="cuda")


@pytest.mark.parametrize(
    ("field", "value", "problem"),
    [
        ("measurement", None, "is ok, but was not measured"),
        ("step_ms", [[]], "has times that are missing or not above 0"),
        ("lookup_ms", [[0.0]], "has times that are missing or not above 0"),
    ],
)
def test_an_outcome_that_no_sweep_writes_is_refused(tmp_path: Path, field: str, value: Any, problem: str) -> None:
    folder = a_sweep(tmp_path / "sweep", FIGURES["cuda"], ["table_wise", "row_wise", "grid_shard"])
    file = next((Path(folder) / CASES).glob("*.0.json"))
    outcome = json.loads(file.read_text())
    if field == "measurement":
        outcome[field] = value
    else:
        outcome["measurement"][field] = value
    file.write_text(json.dumps(outcome))
    with pytest.raises(UserError, match=problem):
        calibrate(folder, FIGURES["cuda"], device="cuda")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{}", "world_size is missing"),
        ('"x"', "the content is 'x', but must be a mapping of fields"),
        ("x", "not whole JSON"),
    ],
)
def test_text_that_is_no_plan_is_refused(text: str, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        tables_of_plan(text)


@pytest.mark.parametrize(
    ("entry", "sentence"),
    [
        ("{name: b, rows: true, dim: 8}", "entry 2 ('b'): rows is True, but must be a whole number from 1 to "),
        ("{name: a, rows: 9, dim: 8}", "entry 2 ('a'): entry 1 already has this name; give every feature its own."),
        ("{name: b, rows: 9, dim: 6}", "entry 2 ('b'): dim is 6, but must be a multiple of 4, as FBGEMM needs."),
        ("{name: b, rows: 9, dim: 8, pool: 3}", "entry 2 ('b'): there is no field 'pool'; did you mean 'pooling'?"),
        ("{name: b.c, rows: 9, dim: 8}", "entry 2 ('b.c'): the name is 'b.c', but must be a name without . @ / and"),
        ("{rows: 9, dim: 8}", "entry 2: name is missing; "),
        ("9", "entry 2: the content is 9, but must be a mapping of fields; "),
        ("{name: b, rows: 9, rows: 9, dim: 8}", "cannot be read (line 2: the key 'rows' stands twice); "),
    ],
)
def test_a_wrong_entry_of_a_table_list_is_one_sentence(tmp_path: Path, entry: str, sentence: str) -> None:
    file = tmp_path / "tables.yaml"
    file.write_text(f"- {{name: a, rows: 8, dim: 8}}\n- {entry}\n")
    with pytest.raises(UserError) as error:
        read_table_list(file)
    message = str(error.value)
    assert message.removeprefix("the table list ").startswith(str(file))
    assert sentence in message
    assert "\n" not in message


@pytest.mark.parametrize("text", ["[]", "", "{name: a, rows: 8, dim: 8}"])
def test_a_table_list_without_entries_is_one_sentence(tmp_path: Path, text: str) -> None:
    file = tmp_path / "tables.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=f"^the table list {file} is not a list with an entry per feature; write .*"):
        read_table_list(file)


def test_the_columns_of_the_tables_are_those_of_a_run() -> None:
    tables = build_tables(TABLES, "packed", "adagrad", ("a", "b")).embedding_bag_configs()
    assert [table.name for table in tables] == [f"a+b+shared/{table.name}" for table in TABLES]
    assert {table.embedding_dim for table in tables} == {48}


def test_a_feature_that_tasks_share_has_one_table_in_plans_and_by_hand() -> None:
    tables = [TableSpec("user", 1000, 16), TableSpec("city", 50, 16, own=False)]
    for layout in ("split", "packed"):
        configs = build_tables(tables, layout, "adagrad", ("a", "b")).embedding_bag_configs()
        assert [config.embedding_dim for config in configs if config.name.endswith("/city")] == [16]
        total = sum(config.num_embeddings * config.embedding_dim for config in configs)
        assert model_bytes(tables, "adagrad", 2) == 2 * 4 * total == 2 * 4 * 16 * (3 * 1000 + 50)
    shared = build_tables([replace(table, own=False) for table in tables], "split", "sgd", ("a", "b"))
    assert [config.name for config in shared.embedding_bag_configs()] == ["shared/user", "shared/city"]
