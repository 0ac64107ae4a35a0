"""Weights load whatever the dropout was: names do not depend on it, and names from when they did are understood."""

import dataclasses
import re
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor

from stem_torchrec.checkpoints.dropout_names import names_with_dropout
from stem_torchrec.checkpoints.storage import without_warnings
from stem_torchrec.checkpoints.weights import load_state, load_weights, save_weights
from stem_torchrec.models.build import build_model
from stem_torchrec.models.table import MODELS, with_arch

from distributed import run_ranks
from reference import COLUMNS, TABLES, random_batch
from runs import MODEL, Run, batches_of_ranks, config_of, of_this_rank

DROPOUT = dataclasses.replace(MODEL, dropout=0.1, gate_hidden=(8, 4))
PLAIN = dataclasses.replace(DROPOUT, dropout=0.0)


@pytest.mark.parametrize("arch", MODELS)
def test_parameter_names_and_initial_weights_do_not_depend_on_dropout(arch: str) -> None:
    states = []
    for model in (PLAIN, DROPOUT):
        torch.manual_seed(0)
        states.append(build_model(with_arch(model, arch), COLUMNS, table_device="cpu").state_dict())
    assert list(states[0]) == list(states[1])
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_a_model_without_dropout_draws_no_random_number_and_one_with_it_drops_units() -> None:
    batch = random_batch(1)
    for model, draws in ((PLAIN, False), (DROPOUT, True)):
        torch.manual_seed(0)
        built, state = build_model(model, COLUMNS, table_device="cpu"), torch.get_rng_state()
        built(batch)
        assert torch.equal(torch.get_rng_state(), state) != draws


def name_from_before(name: str) -> str:
    """The name that a weight or optimizer state of a module with dropout had: positions 0, 3, 6 for 0, 2, 4."""
    return re.sub(
        r"((?:experts|towers)\.\w+\.|\.mlp\.)(\d+)(\.(?:weight|bias))",
        lambda match: f"{match[1]}{int(match[2]) // 2 * 3}{match[3]}",
        name,
    )


def load_both_ways(folder: Path) -> None:
    """Loads weights across values of dropout, and a checkpoint with the names from before."""
    plain, dropout = (Run.build(config_of("adagrad", "row_wise", model=model)) for model in (PLAIN, DROPOUT))
    dropout.train(of_this_rank(batches_of_ranks(2, 2)))
    for source, target in ((dropout, plain), (plain, dropout)):
        save_weights(source.model, folder / "weights")
        load_weights(target.model, folder / "weights")
        before, after = source.weights(), target.weights()
        assert all(torch.equal(after[name], before[name]) for name in before)
        source.train(of_this_rank(batches_of_ranks(1, 2)))

    dropout.train(of_this_rank(batches_of_ranks(2, 2)))
    with without_warnings():
        weights, states = dropout.model.state_dict(), dropout.optimizer.state_dict()["state"]
        assert any(name_from_before(name) != name for name in weights)
        saved = {
            "model": {name_from_before(name): weight for name, weight in weights.items()},
            "optimizer": {name_from_before(name): state for name, state in states.items()},
        }
        dcp.save(saved, checkpoint_id=folder / "checkpoint")
    dcp.save({"model": saved["model"]}, checkpoint_id=folder / "best")
    new = Run.build(config_of("adagrad", "row_wise", model=DROPOUT))
    load_weights(new.model, folder / "best")
    assert all(torch.equal(weight, dropout.weights()[name]) for name, weight in new.weights().items())

    new = Run.build(config_of("adagrad", "row_wise", model=DROPOUT))
    with without_warnings():
        new.optimizer.init_state(set())
        state = {"model": new.model.state_dict(), "optimizer": new.optimizer.state_dict()["state"]}
        load_state(state, folder / "checkpoint")
    assert all(torch.equal(weight, dropout.weights()[name]) for name, weight in new.weights().items())
    dense = [name for name in states if TABLES not in name]
    assert dense
    for name in dense:
        for key, value in states[name].items():
            loaded = state["optimizer"][name][key]
            assert torch.equal(loaded, value) if isinstance(value, Tensor) else loaded == value


@pytest.mark.long
def test_weights_load_across_values_of_dropout_and_with_the_names_from_before(tmp_path: Path) -> None:
    run_ranks(2, load_both_ways, tmp_path)


def test_only_modules_that_had_dropout_are_renamed() -> None:
    saved = ["a.0.weight", "a.3.weight", "a.3.bias", "b.0.weight", "b.2.weight", "c.0.weight", "d.3.weight"]
    wanted = ["a.0.weight", "a.2.weight", "a.2.bias", "b.0.weight", "b.2.weight", "c.0.weight", "d.3.weight"]
    renamed = {"a.0.weight": "a.0.weight", "a.2.weight": "a.3.weight", "a.2.bias": "a.3.bias"}
    assert names_with_dropout(saved, wanted) == renamed
    # A module of the user's own with these positions keeps its names.
    assert names_with_dropout(["a.0.weight", "a.3.weight"], ["a.0.weight", "a.3.weight"]) == {}
