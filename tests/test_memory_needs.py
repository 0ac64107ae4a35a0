"""A run that cannot fit into memory is refused before anything is built."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from stem_torchrec.config import DataConfig
from stem_torchrec.data.files import Columns
from stem_torchrec.models.stem import STEMOptions
from stem_torchrec.runtime.errors import UserError
from stem_torchrec.runtime.process import Process
from stem_torchrec.training import built_run
from stem_torchrec.training.memory_needs import check_memory
from stem_torchrec.training.recipes import tiny
from stem_torchrec.training.trainer import Trainer

from distributed import run_ranks
from reference import sparse_features
from runs import this_process


def columns(**features: int) -> Columns:
    return Columns(sparse=sparse_features(**features), dense=(), labels=("finish", "like"), group=None)


def process(ranks: int = 1) -> Process:
    return Process(0, ranks, ranks, torch.device("cpu"))


def test_what_fits_passes_and_draws_no_random_number() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    check_memory(tiny(), columns(uid=1000, iid=10), process(), rows=10**6)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("change", "rows", "part"),
    [
        ({"model": STEMOptions(expert_hidden=(65536, 65536))}, 1000, "GiB for 2 x the dense part with gradients"),
        ({"model": STEMOptions(embedding_dim=16_384)}, 10**9, "GiB for 3 tables with the state of rowwise_adagrad"),
        ({"data": DataConfig(batch_size=2**24)}, 10**12, "GiB for 2 x the embeddings of 16,777,216 rows"),
    ],
)
def test_what_cannot_fit_is_refused_with_the_gib_of_each_part(change: dict, rows: int, part: str) -> None:
    config = replace(tiny(), **change)
    ids = 10**9 if "model" in change and rows == 10**9 else 10
    more = {f"f{i}": 10 for i in range(200)} if "data" in change else {}
    with pytest.raises(UserError) as error:
        check_memory(config, columns(uid=ids, **more), process(2), rows=rows)
    assert "this run needs at least" in str(error.value)
    assert part in str(error.value)


def test_the_sizes_are_those_of_the_model() -> None:
    config = replace(tiny(), model=replace(tiny().model, embedding_dim=16_384))
    with pytest.raises(UserError) as error:
        check_memory(config, columns(uid=10**9), process(), rows=128)
    # Three tables of a billion rows, and rowwise Adagrad's number for each row.
    assert f"{3 * 10**9 * (16_384 + 1) * 4 / 2**30:,.1f} GiB for 3 tables" in str(error.value)


def error_before_building(folder: Path) -> str:
    """Why a Trainer is refused; fails where it builds the model."""
    log = str(Path(__file__).parent / "data/log")
    model = STEMOptions(num_shared_experts=64, expert_hidden=(65536, 65536))
    config = replace(tiny(), data=DataConfig(path=log, batch_size=32), model=model, output_dir=str(folder))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(built_run, "build_sharded_model", lambda *args, **options: pytest.fail("the model is built"))
        with pytest.raises(UserError) as error:
            Trainer(config, this_process())
    return str(error.value)


def test_a_trainer_that_cannot_fit_is_refused_before_its_model_is_built(tmp_path: Path) -> None:
    for error in run_ranks(2, error_before_building, tmp_path / "run"):
        assert error.startswith("this run needs at least ")
        assert "GiB for 2 x the dense part with gradients and moments" in error
    assert not (tmp_path / "run").exists()
