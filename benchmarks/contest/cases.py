"""The contests of each case: which contestants take turns, on a CPU or a GPU."""

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, get_args

import torch

from stem_torchrec.runtime.process import trains_on_gpu

from contest.models import beside_stem
from contest.problem import MALLOC, Contestant, DensePart, Precision, Problem
from contest.turns import Failure, Score, Turns, contest

Case = Literal[
    "peak",
    "rows",
    "others",
    "models",
    "variants",
    "balance",
    "architectures",
    "experts",
    "losses",
    "compiled",
    "ranks",
    "roofline",
    "memory",
]

MODELS = ("stem", "mmoe", "ple")
"""STEM, and the models that its speed is compared with at few rows and at many."""


def possible_cases(tasks: int) -> tuple[Case, ...]:
    """The cases that this machine can measure: two ranks need two GPUs, or two cores on CPU; compiled needs a GPU.

    In the architectures some models have tasks that are steps, of which there are two at least.
    """
    on_gpu = trains_on_gpu()
    places = torch.cuda.device_count() if on_gpu else len(os.sched_getaffinity(0))
    possible = {"ranks": places > 1, "compiled": on_gpu, "architectures": tasks > 1}
    return tuple(case for case in get_args(Case) if possible.get(case, True))


def contests(case: Case, rows: Sequence[int], batch_sizes: Sequence[int]) -> dict[str, list[Contestant]]:
    """The contests of a case, by name; empty for `memory`, which `largest_models` measures.

    Args:
        case: what to measure.
        rows: rows of each feature's tables, from few to many.
        batch_sizes: rows of a batch; a contest has each contestant with each of them.
    """
    return {
        name: [replace(contestant, batch_size=size) for contestant in contestants for size in batch_sizes]
        for name, contestants in _contests(case, rows).items()
    }


def _contests(case: Case, rows: Sequence[int]) -> dict[str, list[Contestant]]:
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
        return _others(rows, on_gpu)
    if case == "models":
        return {case: [Contestant("ours", "fp32", n, model=model) for n in (few, many) for model in MODELS]}
    if case == "variants":
        return {case: _variants(many, on_gpu)}
    if beside := {name: models for name, models in beside_stem().items() if name.partition(",")[0] == case}:
        stem = Contestant("ours", "bf16" if on_gpu else "fp32", few)
        return {name: [stem, *(replace(stem, model=model) for model in models)] for name, models in beside.items()}
    if case == "compiled":
        parts: tuple[DensePart, ...] = ("eager", "compiled", "CUDA graphs")
        return {case: [Contestant("ours", "bf16", few, dense_part=part) for part in parts]}
    if case == "ranks":
        sides = [Contestant("ours", p, few, ranks, one_core_each=not on_gpu) for p in precisions for ranks in (1, 2)]
        return {case: [*sides, *([] if on_gpu else [Contestant("ours", "fp32", few, ranks=2)])]}
    if case == "roofline":
        return {case: [Contestant("copy"), Contestant("tables", rows=few), Contestant("tables", rows=many)]}
    return {}


def _others(rows: Sequence[int], on_gpu: bool) -> dict[str, list[Contestant]]:
    """A contest for each number of rows; all at once would not fit into memory."""
    if on_gpu:
        # In pairs, as those that come last may not fit onto the GPU.
        pairs = {p: [Contestant(side, p) for side in ("ours", "stock")] for p in ("bf16", "fp32", "tf32")}
        sides = [*pairs["bf16"], *pairs["fp32"], Contestant("dense"), *pairs["tf32"]]
    else:
        sides = [*(Contestant(side, p) for side in ("ours", "stock") for p in ("fp32", "bf16")), Contestant("dense")]
    # On a GPU hardly any time goes to memory of the host.
    return {
        f"others, {n:,} rows, {MALLOC[keeps]}": [replace(side, rows=n, keeps_memory=keeps) for side in sides]
        for n in rows
        for keeps in ((True,) if on_gpu else (True, False))
    }


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


def largest_models(problem: Problem, rows: Sequence[int], budget_mib: float) -> tuple[list[Score], list[Failure]]:
    """Trains ours and plain PyTorch with few rows, with many, and twice with the largest number that should fit.

    Each is alone on the machine. The number that should fit follows from the measured peaks at few rows and at the
    largest number so far; the last score of a side proves it, as its peak is measured. A side that fails is left at
    its scores so far.

    Args:
        problem: what to train.
        rows: rows of each feature's tables, from few to many.
        budget_mib: memory for a model, in MiB.
    """
    scores: list[Score] = []
    failures: list[Failure] = []
    for side in (Contestant("ours"), Contestant("dense", keeps_memory=False)):
        side = replace(side, batch_size=problem.batch_size)
        own: list[Score] = []
        for _ in range(4):  # Few rows, many, and twice the largest number.
            alone, failed = contest([replace(side, rows=_next_rows(own, rows, budget_mib))], problem, _ALONE)
            own += alone
            failures += failed
            if failed:
                break
        scores += own
    return scores, failures


_ALONE = Turns(rounds=1, steps=2, warmup=2)


def _next_rows(scores: Sequence[Score], rows: Sequence[int], budget_mib: float) -> int:
    """The number of rows to train after these scores: the first, the last, then what should take the budget."""
    if len(scores) < 2:
        return (rows[0], rows[-1])[len(scores)]
    few, largest = scores[0], scores[-1]
    per_row = (largest.peak_mib - few.peak_mib) / (largest.contestant.rows - rows[0])
    return int(rows[0] + (budget_mib - few.peak_mib) / per_row)
