"""Embeddings and their gradients travel in 16 bits with --sharding.communication fp16 or bf16."""

import functools
import itertools
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from stem_torchrec.config import ShardingConfig

from common.traffic import Traffic, count_traffic
from distributed import run_ranks
from runs import Run, batches_of_ranks, config_of, of_this_rank

Case = tuple[str, str]
"""Sharding type and input distribution."""
CASES: list[Case] = [("table_wise", "stock"), ("row_wise", "once")]
LONG_CASES: list[Case] = [("table_wise", "once"), ("row_wise", "stock")]
# A factor is rounded to 11 or 8 bits, off by up to this share of it.
ROUNDING = {"fp16": 2**-11, "bf16": 2**-8}


@dataclass
class Trained:
    """A step of two ranks on one of them."""

    logits: Tensor
    moved: dict[str, Tensor]
    """How far SGD moved each table."""
    traffic: Traffic


def train_all(cases: Sequence[Case]) -> dict[tuple[Case, str], Trained]:
    """A step for each case and precision."""
    trained = {}
    for (kind, input_dist), precision in itertools.product(cases, ("fp32", *ROUNDING)):
        sharding = ShardingConfig(type=kind, communication=precision, input_dist=input_dist)
        # Gradients of SGD show in the tables as they came over the wire.
        run = Run.build(replace(config_of("sgd", kind), sharding=sharding))
        before = run.weights()
        with count_traffic() as traffic:
            [(_, logits)] = run.train(of_this_rank(batches_of_ranks(1, 2)))
        after = run.weights()
        moved = {name: after[name] - weight for name, weight in before.items() if "embedding_bags" in name}
        trained[(kind, input_dist), precision] = Trained(logits, moved, traffic)
    return trained


@functools.cache
def results(*cases: Case) -> list[dict[tuple[Case, str], Trained]]:
    """What `train_all` returns, by rank."""
    return run_ranks(2, train_all, cases)


def check_16_bits(rank: dict[tuple[Case, str], Trained], case: Case, precision: str) -> None:
    short, full = rank[case, precision], rank[case, "fp32"]
    assert short.traffic.embeddings * 2 == full.traffic.embeddings > 0
    assert short.traffic.gradients * 2 == full.traffic.gradients > 0
    assert short.traffic.ids == full.traffic.ids > 0
    assert not torch.equal(short.logits, full.logits), "nothing was rounded"
    # Embeddings pass two experts, a gate and a tower, whose weights add their errors up.
    assert (short.logits - full.logits).abs().max() < 10 * ROUNDING[precision] * full.logits.abs().max()
    # By tables, as a unit that rounding switches on or off shows in some. Gradients of 1e-3 and less would lose bits
    # in fp16 without its loss scale.
    errors = [((short.moved[table] - moved).norm() / moved.norm()).item() for table, moved in full.moved.items()]
    assert statistics.median(errors) < 2 * ROUNDING[precision]


@pytest.mark.parametrize("case", CASES, ids="-".join)
@pytest.mark.parametrize("precision", ROUNDING)
def test_16_bits_halve_the_bytes_and_keep_the_values(precision: str, case: Case) -> None:
    for rank in results(*CASES):
        check_16_bits(rank, case, precision)


@pytest.mark.long
@pytest.mark.parametrize("case", LONG_CASES, ids="-".join)
@pytest.mark.parametrize("precision", ROUNDING)
def test_16_bits_do_so_for_the_other_input_distributions(precision: str, case: Case) -> None:
    for rank in results(*LONG_CASES):
        check_16_bits(rank, case, precision)


def test_bf16_is_bf16_on_cpu_and_not_the_fp16_that_torchrec_takes_for_it() -> None:
    rank = results(*CASES)[0]
    full, half, brain = (rank[CASES[0], precision].logits for precision in ("fp32", *ROUNDING))
    assert (brain - full).abs().max() > 3 * (half - full).abs().max()
