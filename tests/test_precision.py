"""--train.precision on CPU: what it refuses, notes and computes in."""

import pytest
import torch
from torch import nn

from stem_torchrec.runtime.errors import UserError
from stem_torchrec.runtime.process import Process
from stem_torchrec.training.assembly import autocast_forward

CPU = Process(rank=0, world_size=1, local_world_size=1, device=torch.device("cpu"))


def test_tf32_is_refused_on_cpu() -> None:
    with pytest.raises(UserError, match=r"^tf32 is a format of NVIDIA GPUs; on CPU choose --train.precision fp32 or b"):
        autocast_forward(nn.Linear(2, 2), "tf32", CPU)


@pytest.mark.parametrize("has_amx", [True, False])
def test_bf16_on_a_cpu_without_units_for_it_gets_a_note(
    has_amx: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": has_amx})
    forward = autocast_forward(nn.Linear(2, 2), "bf16", CPU)
    assert ("without AMX" in capsys.readouterr().out) != has_amx
    assert forward(torch.zeros(1, 2)).dtype == torch.bfloat16
    assert autocast_forward(nn.Linear(2, 2), "fp32", CPU)(torch.zeros(1, 2)).dtype == torch.float32
    assert capsys.readouterr().out == ""
