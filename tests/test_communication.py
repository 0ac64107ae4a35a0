"""Embeddings and their gradients travel in 16 bits where that is asked for."""

import functools
import itertools
import statistics
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from stem_torchrec.config import ShardingConfig

from common.traffic import Traffic, count_traffic
from distributed import run_ranks
from runs import Run, batches_of_ranks, config_of, mine

PRECISIONS = ["fp32", "fp16", "bf16"]
TYPES = ["table_wise", "row_wise"]
# A factor is rounded to 11 or 8 bits, off by up to this share of it.
ROUNDING = {"fp16": 2**-11, "bf16": 2**-8}


@dataclass
class Trained:
    logits: Tensor
    moved: dict[str, Tensor]
    traffic: Traffic


def train_all() -> dict[tuple[str, str, str], Trained]:
    cases = {}
    for precision, kind, input_dist in itertools.product(PRECISIONS, TYPES, ("stock", "once")):
        sharding = ShardingConfig(type=kind, communication=precision, input_dist=input_dist)
        # Gradients of SGD show in the tables as they came over the wire.
        run = Run.build(replace(config_of("sgd", kind), sharding=sharding))
        before = run.weights()
        with count_traffic() as traffic:
            [(_, logits)] = run.train(mine(batches_of_ranks(1, 2)))
        after = run.weights()
        moved = {name: after[name] - weight for name, weight in before.items() if "embedding_bags" in name}
        cases[precision, kind, input_dist] = Trained(logits, moved, traffic)
    return cases


@functools.cache
def results() -> list[dict[tuple[str, str, str], Trained]]:
    return run_ranks(2, train_all)


@pytest.mark.parametrize("input_dist", ["stock", "once"])
@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("precision", ROUNDING)
def test_16_bits_halve_the_bytes_and_keep_the_values(precision: str, kind: str, input_dist: str):
    for rank in results():
        short, full = rank[precision, kind, input_dist], rank["fp32", kind, input_dist]
        assert short.traffic.embeddings * 2 == full.traffic.embeddings > 0
        assert short.traffic.gradients * 2 == full.traffic.gradients > 0
        assert short.traffic.ids == full.traffic.ids > 0
        assert not torch.equal(short.logits, full.logits), "nothing was rounded"
        # Embeddings pass two experts, a gate and a tower, whose weights add their errors up.
        assert (short.logits - full.logits).abs().max() < 10 * ROUNDING[precision] * full.logits.abs().max()
        # By tables, as a unit that rounding switches on or off shows in some. Gradients of 1e-3 and less would lose
        # bits in fp16 without its loss scale.
        errors = [((short.moved[table] - moved).norm() / moved.norm()).item() for table, moved in full.moved.items()]
        assert statistics.median(errors) < 2 * ROUNDING[precision]


def test_bf16_is_bf16_on_cpu_and_not_the_fp16_that_torchrec_takes_for_it():
    rank = results()[0]
    half, brain = (rank[precision, "table_wise", "stock"].logits for precision in ROUNDING)
    full = rank["fp32", "table_wise", "stock"].logits
    assert (brain - full).abs().max() > 3 * (half - full).abs().max()
