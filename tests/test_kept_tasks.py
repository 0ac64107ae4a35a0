"""A model that is cut down to some tasks: the same logits, and of towers, gates and experts only what they read."""

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from stem_torchrec.config import ModelConfig
from stem_torchrec.models.build import build_model
from stem_torchrec.models.frame import MultiTaskModel
from stem_torchrec.models.kept_tasks import keep_tasks
from stem_torchrec.models.table import MODELS, with_arch

from test_baselines import COLUMNS, CONFIG, TASKS


def built(config: ModelConfig) -> MultiTaskModel:
    torch.manual_seed(0)
    model = build_model(config, COLUMNS).model.eval()
    assert isinstance(model, MultiTaskModel)
    return model


def inputs(model: MultiTaskModel, groups: Sequence[str]) -> tuple[Tensor, dict[str, Tensor]]:
    """Dense features (B, N), and for each group its pooled embeddings (B, F * D)."""
    generator = torch.Generator().manual_seed(1)
    dense = torch.randn(5, len(COLUMNS.dense), generator=generator)
    width = model.sparse_arch.out_features["shared" if "shared" in model.sparse_arch.groups else "click"]
    every = {group: torch.randn(5, width, generator=generator) for group in (*TASKS, "shared")}
    return dense, {group: every[group] for group in groups}


@pytest.mark.parametrize("kept", [("click",), ("like",), ("share",), ("click", "share")])
@pytest.mark.parametrize("arch", MODELS)
def test_a_model_keeps_the_logits_of_some_tasks_and_no_weight_that_they_do_not_read(
    arch: str, kept: tuple[str, ...]
) -> None:
    model = built(with_arch(CONFIG, arch))
    dense, x = inputs(model, model.sparse_arch.groups)
    # Behind the logits DCMT has what only its loss reads.
    whole = dict(zip(TASKS, model.above_tables(dense, x).unbind(dim=1), strict=False))
    groups = keep_tasks(model, kept)
    assert set(groups) <= set(x)
    _, x = inputs(model, groups)
    # The probability of a step is the product of those of ESMM's towers up to it.
    assert tuple(model.towers) == (TASKS[: TASKS.index(kept[-1]) + 1] if arch in ("esmm", "escm2", "dcmt") else kept)

    def logits() -> Tensor:
        towers = model.above_tables(dense, x)
        return torch.stack([towers[:, i] for i, task in enumerate(model.towers) if task in kept], dim=1)

    with torch.no_grad():
        torch.testing.assert_close(logits(), torch.stack([whole[task] for task in kept], dim=1), rtol=0, atol=1e-6)
        weights = {name: weight for name, weight in model.named_parameters() if "sparse_arch" not in name}
        for name, weight in weights.items():
            value = weight.clone()
            weight.fill_(math.nan)
            assert logits().isnan().any(), f"nothing reads {name}"
            weight.copy_(value)


def test_one_task_of_stem_keeps_its_own_tower_and_gate_and_the_experts_of_all() -> None:
    model = built(CONFIG)
    assert keep_tasks(model, ["like"]) == (*TASKS, "shared")
    first, last = model.layers
    assert (list(model.towers), list(last.gates)) == (["like"], ["like"])
    # The last layer reads the streams of all groups, so the first has the gates of all.
    assert list(first.gates) == list(last.experts) == list(first.experts) == [*TASKS, "shared"]
