"""A profiled run: its traces and summary, and that it trains to the same bits as one without a profile."""

import gzip
import io
import json
import sys
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.autograd.profiler_util import FunctionEvent

from stem_torchrec.data import synthetic
from stem_torchrec.profiles.phases import PHASES, step_times
from stem_torchrec.profiles.step_profiler import StepProfiler, format_phases
from stem_torchrec.train import main
from stem_torchrec.training.recipes import tiny
from stem_torchrec.training.trainer import train

from distributed import run_ranks
from runs import this_process

pytestmark = pytest.mark.stack

RANKS = 2
STEPS = 20


def run(log: Path, folder: Path, profile: bool) -> str:
    """Trains on this rank; returns what it prints."""
    config = tiny()
    config = replace(
        config,
        data=replace(config.data, path=str(log), batch_size=128),
        train=replace(config.train, profile=profile, max_steps=STEPS),
        output_dir=str(folder),
    )
    with redirect_stdout(io.StringIO()) as output:
        train(config, this_process())
    return output.getvalue()


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("log") / "log"
    synthetic.ensure(tiny().data.synthetic, str(folder))
    return folder


@pytest.fixture(scope="module")
def profiled(log: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """The run folder, and what each rank prints."""
    folder = tmp_path_factory.mktemp("runs") / "profiled"
    return folder, run_ranks(RANKS, run, log, folder, True)


def shares(summary: str) -> dict[str, list[float]]:
    """Percent of the step by phase, and of the step itself, for each rank."""
    lines = [line.split("  ") for line in summary.splitlines()]
    cells = [[cell.strip() for cell in line if cell.strip()] for line in lines]
    return {
        line[0]: [float(cell.removesuffix("%")) for cell in line if cell.endswith("%")]
        for line in cells
        if line and line[0] in (*PHASES, "step")
    }


def test_each_rank_writes_a_trace_that_holds_the_recorded_steps(profiled: tuple[Path, list[str]]) -> None:
    folder, _ = profiled
    traces = {f"rank_{rank}.json.gz" for rank in range(RANKS)}
    assert {path.name for path in (folder / "profile").iterdir()} == {*traces, "summary.txt"}
    for name in traces:
        events = json.loads(gzip.decompress((folder / "profile" / name).read_bytes()))["traceEvents"]
        steps = {event["name"] for event in events if str(event.get("name")).startswith("ProfilerStep#")}
        assert steps == {f"ProfilerStep#{step}" for step in range(12, 17)}  # Counted from 0.


def test_the_shares_of_a_rank_sum_to_its_step(profiled: tuple[Path, list[str]]) -> None:
    by_phase = shares((profiled[0] / "profile" / "summary.txt").read_text())
    assert list(by_phase) == [*PHASES, "step"]
    assert by_phase.pop("step") == [100.0] * RANKS
    for rank in range(RANKS):
        # Each of the ten is rounded to a tenth of a percent.
        assert sum(values[rank] for values in by_phase.values()) == pytest.approx(100, abs=len(PHASES) * 0.05)
        assert min(values[rank] for values in by_phase.values()) >= 0
        assert all(by_phase[phase][rank] > 0 for phase in PHASES if phase not in ("dense optimizer", "other"))


def test_rank_0_prints_the_phases_and_the_path_of_the_summary(profiled: tuple[Path, list[str]]) -> None:
    folder, (printed, *others) = profiled
    summary = (folder / "profile" / "summary.txt").read_text()
    assert str(folder / "profile" / "summary.txt") in printed
    assert shares(printed).items() >= shares(summary).items()
    assert others == [""] * (RANKS - 1)
    assert "https://ui.perfetto.dev" in summary
    operations = summary.partition("without what runs inside them:\n\n")[2].partition("\n\n")[0].splitlines()
    assert len(operations) == 2 + 10


def test_a_profiled_run_trains_to_the_same_bits(profiled: tuple[Path, list[str]], log: Path, tmp_path: Path) -> None:
    run_ranks(RANKS, run, log, tmp_path / "plain", False)
    assert not (tmp_path / "plain" / "profile").exists()
    folder, _ = profiled
    weights = [f"best/{path.name}" for path in (tmp_path / "plain" / "best").glob("*.distcp")]
    assert weights
    for name in ("metrics.json", *weights):
        assert (folder / name).read_bytes() == (tmp_path / "plain" / name).read_bytes(), name
    plain, with_profile = (
        [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        for run in (tmp_path / "plain", folder)
    )
    of_the_machine = ("train/step_ms", "train/samples_per_second", "memory/")
    assert [{k: v for k, v in line.items() if not k.startswith(of_the_machine)} for line in plain] == [
        {k: v for k, v in line.items() if not k.startswith(of_the_machine)} for line in with_profile
    ]


@pytest.mark.parametrize(
    ("options", "steps"),
    [(["--train.max-steps", "18"], 18), (["--train.eval-every", "10"], 10), (["--data.batch-size", "1024"], 8)],
)
def test_a_run_too_short_to_profile_is_refused_before_it_writes_anything(
    log: Path,
    tmp_path: Path,
    options: list[str],
    steps: int,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        sys, "argv", ["train.py", "--recipe", "tiny", "--data.path", str(log), "--train.profile", *options]
    )
    with pytest.raises(SystemExit, match=r"^2$"):
        main()
    error = capfd.readouterr().err
    assert f"--train.profile needs 19 steps before the first evaluation, but this run makes {steps}; raise" in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("steps", [5, 14])
def test_a_run_that_fails_or_ends_early_leaves_no_profiler_behind(
    tmp_path: Path, steps: int, capsys: pytest.CaptureFixture[str]
) -> None:
    def take_steps(fail: bool) -> None:
        with StepProfiler(tmp_path / "profile", torch.device("cpu")) as profiler:
            for _ in range(steps):
                profiler.step()
            if fail:
                raise RuntimeError("a rank fails")

    with pytest.raises(RuntimeError, match="a rank fails"):
        take_steps(fail=True)
    assert capsys.readouterr().out == ""
    take_steps(fail=False)
    note = f"the run ended after {steps} steps, profiling takes 17; no profile was written.\n"
    assert capsys.readouterr().out == note
    assert not torch.autograd._profiler_enabled()
    assert not list(tmp_path.iterdir())


def event(name: str, start: float, end: float, *inside: FunctionEvent, thread: int = 1) -> FunctionEvent:
    """An event from `start` to `end` in ms, with those inside it."""
    made = FunctionEvent(id=0, name=name, thread=thread, start_us=start * 1000, end_us=end * 1000)
    for child in inside:
        made.append_cpu_child(child)
        child.set_cpu_parent(made)
    return made


def test_autograd_on_its_own_thread_takes_the_place_of_the_wait_for_it() -> None:
    lookup = "torch::autograd::CppNode<SplitLookupFunction_adagrad_Op>"
    function = "autograd::engine::evaluate_function: "
    step = event("ProfilerStep*", 0, 10, event("## forward 3 ##", 0, 3), event("## backward 3 ##", 3, 9))
    threads = [
        event(f"{function}MmBackward0", 4, 5, event("aten::mm", 4, 5, thread=2), thread=2),
        event(f"{function}{lookup}", 5, 8, event(lookup, 5, 8, thread=2), thread=2),
        event("gloo:all_reduce", 4, 9, thread=3),
    ]
    times = step_times([step, *threads])
    spent = {phase: spent.host for phase, spent in times.phases.items() if spent.host}
    assert spent == pytest.approx({"dense forward": 3, "dense backward": 3, "table backward": 3, "other": 1})
    assert next(iter(times.operations)) == "## backward ##"


def test_what_follows_the_last_function_of_a_backward_pass_is_the_all_reduce() -> None:
    function = event("autograd::engine::evaluate_function: MmBackward0", 1, 4, event("c10d::allreduce_", 3, 4))
    step = event("ProfilerStep*", 0, 10, event("## backward 3 ##", 0, 9, function, event("aten::copy_", 7, 8)))
    spent = {phase: spent.host for phase, spent in step_times([step]).phases.items() if spent.host}
    assert spent == pytest.approx({"dense backward": 3, "all-reduce": 6, "other": 1})


def test_many_ranks_share_columns_and_a_gpu_has_one() -> None:
    host = torch.ones(9, len(PHASES), dtype=torch.float64)
    host[3, 0] = 11
    header, _, first, *_, last = format_phases(host=host, device=host).splitlines()
    assert header.split() == ["phase", "ms", "GPU", "ms", "mean", "least", "most", "what"]
    assert first.split()[:6] == ["input", "2.11", "2.11", "15.0%", "10.0%", "55.0%"]
    assert last.split() == ["step", "11.11", "11.11", "100.0%"]
