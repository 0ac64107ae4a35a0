import re
from dataclasses import replace
from functools import partial
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from torchrec import EmbeddingBagCollection
from torchrec.distributed.planner.types import PlannerError

from stem_torchrec.data.schema import SparseFeature
from stem_torchrec.models.build import build_model
from stem_torchrec.models.stem import STEM, STEMOptions
from stem_torchrec.runtime.errors import UserError
from stem_torchrec.runtime.process import Process, join_process_group
from stem_torchrec.sharding.topology import make_topology
from stem_torchrec.tables import embedding_bag_configs

from contest.limits import plan_of_torchrec
from contest.plain import PlainSTEM
from contest.problem import Contestant, Problem, Side
from contest.ratios import ratios
from contest.report import Result, write_report
from contest.run import measure, read_command_line
from contest.seats import seats
from contest.shares import share_of_bandwidth, share_of_peak
from contest.sides import compile_dense_part
from contest.turns import Failure, Score, Turns, contest
from contest.worker import take_turn

SMALL = STEMOptions(
    embedding_dim=4,
    num_shared_experts=3,
    num_task_experts=2,
    expert_hidden=(16, 8),
    gate_hidden=(6,),
    tower_hidden=(5,),
)


def plain_names(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What belongs to a STEM's dense weights, as PlainSTEM calls them."""
    weights = {}
    for name, value in tensors.items():
        kind, _, rest = name.removeprefix("layers.0.").partition(".")
        if kind == "experts":
            group, layer, of = rest.split(".")
            for k, one in enumerate(value):
                weights[f"experts.{group}.{k}.{layer}.{of}"] = one.T if of == "weight" else one
        elif kind in ("gates", "towers"):
            task, layer, of = rest.replace("mlp.", "").split(".")
            weights[f"{kind}.{task}.{layer}.{of}"] = value
    return weights


def test_the_plain_implementation_is_the_same_model() -> None:
    problem = Problem(rows=50, batch_size=32, features=3, model=SMALL)
    torch.manual_seed(0)
    model = build_model(replace(SMALL, embedding_std=1.0), problem.columns, table_device="cpu").model
    assert isinstance(model, STEM)
    plain = PlainSTEM(problem.columns.labels, 3 * 4, SMALL)
    plain.load_state_dict(plain_names(dict(model.named_parameters())))
    batch = next(problem.batches(rank=0))
    pooled = {g: x.detach().requires_grad_() for g, x in model.sparse_arch(batch.sparse_features).items()}
    ours = model(batch.dense_features, batch.sparse_features)
    looped = plain(pooled)
    torch.testing.assert_close(looped, ours, rtol=1e-5, atol=1e-5)
    ours[:, 0].sum().backward()
    looped[:, 0].sum().backward()
    expected = plain_names({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    for name, parameter in plain.named_parameters():
        gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        torch.testing.assert_close(gradient, expected.get(name, torch.zeros_like(gradient)), rtol=1e-5, atol=1e-5)
    # All forward, task-specific backward.
    assert pooled["task_0"].grad is not None
    assert pooled["task_0"].grad.count_nonzero() > 0
    assert pooled["task_1"].grad is None or pooled["task_1"].grad.count_nonzero() == 0


@pytest.mark.long
def test_a_run_measures_every_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = [
        "--batch-size",
        "64",
        "--rows",
        "100",
        "--cases",
        "others",
        "--rounds",
        "2",
        "--steps",
        "2",
        "--warmup",
        "1",
    ]
    measure(read_command_line([*line, "--out", str(tmp_path)]))
    rows = pq.read_table(tmp_path / "report.parquet").to_pylist()
    sides = ["ours fp32", "ours bf16", "stock fp32", "stock bf16", "dense fp32"]
    assert [row["side"] for row in rows] == [*sides, *(f"{side}, malloc as it is" for side in sides)]
    assert [row["contest"] for row in rows[::5]] == [
        "others, 100 rows, malloc kept",
        "others, 100 rows, malloc as it is",
    ]
    for row in rows:
        assert [len(times) for times in row["step_ms"]] == [2, 2]
        # Two tasks, before anything is learned: twice log 2, and noise of the initial weights.
        assert row["first_loss"] == pytest.approx(1.386, abs=0.05)
    # Counted from our model's weights, and from the layers of the problem.
    assert {round(row["work_per_second"] * row["p50_ms"] * 1e6) for row in rows} == {
        Problem(batch_size=64).gemm_flops()
    }
    report = (tmp_path / "report.md").read_text()
    [line] = [line for line in report.splitlines() if "samples/s of ours bf16 over dense fp32, 100 rows" in line]
    # A ratio with freed memory kept by all sides, and one with none.
    assert len(re.findall(r"\d\.\d\d \(", line)) == 2
    assert "Others busy: " in report
    assert (tmp_path / "step_time.png").stat().st_size > 0


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--out", "x", "--steps", "0"], "--steps is 0, but must be from 1 to 1000000."),
        (["--out", "x", "--rows", "0"], "--rows is 0, but must be from 1 to 2147483647."),
        ([], "say where the results go: --out DIR."),
        (
            ["--out", "x", "--tasks", "1", "--cases", "architectures"],
            "--tasks is 1, but the case architectures has models that need two; leave it out of --cases.",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(options: list[str], sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        read_command_line(options)
    assert str(caught.value) == sentence


def score(contestant: Contestant, *ms: float, work: int = 1000) -> Score:
    """One that took `ms` for each step, by round."""
    return Score(
        contestant, tuple((time, time) for time in ms), losses=(1.0,), work=work, peak_mib=1, faults_per_step=0
    )


def test_operations_of_a_step_are_three_products_with_each_weight() -> None:
    problem = Problem(rows=50, batch_size=32, features=3, model=SMALL)
    plain = PlainSTEM(problem.columns.labels, 3 * 4, SMALL)
    weights = sum(p.numel() for name, p in plain.named_parameters() if name.endswith("weight"))
    assert problem.gemm_flops() == 3 * 2 * 32 * weights


def test_ratios_are_those_of_the_same_round() -> None:
    gemm, products = (Contestant(side) for side in ("gemm", "products"))
    ours = Contestant("ours")
    given = {
        # The machine is half as fast in the second round.
        "peak": [score(gemm, 8, 16, work=800), score(products, 10, 22), score(ours, 20, 40)],
        "rows": [score(ours, 10, 20), score(replace(ours, rows=100_000), 11, 23)],
        "others, 1,000 rows, malloc kept": [score(ours, 10, 20), score(Contestant("dense"), 30, 80)],
        "others, 1,000 rows, malloc as it is": [
            score(replace(ours, keeps_memory=False), 20, 40),
            score(Contestant("dense", keeps_memory=False), 30, 80),
        ],
        "models": [score(ours, 10, 20), score(replace(ours, model="mmoe"), 8, 18)],
        "variants": [score(ours, 10, 20), score(replace(ours, pipeline="base"), 20, 40)],
        "balance": [score(ours, 10, 20), score(replace(ours, model="stem_mgda"), 16, 40)],
        "architectures, own tables": [score(ours, 10, 20), score(replace(ours, model="duet"), 20, 40)],
        "experts": [score(ours, 10, 20), score(replace(ours, model="stem_norm"), 40, 40)],
        "losses": [score(ours, 10, 20), score(replace(ours, model="stem_jrc"), 10, 16)],
        "compiled": [score(ours, 10, 20), score(replace(ours, dense_part="CUDA graphs"), 5, 10)],
        "ranks": [score(replace(ours, one_core_each=True), 10, 20), score(replace(ours, ranks=2), 10, 25)],
        "roofline": [score(Contestant("copy"), 1, 2), score(Contestant("tables"), 4, 8)],
        "memory": [score(replace(ours, rows=800), 1), score(Contestant("dense", rows=200, keeps_memory=False), 1)],
    }
    assert ratios(given) == [
        ("fp32 step as a share of the GEMM peak", "0.50 (0.50 to 0.50)", ""),
        ("fp32 products of the step alone as a share of it", "0.95 (0.91 to 1.00)", ""),
        ("fp32 step as a share of its products alone", "0.53 (0.50 to 0.55)", ""),
        ("fp32 step time at 100,000 rows over 1,000", "1.12 (1.10 to 1.15)", ""),
        ("samples/s of ours fp32 over dense fp32, 1,000 rows", "3.50 (3.00 to 4.00)", "1.75 (1.50 to 2.00)"),
        ("samples/s of ours fp32 over ours fp32, mmoe, 1,000 rows", "0.85 (0.80 to 0.90)", ""),
        ("samples/s of ours fp32, base over ours fp32", "0.50 (0.50 to 0.50)", ""),
        ("samples/s of ours fp32, stem_mgda over ours fp32", "0.56 (0.50 to 0.62)", ""),
        ("samples/s of ours fp32, duet over ours fp32", "0.50 (0.50 to 0.50)", ""),
        ("samples/s of ours fp32, stem_norm over ours fp32", "0.38 (0.25 to 0.50)", ""),
        ("samples/s of ours fp32, stem_jrc over ours fp32", "1.12 (1.00 to 1.25)", ""),
        ("samples/s of ours fp32, CUDA graphs over ours fp32", "2.00 (2.00 to 2.00)", ""),
        ("samples/s of ours fp32, 2 ranks over ours fp32, 1 rank of one core", "1.80 (1.60 to 2.00)", ""),
        ("tables of 1,000 rows as a share of memory bandwidth", "0.25 (0.25 to 0.25)", ""),
        ("rows of the largest model, ours over dense", "4.00", ""),
    ]


def test_a_ratio_is_left_out_if_one_side_has_failed() -> None:
    failing = {"peak": "products", "variants": "ours", "ranks": "ours", "roofline": "copy", "memory": "dense"}
    assert ratios({case: [score(Contestant(side), 1)] for case, side in failing.items()}) == []


def test_batch_sizes_have_ratios_of_their_own(tmp_path: Path) -> None:
    ours, dense = Contestant("ours"), Contestant("dense")
    scores = [score(replace(side, batch_size=size), ms) for side, ms in ((ours, 10), (dense, 30)) for size in (32, 64)]
    result = Result(scores, [Failure(replace(ours, rows=7), "no | reason", is_error=True)], busy=0.0)
    write_report(tmp_path, {"machine": "a test"}, {"others, 1,000 rows, malloc kept": result}, Problem())
    report = (tmp_path / "report.md").read_text()
    for size in (32, 64):
        table = report.partition(f"Batches of {size} rows:\n")[2]
        assert "samples/s of ours fp32 over dense fp32, 1,000 rows | 3.00 (3.00 to 3.00)" in table
    assert re.search(r"\| ours fp32 +\| +64 \|", report)
    assert re.search(r"\| others, 1,000 rows, malloc kept \| ours fp32 \| 7 +\| 4,096 +\| no / reason", report)
    rows = pq.read_table(tmp_path / "report.parquet").to_pylist()
    assert [row["batch_size"] for row in rows] == [32, 64, 32, 64]


def test_shares_are_of_the_fastest_product_in_the_same_precision_and_of_copies() -> None:
    problem = Problem()
    limits = [score(Contestant("gemm"), 10), score(Contestant("gemm"), 5), score(Contestant("copy"), 2)]
    ours = score(Contestant("ours"), 20)
    assert share_of_peak(ours, limits) == pytest.approx(5 / 20)
    assert share_of_peak(replace(ours, contestant=Contestant("ours", "bf16")), limits) is None
    assert share_of_bandwidth(ours, limits, problem) == pytest.approx((problem.table_bytes() / 20) / (1000 / 2))
    assert share_of_bandwidth(score(Contestant("tables"), 4), limits, problem) == pytest.approx(0.5)
    # It moves whole tables, and not only what the table's bytes count.
    assert share_of_bandwidth(score(Contestant("dense"), 4), limits, problem) is None
    assert share_of_bandwidth(ours, [], problem) is None


def test_a_gpu_seats_the_first_contestants_that_fit_it_together() -> None:
    sides = [Contestant(side, "bf16", 10_000_000) for side in ("ours", "stock", "dense", "ours", "stock", "ours")]
    seated, left_out = seats(sides, Problem(), 79 * 2**30)
    # 24 tables take 15.3 GiB with a number for each row, and with moments and gradients five times as much.
    assert [side.side for side in seated] == ["ours", "stock", "ours", "stock"]
    assert [failure.contestant.side for failure in left_out] == ["dense", "ours"]
    assert not any(failure.is_error for failure in left_out)
    assert re.fullmatch(r"\d+ GiB with the others .*, but 79 GiB are free on the GPU", left_out[0].reason)
    # What benchmarks/gpu.sh asks for: all of `peak`, and pairs in bf16 with 10M rows.
    limits = [Contestant(side, p) for p in ("fp32", "tf32", "bf16") for side in ("gemm", "products", "ours")]
    for asked in (limits, [replace(side, rows=10_000_000) for side in sides[:2]]):
        both = [replace(side, batch_size=size) for side in asked for size in (4096, 65_536)]
        assert seats(both, Problem(), 78 * 2**30) == (both, [])
    alone, _ = seats(sides[:1], Problem(), 14 * 2**30)
    assert alone == []


@pytest.mark.long
def test_a_contestant_that_fails_leaves_the_contest_with_a_reason() -> None:
    sides = [Contestant("ours", kernel="fused_uvm", rows=50), Contestant("tables", rows=50)]
    small = replace(Problem(), features=2, model=SMALL)
    scores, [failure] = contest([replace(side, batch_size=8) for side in sides], small, Turns(1, 2, 1))
    assert failure.contestant.kernel == "fused_uvm"
    assert failure.reason.startswith("the kernel fused_uvm of task_0/feature_0 needs a GPU")
    assert failure.is_error
    [tables] = scores
    assert [len(times) for times in tables.step_ms] == [2]


def test_torchrecs_own_plan_on_a_gpu_never_takes_managed_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    features = [SparseFeature("uid", 1_000_000), SparseFeature("tag", 100)]
    tables = embedding_bag_configs(features, ("like", "shared"), embedding_dim=16)
    collection = EmbeddingBagCollection(tables=tables, device=torch.device("meta"))
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}.items():
        monkeypatch.setenv(name, value)
    with join_process_group(alone=True):
        gpu = partial(make_topology, world_size=1, local_world_size=1, device="cuda", ddr_gib=100)
        plan = plan_of_torchrec(collection, gpu(hbm_gib=1))
        assert plan is not None
        assert {each.compute_kernel for each in plan.get_plan_for_module("").values()} <= {"fused", "dense"}
        with pytest.raises(PlannerError):
            plan_of_torchrec(collection, gpu(hbm_gib=0.1))
        assert plan_of_torchrec(collection, make_topology(world_size=1, local_world_size=1, device="cpu")) is None


def test_only_layers_and_towers_are_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build_model(SMALL, Problem(rows=50, features=3).columns, table_device="cpu").model
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, mode, dynamic: compiled.append((self, mode)))
    compile_dense_part(model, "eager")
    assert compiled == []
    compile_dense_part(model, "CUDA graphs")
    assert [part for part, _ in compiled] == [*model.layers, *model.towers.values()]
    assert {mode for _, mode in compiled} == {"reduce-overhead"}


def test_a_turn_on_a_gpu_waits_once_and_gives_back_the_memory_of_its_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            calls.append("mark")

        def elapsed_time(self, stop: "Event") -> float:
            return 3.0

    def step() -> torch.Tensor:
        calls.append("step")
        return torch.tensor(float(calls.count("step")))

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: calls.append("wait"))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: calls.append("give back"))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 2**21)
    answer = take_turn(Side(step, work=5), 2, Process(0, 1, 1, torch.device("cuda", 0)))
    # The first step is not timed.
    assert calls == ["step", "mark", "step", "mark", "step", "mark", "wait", "give back"]
    assert (answer.step_ms, answer.losses, answer.peak_mib, answer.work) == ((3.0, 3.0), (1.0, 2.0, 3.0), 2.0, 5)
