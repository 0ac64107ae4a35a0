"""The sharding sweep: its cases, its batches, what it makes of measurements, and a whole one that is interrupted."""

import contextlib
import json
import math
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from stem_torchrec.config import DataConfig, Kernel, TrainConfig
from stem_torchrec.config.serialization import from_dict, to_dict
from stem_torchrec.runtime.errors import UserError
from stem_torchrec.runtime.process import Process, join_process_group

from common.load import CpuTime
from common.table_list import TableSpec
from sweep import ranks
from sweep.batches import draw_ids, draw_lengths, workload_of_tables
from sweep.cases import TYPES, Axes, Case, list_cases
from sweep.config import Sweep, plan_sweep, read_command_line
from sweep.gains import format_gains, gains
from sweep.ranks import Ending, Environment, Job, cores_of_others, environment_of_child, judge, no_gpu, run_case
from sweep.report import write_report
from sweep.results import Measurement, Outcome, ResultFolder, TableTime
from sweep.rows import Row, fastest, summarize
from sweep.run import order_of_round, turns_left

ROOT = Path(__file__).parent.parent
TORCHRUN = ("torchrun", "--standalone", "--nproc-per-node", "2")
AXES = Axes(TYPES, ("split", "packed"), ("stock", "once"), (2, 8), ("adagrad",), ("auto",), ("fp32",))
CASE = Case("table_wise", "split", "stock", 2, "adagrad", "auto", "fp32")


def names(*patterns: str, axes: Axes = AXES) -> list[str]:
    return [case.name for case in list_cases(axes, patterns)[0]]


def test_a_case_is_named_by_its_parts_in_order() -> None:
    case = Case("row_wise", "split", "once", 8, "adagrad", "auto", "fp32")
    assert case.name == "row_wise/split/once/T8/adagrad/auto/fp32"


def test_combinations_that_make_no_sense_are_left_out_by_name_with_the_reason() -> None:
    cases, left_out = list_cases(AXES)
    # Six types split stock, split once and packed stock, data_parallel without once, for each of 2 and 8 tasks.
    assert len(cases) == 2 * (6 * 3 + 2)
    assert len(left_out) == 2 * 7 * 4 - len(cases)
    assert not left_out.keys() & set(cases)
    reasons = {case.name.removesuffix("/T2/adagrad/auto/fp32"): reason for case, reason in left_out.items()}
    assert reasons["row_wise/packed/once"] == "a packed table is looked up once, so stock sends its ids once as well"
    assert reasons["data_parallel/split/once"].startswith("every rank holds the whole table, so no ids")
    kernels = replace(AXES, kernel=("fused", "dense"), layout=("split",), input_dist=("stock",), tasks=(2,))
    served = {(case.type, case.kernel) for case in list_cases(kernels)[0]}
    assert served == {("data_parallel", "dense"), *((kind, "fused") for kind in TYPES if kind != "data_parallel")}
    bf16 = replace(AXES, communication=("bf16",))
    assert "data_parallel" not in {case.type for case in list_cases(bf16)[0]}


def test_a_pattern_takes_named_parts_from_all_there_are_and_the_rest_from_the_options() -> None:
    narrow = replace(AXES, type=("table_wise",), layout=("split",), tasks=(2,))
    assert names("grid_shard/packed/stock/T4", axes=narrow) == ["grid_shard/packed/stock/T4/adagrad/auto/fp32"]
    assert names("*/*/once", axes=narrow) == ["table_wise/split/once/T2/adagrad/auto/fp32"]
    assert {name.split("/")[0] for name in names("table_*")} == {"table_wise", "table_row_wise", "table_column_wise"}
    assert len(names("table_wise", "table_wise/split")) == len(names("table_wise"))


