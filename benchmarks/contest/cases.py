"""The contests of each case: which contestants take turns, on a CPU or a GPU."""

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch

from stem_torchrec.config import Arch
from stem_torchrec.runtime.process import trains_on_gpu

from contest.problem import MALLOC, Contestant, Precision, Problem
from contest.turns import Score, Turns, contest

Case = Literal["peak", "rows", "others", "models", "variants", "ranks", "roofline", "memory"]

MODELS: tuple[Arch, ...] = ("stem", "mmoe", "ple")
"""STEM, and the models that its speed is compared with."""


def possible_cases() -> tuple[Case, ...]:
    """The cases that this machine can measure: two ranks need two GPUs, or two cores on CPU."""
    everything: tuple[Case, ...] = ("peak", "rows", "others", "models", "variants", "ranks", "roofline", "memory")
    places = torch.cuda.device_count() if trains_on_gpu() else len(os.sched_getaffinity(0))
    return tuple(case for case in everything if case != "ranks" or places > 1)


def contests(case: Case, rows: Sequence[int]) -> dict[str, list[Contestant]]:
    """The contests of a case, by name; empty for `memory`, which `largest_models` measures.

    Args:
        case: what to measure.
        rows: rows of each feature's tables, from few to many.
    """
    few, many = rows[0], rows[-1]
    on_gpu = trains_on_gpu()
    precisions: tuple[Precision, ...] = ("fp32", "tf32", "bf16") if on_gpu else ("fp32", "bf16")
    if case == "peak":
        sides = [Contestant(side, p, few) for p in precisions for side in ("gemm", "products", "ours")]
        if not on_gpu:
            sides += [Contestant("ours", p, few, keeps_memory=False) for p in precisions]
        return {case: sides}
    if case == "rows":
        return {case: [Contestant("ours", p, n) for p in precisions for n in (few, many)]}
    if case == "others":
        sides = [*(Contestant(side, p) for side in ("ours", "stock") for p in precisions), Contestant("dense")]
        # On a GPU hardly any time goes to memory of the host. All sides at once would not fit into memory.
        return {
            f"{case}, {n:,} rows, {MALLOC[keeps]}": [replace(side, rows=n, keeps_memory=keeps) for side in sides]
            for n in rows
            for keeps in ((True,) if on_gpu else (True, False))
        }
    if case == "models":
        return {case: [Contestant("ours", "fp32", n, arch=arch) for n in (few, many) for arch in MODELS]}
    if case == "variants":
        return {case: _variants(many, on_gpu)}
    if case == "ranks":
        sides = [Contestant("ours", p, few, ranks, one_core_each=not on_gpu) for p in precisions for ranks in (1, 2)]
        return {case: [*sides, *([] if on_gpu else [Contestant("ours", "fp32", few, ranks=2)])]}
    if case == "roofline":
        return {case: [Contestant("copy"), Contestant("tables", rows=few), Contestant("tables", rows=many)]}
    return {}


def _variants(rows: int, on_gpu: bool) -> list[Contestant]:
    """The default, then what can be set instead."""
    if not on_gpu:
        usual = Contestant("ours", "fp32", rows)
        adagrad = replace(usual, sparse="adagrad")
        return [usual, replace(usual, pipeline="base"), adagrad, replace(adagrad, layout="packed")]
    usual = Contestant("ours", "bf16", rows)
    adagrad = replace(usual, sparse="adagrad")
    return [
        usual,
        replace(usual, pipeline="base"),
        replace(usual, sparse="adam"),
        adagrad,
        replace(adagrad, layout="packed"),
        replace(usual, kernel="fused_uvm_caching"),
    ]


def largest_models(problem: Problem, rows: Sequence[int], budget_mib: float) -> list[Score]:
    """Trains ours and plain PyTorch with few rows, with many, and twice with the largest number that should fit.

    Each is alone on the machine. The number that should fit follows from the measured peaks at few rows and at the
    largest number so far; the last score of a side proves it, as its peak is measured.

    Args:
        problem: what to train.
        rows: rows of each feature's tables, from few to many.
        budget_mib: memory for a model, in MiB.
    """
    scores = []
    for side in (Contestant("ours"), Contestant("dense", keeps_memory=False)):
        few, largest = (_alone(replace(side, rows=n), problem) for n in (rows[0], rows[-1]))
        scores += [few, largest]
        for _ in range(2):
            per_row = (largest.peak_mib - few.peak_mib) / (largest.contestant.rows - rows[0])
            largest = _alone(replace(side, rows=int(rows[0] + (budget_mib - few.peak_mib) / per_row)), problem)
            scores.append(largest)
    return scores


def _alone(contestant: Contestant, problem: Problem) -> Score:
    (score,) = contest([contestant], problem, Turns(rounds=1, steps=2, warmup=2))
    return score
