"""--train.precision and --train.deterministic on CPU: what they refuse, note, compute in and set."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from stem_torchrec.models.layers import Experts
from stem_torchrec.models.loss import MultiTaskTrain
from stem_torchrec.runtime.errors import UserError
from stem_torchrec.runtime.process import Process
from stem_torchrec.runtime.progress import note_once
from stem_torchrec.training.assembly import autocast_forward
from stem_torchrec.training.run_evaluation import EvaluateConfig, EvaluationData, evaluate_run

from distributed import run_ranks
from runs import Run, config_of, this_process

DATA = Path(__file__).parent / "data"
CPU = Process(rank=0, world_size=1, local_world_size=1, device=torch.device("cpu"))


def test_tf32_is_refused_on_cpu() -> None:
    with pytest.raises(UserError, match=r"^tf32 is a format of NVIDIA GPUs; on CPU choose --train.precision fp32 or b"):
        autocast_forward(nn.Linear(2, 2), "tf32", CPU)


@pytest.mark.parametrize("has_amx", [True, False])
def test_bf16_on_a_cpu_without_units_for_it_gets_a_note(
    has_amx: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    note_once.cache_clear()
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": has_amx})
    forward = autocast_forward(nn.Linear(2, 2), "bf16", CPU)
    # A command that reads two runs notes it once.
    autocast_forward(nn.Linear(2, 2), "bf16", CPU)
    assert capsys.readouterr().out.count("without AMX") == (not has_amx)
    assert forward(torch.zeros(1, 2)).dtype == torch.bfloat16
    assert autocast_forward(nn.Linear(2, 2), "fp32", CPU)(torch.zeros(1, 2)).dtype == torch.float32
    assert capsys.readouterr().out == ""


class Conversions(TorchDispatchMode):
    """Keeps the shapes of the tensors that are converted to another type or device."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[int, ...]] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.ops.aten._to_copy.default:
            self.shapes.append(tuple(args[0].shape))
        return function(*args, **(kwargs or {}))


def test_bf16_converts_the_input_of_all_experts_once() -> None:
    torch.manual_seed(0)
    experts, x = Experts(8, 24, [16, 4]), torch.randn(5, 24)
    expected = experts(x)
    with torch.autocast("cpu", torch.bfloat16), Conversions() as conversions:
        result = experts(x)
    weights = [(8, 24, 16), (8, 1, 16), (8, 16, 4), (8, 1, 4)]
    # Not as (8, 5, 24), for each of the experts.
    assert [shape for shape in conversions.shapes if shape not in weights] == [(5, 24)]
    assert result.dtype == torch.bfloat16
    # Each factor and each sum of two layers is off by up to 2^-9.
    torch.testing.assert_close(result.float(), expected, rtol=0, atol=6 * 2**-9 * expected.max().item())
    with Conversions() as conversions:
        assert torch.equal(experts(x), expected)
    assert conversions.shapes == []


def test_task_weights_go_to_the_device_with_the_model_and_into_no_checkpoint() -> None:
    train = MultiTaskTrain(nn.Linear(2, 2), (1.0, 0.5))
    assert train.task_weights is not None
    assert train.to("meta").task_weights.device.type == "meta"
    assert set(train.state_dict()) == {"model.weight", "model.bias"}
    assert MultiTaskTrain(nn.Linear(2, 2)).task_weights is None


def deterministic_after_build(asked: bool) -> tuple[bool, bool]:
    """Whether torch chooses deterministic algorithms, and only warns where it has none."""
    config = config_of("sgd", "row_wise")
    Run.build(dataclasses.replace(config, train=dataclasses.replace(config.train, deterministic=asked)))
    return torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()


@pytest.mark.parametrize("asked", [True, False])
def test_deterministic_lets_torch_choose_such_algorithms_and_warn_where_it_has_none(asked: bool) -> None:
    assert run_ranks(1, deterministic_after_build, asked) == [(asked, asked)]


def predictions_of(evaluations: list[EvaluateConfig]) -> list[list[float]]:
    """What each evaluation predicts of the first task."""
    predicted = []
    for config in evaluations:
        assert config.predictions is not None
        evaluate_run(config, this_process())
        predicted.append(pq.read_table(config.predictions)["prediction/finish"].to_pylist())
    return predicted


def test_an_evaluation_computes_in_the_precision_that_it_is_given_and_else_in_that_of_the_run(tmp_path: Path) -> None:
    fp32, bf16 = DATA / "run_format_1", tmp_path / "bf16"
    shutil.copytree(fp32, bf16)
    text = (bf16 / "config.yaml").read_text()
    assert text.count("precision: fp32\n") == 1
    (bf16 / "config.yaml").write_text(text.replace("precision: fp32\n", "precision: bf16\n"))
    data = EvaluationData(str(DATA / "log"))
    evaluations = [
        EvaluateConfig(
            str(run), data, "test", precision=precision, predictions=str(tmp_path / f"{run.name}-{precision}")
        )
        for run, precision in ((fp32, None), (bf16, "fp32"), (bf16, None), (fp32, "bf16"))
    ]
    [(own_fp32, given_fp32, own_bf16, given_bf16)] = run_ranks(1, predictions_of, evaluations)
    assert own_fp32 == given_fp32
    assert own_bf16 == given_bf16
    assert own_fp32 != own_bf16
    # Numbers of 8 bits, by way of a few layers.
    np.testing.assert_allclose(own_bf16, own_fp32, rtol=0, atol=2**-6)