def test_shares_of_a_cache_are_cases_of_the_one_kernel_that_has_one() -> None:
    kernels: tuple[Kernel, ...] = ("fused", "fused_uvm_caching")
    axes = Axes(("table_wise",), ("split",), ("stock",), (2,), ("adagrad",), kernels, ("fp32",), cache=(0.1, 0.5))
    cases, left_out = list_cases(axes)
    base = "table_wise/split/stock/T2/adagrad"
    caching = f"{base}/fused_uvm_caching/fp32"
    assert [case.name for case in cases] == [f"{base}/fused/fp32", f"{caching}/cache0.1", f"{caching}/cache0.5"]
    assert left_out == {}
    assert cases[1].configure(TrainConfig()).sharding.rules == ("*=table_wise:kernel=fused_uvm_caching:cache=0.1",)
    assert cases[0].configure(TrainConfig()).sharding.rules == ()
    assert names("*/split/stock/T2/*/fused_uvm_caching/*/cache0.25", axes=axes) == [f"{caching}/cache0.25"]
    assert from_dict(Case, to_dict(cases[1])) == cases[1]
    # Results of earlier sweeps have no share.
    assert from_dict(Case, {name: value for name, value in to_dict(CASE).items() if name != "cache"}) == CASE


@pytest.mark.parametrize(
    ("pattern", "sentence"),
    [
        ("*/*/*/*/*/*/*/0.1", "'0.1' is not a share of the rows above 0 and up to 1; write cache0.1"),
        ("*/*/*/*/*/*/*/cache2", "'cache2' is not a share of the rows above 0 and up to 1"),
        ("rowwise", "'rowwise' is not a known type.*did you mean 'row_wise'"),
        ("row_wise/split/once/8", "'8' is not a number of tasks; write T8"),
        ("*/split/twice", "'twice' is not a known input dist"),
        ("a/b/c/d/e/f/g/h/i", "has 9 parts"),
        ("*/packed/once", "none of .* combinations makes sense, such as .*: a packed table is looked up once"),
    ],
)
def test_a_pattern_that_names_nothing_is_refused(pattern: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        list_cases(AXES, [pattern])


def test_a_sweep_takes_options_of_training_beside_its_own(tmp_path: Path) -> None:
    line = ["--recipe", "tiny", "--tasks", "2", "3", "--model.embedding-dim", "12", "--out", "x", "--types", "all"]
    config, train = read_command_line([*line, "--sparse.name", "sgd"])
    assert train.model.embedding_dim == 12
    assert {case.optimizer for case in plan_sweep(config, train).cases} == {"sgd"}
    assert {case.tasks for case in plan_sweep(config, train).cases} == {2, 3}
    tables = tmp_path / "tables.yaml"
    tables.write_text("- {name: a, rows: 100, dim: 8}\n- {name: b, rows: 10, dim: 8}")
    sweep = plan_sweep(*read_command_line(["--tables", str(tables), "--out", "x"]))
    assert [table.rows for table in sweep.tables] == [100, 10]
    for labels, sentence in (("a a", "two of 2 tasks would be called 'a'"), ("task_2", "would be called 'task_2'")):
        with pytest.raises(UserError, match=sentence):
            plan_sweep(
                *read_command_line(
                    ["--tables", str(tables), "--tasks", "2", "--data.labels", *labels.split(), "--out", "x"]
                )
            )
    with pytest.raises(UserError, match="--out DIR"):
        read_command_line([])
    for option in ("--types", "--layouts", "--input-dists", "--kernels", "--communications"):
        with pytest.raises(UserError, match=f"{option} is empty; leave it out for the default"):
            read_command_line(["--out", "x", option])


@pytest.mark.parametrize("zipf", [0.0, 0.7, 1.0, 1.3])
def test_ids_are_drawn_by_their_frequency_rank(zipf: float) -> None:
    rows = 300_000  # More than the frequency ranks that are summed one by one.
    ids = draw_ids(rows, zipf, 1_000_000, np.random.default_rng(0))
    assert 0 <= ids.min() <= ids.max() < rows
    counts = np.sort(np.bincount(ids, minlength=rows))[::-1]
    shares = np.arange(1, rows + 1) ** -zipf
    shares /= shares.sum()
    expected = shares * len(ids)
    if zipf:
        # Five standard deviations of a count.
        assert (np.abs(counts - expected) < 5 * np.sqrt(expected) + 1)[:20].all()
    # How many different ids there are tells how rare the rare ones are; again five standard deviations.
    different = (1 - (1 - shares) ** len(ids)).sum()
    assert abs(np.count_nonzero(counts) - different) < 5 * math.sqrt(different)
    assert abs(np.mean(ids) / rows - 0.5) < 0.2, "frequent ids lie at one end of the table"


def test_a_table_of_a_billion_rows_is_drawn_without_holding_it() -> None:
    ids = draw_ids(1_000_000_000, 1.05, 1000, np.random.default_rng(0))
    assert 0 <= ids.min() <= ids.max() < 1_000_000_000
    assert len(np.unique(ids)) > 100


def test_bags_have_the_mean_number_of_ids() -> None:
    generator = np.random.default_rng(0)
    assert (draw_lengths(1, 1000, generator) == 1).all()
    for mean in (0.3, 4.5):
        # Five standard deviations of the mean of 100,000 lengths.
        assert abs(draw_lengths(mean, 100_000, generator).mean() - mean) < 5 * math.sqrt(mean / 100_000)


def test_batches_depend_on_the_rank_and_the_seed_alone() -> None:
    def batches(rank: int, seed: int, tasks: int) -> list[torch.Tensor]:
        process = Process(rank, 2, 2, torch.device("cpu"))
        specs = [TableSpec("a", 1000, 8), TableSpec("b", 50, 8, pooling=3.0)]
        work = workload_of_tables(specs, DataConfig(batch_size=64), process, tasks=tasks, steps=2, seed=seed)
        return [work.batches[1].sparse_features.values(), work.batches[1].labels]

    first, again, more_tasks = batches(0, 0, 2), batches(0, 0, 2), batches(0, 0, 3)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert torch.equal(first[0], more_tasks[0])
    assert torch.equal(first[1], more_tasks[1][:, :2])
    for other in (batches(1, 0, 2), batches(0, 1, 2)):
        assert not torch.equal(first[0][:60], other[0][:60])


def measured(ms: float, losses: list[float], **values: object) -> Measurement:
    known = Measurement(
        step_ms=((ms, ms * 2), (ms * 1.5, ms)),
        lookup_ms=((3.0, 5.0), (4.0, 4.0)),
        losses=tuple(losses),
        ids=(100.0, 300.0),
        embeddings=(2048.0, 0.0),
        gradients=(0.0, 2048.0),
        memory_before=(400.0, 410.0),
        memory_peak=(500.0, 530.0),
        device_memory_peak=(0.0, 0.0),
        weights=(1.0, 3.0),
        compute=(0.1, 0.05),
        communication=(0.0, 0.15),
        plan=json.dumps({"ms": ms, "tables": {"shared/a": {"ranks": [0]}}}),
        tables="table_wise 2",
        device="cpu",
    )
    return replace(known, **values)


def outcome(case: Case, measurement: Measurement | None, status: str = "ok", round_: int = 0) -> Outcome:
    reason = "" if measurement else "no reason but this"
    return Outcome(case, round_, status, reason, 5.0, "2026-01-01", "abc", 1.0, measurement)


LOSSES = [1.4, 1.3, 1.2, 1.1]


def canned(tmp_path: Path) -> tuple[ResultFolder, Sweep]:
    """The reference, a faster same, a still faster that learns otherwise, and one that failed."""
    types = ("table_wise", "row_wise", "column_wise", "grid_shard")
    cases = [replace(CASE, type=kind) for kind in types]
    folder = ResultFolder(tmp_path / "out", {"a": 1}, {"machine": "a test"})
    folder.write(outcome(cases[0], measured(30, LOSSES)))
    folder.write(outcome(cases[1], measured(20, [1.4, 1.3 * (1 + 1e-7), 1.2, 1.1 * (1 + 1e-3)])))
    folder.write(outcome(cases[2], measured(10, [1.4, 1.3 * (1 + 1e-5), 1.2, 1.1])))
    folder.write(outcome(cases[3], None, "killed"))
    left_out = {replace(CASE, layout="packed", input_dist="once"): "it is stock"}
    return folder, Sweep(tuple(cases), left_out, (), TrainConfig(), ("finish", "like", "share"))


def test_numbers_of_a_row_come_from_all_ranks() -> None:
    [row] = summarize([outcome(CASE, measured(10, LOSSES))], global_batch=1000)
    # The last rank ends the steps after 15 and 20 ms.
    assert (row.p10_ms, row.p50_ms, row.p90_ms) == pytest.approx((15.5, 17.5, 19.5))
    assert (row.lookup_p10_ms, row.lookup_ms, row.lookup_p90_ms) == pytest.approx((4.1, 4.5, 4.9))
    assert row.samples_per_second == pytest.approx(1000 / 0.0175)
    assert (row.ids_bytes, row.embeddings_bytes, row.gradients_bytes) == (400, 2048, 2048)
    assert (row.peak_mib, row.added_mib, row.weights_imbalance) == (530, 120, 1.5)
    assert (row.estimate_ms, row.compute_ms) == (0.2, 0.05)
    assert row.estimate_over_lookup == pytest.approx(0.2 / 4.5)
    rounds = [outcome(CASE, measured(ms, LOSSES), round_=i) for i, ms in enumerate((10, 10, 40))]
    [row] = summarize(rounds, global_batch=1000)
    assert row.p50_ms == pytest.approx(20)
    assert row.spread == pytest.approx((70 - 17.5) / 20)


def test_a_case_that_learns_something_else_is_marked_and_not_advised(tmp_path: Path) -> None:
    folder, sweep = canned(tmp_path)
    rows, advice = write_report(folder, sweep, rounds=1, global_batch=100)
    assert [row.learns for row in rows] == ["reference", "same", "other", ""]
    assert fastest(rows)[2, "adagrad"].case.type == "row_wise"
    assert "Take row_wise/split/stock/T2/adagrad/auto/fp32" in advice
    assert "--sparse.name adagrad --data.labels finish like" in advice
    assert json.loads((folder.folder / "advice.plan.json").read_text())["ms"] == 20
    report = (folder.folder / "report.md").read_text()
    assert "| grid_shard/split/stock/T2/adagrad/auto/fp32 | killed | no reason but this |" in report
    assert advice in report
    assert "4 of 4 run, 1 combinations left out" in report
    assert "| table_wise/packed/once/T2/adagrad/auto/fp32 | it is stock |" in report
    table = pq.read_table(folder.folder / "report.parquet").to_pylist()
    assert [row["status"] for row in table] == ["ok", "ok", "ok", "killed", "left out"]
    assert table[4]["reason"] == "it is stock"
    assert table[3]["p50_ms"] is None
    assert table[1]["early_gap"] == pytest.approx(1e-7, rel=1e-3)


def test_a_case_that_ran_beside_other_work_is_marked(tmp_path: Path) -> None:
    folder, sweep = canned(tmp_path)
    quiet, busy = (replace(outcome(case, measured(30, LOSSES)), cores=4) for case in sweep.cases[:2])
    folder.write(replace(quiet, others=0.3))
    folder.write(replace(busy, others=0.6))
    rows, _ = write_report(folder, sweep, rounds=1, global_batch=100)
    assert [row.loaded for row in rows] == [False, True, False, False]
    warning = "warning: other processes kept up to 0.6 cores busy, so these times are too long: `row_wise/split"
    assert warning in (folder.folder / "report.md").read_text()


def test_work_of_others_is_what_the_sweep_did_not_do_on_the_busiest_host() -> None:
    def ending(rank: int, busy: float, own: float) -> Ending:
        return Ending(rank, "ok", "", 10.0, "", busy_seconds=busy, own_seconds=own)

    hosts = [ending(0, 19.0, 8.0), ending(1, 19.0, 9.0), ending(2, 20.0, 7.0), ending(3, 20.0, 8.0)]
    assert cores_of_others(hosts, 2) == pytest.approx(0.5)
    assert cores_of_others([ending(0, 1.0, 1.01)], 1) == 0
    before = CpuTime.now()
    sum(i * i for i in range(2_000_000))
    after = CpuTime.now()
    # What this process did counts as busy and as its own, to the ticks of the clock.
    assert after.own - before.own > 0.02
    assert after.busy - before.busy >= after.own - before.own - 0.05


def test_the_slowest_tables_come_first_with_their_spread(tmp_path: Path) -> None:
    folder, sweep = canned(tmp_path)
    times = {"like/a": (1.0, 2.0, 3.0), "shared/a": (5.0, 6.0, 7.0)}
    tables = tuple(TableTime(name, 1000, 8, "row_wise", "fused", (0, 1), 0.25, ms) for name, ms in times.items())
    folder.write(outcome(sweep.cases[1], measured(20, LOSSES, by_table=tables)))
    write_report(folder, sweep, rounds=1, global_batch=100)
    section = (folder.folder / "report.md").read_text().partition("### By table, `row_wise/split")[2]
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in section.splitlines()[4:6]]
    assert lines[0] == ["shared/a", "1,000", "8", "row_wise", "fused", "0,1", "0.250", "5.20", "6.00", "6.80", "75%"]
    assert lines[1][0] == "like/a"
    rows = pq.read_table(folder.folder / "tables.parquet").to_pylist()
    assert [(row["table"], row["p50_ms"]) for row in rows] == [("like/a", 2.0), ("shared/a", 6.0)]


@pytest.mark.parametrize("gpus", ["0,1", "GPU-8f2c", "", None])
def test_children_see_the_gpus_that_are_hidden_from_the_process_which_starts_them(
    gpus: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if gpus is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", gpus)
    with no_gpu() as environment:
        assert os.environ["CUDA_VISIBLE_DEVICES"] == ""
        child = environment_of_child(environment, "127.0.0.1", 1234)
    assert os.environ.get("CUDA_VISIBLE_DEVICES") == gpus
    line = [sys.executable, "-c", "import os; print(os.environ.get('CUDA_VISIBLE_DEVICES'))"]
    assert subprocess.check_output(line, env=child, text=True).strip() == str(gpus)
    assert (child["MASTER_ADDR"], child["MASTER_PORT"]) == ("127.0.0.1", "1234")


def test_the_store_of_a_case_on_one_host_does_not_listen_on_other_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    answering = []

    def look(environment: Environment, address: str, port: int) -> dict[str, str]:
        for host in ("127.0.0.1", "127.0.0.2"):
            with contextlib.suppress(ConnectionRefusedError), socket.create_connection((host, port)):
                answering.append(host)
        return {"PYTHONHOME": "/no/such/folder"}  # With which the child ends at once.

    monkeypatch.setattr(ranks, "environment_of_child", look)
    job = Job(TrainConfig(), CASE, (), warmup=0, steps=1, by_table=False, timeout=60, outcome="")
    with join_process_group() as process:
        [ending] = run_case(job, process, {})
    assert ending.status == "failed"
    assert answering == ["127.0.0.1"]


@pytest.mark.parametrize("losses", [[math.nan] * 4, [1.4, 1.3, 1.2, 1.2]])
def test_losses_that_are_no_numbers_or_run_apart_later_are_marked(losses: list[float]) -> None:
    other = replace(CASE, type="row_wise")
    rows = summarize([outcome(CASE, measured(9, LOSSES)), outcome(other, measured(9, losses))], global_batch=1)
    assert rows[1].learns == "other"


def test_cases_of_other_tasks_and_optimizers_are_not_compared() -> None:
    others = [replace(CASE, tasks=8), replace(CASE, optimizer="sgd")]
    rows = summarize(
        [outcome(case, measured(9, [x * i for x in LOSSES])) for i, case in enumerate([CASE, *others], start=1)],
        global_batch=1,
    )
    assert [row.learns for row in rows] == ["reference"] * 3


def test_a_case_is_set_against_stock_and_split_of_its_type_round_by_round() -> None:
    table = {"rows": 9, "dim": 4, "sharding_type": "table_wise", "compute_kernel": "fused"}
    ranks = {"like/a": [0, 1], "shared/a": [0, 1], "like/b": [1]}
    tables = {name: {**table, "ranks": each} for name, each in ranks.items()}
    plan = json.dumps({"world_size": 2, "local_world_size": 2, "tables": tables})
    once, packed = replace(CASE, input_dist="once"), replace(CASE, layout="packed")
    outcomes = [
        *(outcome(CASE, measured(ms, LOSSES, plan=plan), round_=i) for i, ms in enumerate((20, 30, 40))),
        *(outcome(once, measured(10, LOSSES, ids=(100.0, 0.0)), round_=i) for i in range(4)),
        outcome(packed, measured(40, LOSSES, ids=(0.0, 0.0)), round_=1),
        outcome(replace(CASE, type="row_wise"), measured(9, LOSSES)),
        outcome(replace(once, type="row_wise"), None, "failed"),
        outcome(replace(once, type="column_wise"), measured(9, LOSSES)),
    ]
    with_once, with_packed = gains(outcomes)
    assert (with_once.case, with_packed.case) == (once, packed)
    # 400 bytes by 100; a rank gets the ids of a twice, and rank 1 those of b once.
    assert (with_once.ids, with_once.copies) == (4, pytest.approx(5 / 3))
    assert with_once.speed == pytest.approx((2, 3, 4))
    assert with_packed.speed == pytest.approx((0.75,))
    assert math.isnan(with_packed.ids)
    table = format_gains([with_once, with_packed]).splitlines()
    assert [cell.strip() for cell in table[2].split("|")[-5:-1]] == ["4.00", "1.67", "3.00", "2.00 to 4.00"]
    assert [cell.strip() for cell in table[3].split("|")[-5:-1]] == ["", "", "0.75", "0.75 to 0.75"]


def test_plots_are_written(tmp_path: Path) -> None:
    from sweep.plots import write_plots

    folder, sweep = canned(tmp_path)
    rows, _ = write_report(folder, sweep, rounds=1, global_batch=100)
    for path in write_plots(rows, tmp_path):
        assert path.read_bytes().startswith(b"\x89PNG")
    assert write_plots([Row(CASE, "failed")], tmp_path) == []


def test_another_sweep_in_the_same_folder_is_refused_with_the_difference(tmp_path: Path) -> None:
    ResultFolder(tmp_path, {"steps": 20, "model": {"dim": 8}}, {})
    ResultFolder(tmp_path, {"steps": 20, "model": {"dim": 8}}, {"started": "later"})
    with pytest.raises(UserError, match=r"holds another sweep, where model.dim is 8 and not 16"):
        ResultFolder(tmp_path, {"steps": 20, "model": {"dim": 16}}, {})


def test_finished_and_failed_cases_are_not_run_again_unless_asked(tmp_path: Path) -> None:
    folder, sweep = canned(tmp_path)
    turns = [(round_, case) for round_ in range(3) for case in order_of_round(sweep.cases, round_)]
    left = list(turns_left(folder, turns, retry=False))
    assert len(left) == 2 * 3
    assert {case.type for _, case in left} == {"table_wise", "row_wise", "column_wise"}
    retried = list(turns_left(folder, turns, retry=True))
    assert [turn for turn in retried if turn not in left] == [(0, sweep.cases[3])]


def test_the_reason_of_a_case_is_that_of_the_rank_which_failed_of_itself() -> None:
    lost = Ending(0, "failed", "RuntimeError: connection closed", 5.0, "")
    assert judge([lost, Ending(1, "killed", "killed by SIGKILL", 5.2, "")]) == ("killed", "rank 1: killed by SIGKILL")
    assert judge([Ending(0, "stopped", "another rank failed", 9.0, ""), replace(lost, rank=1)])[0] == "failed"
    assert judge([Ending(0, "ok", "", 5.0, "")]) == ("ok", "")


def launch(folder: Path, *options: str) -> subprocess.Popen:
    """Starts a sweep of three cases on two ranks, of which the optimizer refuses one."""
    bin_ = Path(sys.executable).parent
    env = {name: value for name, value in os.environ.items() if name in ("HOME", "LANG", "PYTHONPATH", "TMPDIR")}
    env |= {"PATH": f"{bin_}{os.pathsep}{os.environ['PATH']}", "OMP_WAIT_POLICY": "passive", "SWEEP": str(folder)}
    # Names no GPU, which a machine with GPUs would use; the children get it as it is.
    env["CUDA_VISIBLE_DEVICES"] = "-1"
    cases = [f"{kind}/*/*/*/{name}" for kind, name in (("table_wise", "adagrad"), ("row_wise", "adagrad"))]
    line = [*TORCHRUN, "benchmarks/sharding.py", "--recipe", "tiny", "--out", str(folder)]
    line += ["--cases", *cases, "table_wise/*/*/*/lamb", "--layouts", "split", "--input-dists", "stock"]
    line += ["--steps", "3", "--warmup", "1", "--timeout", "100", *options]
    return subprocess.Popen(line, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_for(condition: Callable[[], object], process: subprocess.Popen | None = None) -> None:
    """Returns when the condition holds; fails after 90 s, or when the process has ended."""
    deadline = time.monotonic() + 90
    while not condition():
        assert time.monotonic() < deadline
        assert process is None or process.poll() is None, process.communicate()[0]
        time.sleep(0.05)


def children_of(folder: Path) -> list[str]:
    """Ids of the processes that measure a case of this sweep."""
    ids = []
    for process in Path("/proc").glob("[0-9]*"):
        # It may end while it is looked at, or be another user's.
        with contextlib.suppress(OSError):
            if b"sweep.worker" in (process / "cmdline").read_bytes():
                ids += [process.name] if str(folder).encode() in (process / "environ").read_bytes() else []
    return ids


@pytest.mark.long
def test_an_interrupted_sweep_resumes_and_its_advice_trains(tmp_path: Path) -> None:
    out = tmp_path / "out"
    sweep = launch(out)
    wait_for(lambda: list(out.glob("cases/*.0.json")), sweep)
    [first] = out.glob("cases/*.0.json")
    wait_for(lambda: children_of(out), sweep)
    with contextlib.suppress(FileNotFoundError):
        assert b"CUDA_VISIBLE_DEVICES=-1\0" in Path(f"/proc/{children_of(out)[0]}/environ").read_bytes()
    sweep.send_signal(signal.SIGTERM)
    sweep.communicate(timeout=60)
    wait_for(lambda: not children_of(out))
    assert len(list(out.glob("cases/*.0.json"))) < 3, "it was not interrupted"
    before = first.stat().st_mtime_ns

    again = launch(out)
    text, _ = again.communicate(timeout=120)
    assert again.returncode == 0, text
    assert "already done: 1," in text
    assert first.stat().st_mtime_ns == before
    rows = {row["name"]: row for row in pq.read_table(out / "report.parquet").to_pylist()}
    assert [row["status"] for row in rows.values()] == ["ok", "ok", "refused"]
    refused = rows["table_wise/split/stock/T2/lamb/auto/fp32"]
    assert "FBGEMM does not fuse lamb on CPU" in refused["reason"]
    ok = rows["row_wise/split/stock/T2/adagrad/auto/fp32"]
    assert ok["learns"] == "same"
    # Two ranks of this size hold more than 100 MiB and less than 10 GiB.
    assert 100 < ok["peak_mib"] < 10_000
    assert min(ok["p50_ms"], ok["lookup_ms"], ok["ids_bytes"], ok["embeddings_bytes"], ok["gradients_bytes"]) > 0
    tables = pq.read_table(out / "tables.parquet").to_pylist()
    assert {row["case"] for row in tables} == {row["name"] for row in rows.values() if row["status"] == "ok"}
    assert all(0 < row["p10_ms"] <= row["p50_ms"] <= row["p90_ms"] for row in tables)
    assert "### By table" in (out / "report.md").read_text()
    assert {path.name for path in out.glob("*.png")} == {"throughput.png", "memory.png", "estimate.png"}

    [options] = re.findall(r"Take .*\): (--sharding\.plan .*)", text)
    train = [*TORCHRUN, "stem_torchrec/train.py", "--recipe", "tiny", *options.split()]
    line = [*train, "--train.max-steps", "2", "--output-dir", str(tmp_path / "run")]
    result = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "run" / "plan.json").read_text() == (out / "advice.plan.json").read_text()
