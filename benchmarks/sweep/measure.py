"""Measures one case on its ranks: builds the model as training does, trains it, then times lookups and tables alone."""

import gc
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from stem_torchrec.config import TrainConfig, check_fields
from stem_torchrec.data.folder import data_folder
from stem_torchrec.runtime.process import Process
from stem_torchrec.sharding.plan import Plan
from stem_torchrec.sharding.plan_file import plan_to_json
from stem_torchrec.tables import sharded_collections
from stem_torchrec.training.assembly import build_pipeline, build_sharded_model
from stem_torchrec.training.optimizers import build_optimizer

from common.timing import timed
from common.traffic import count_traffic
from sweep.batches import Workload, workload_of_log, workload_of_tables
from sweep.ranks import Job
from sweep.results import Measurement
from sweep.times import time_lookups, time_tables

_DRAIN = 2
"""Number of last steps, which are not measured because the pipeline has no next batch to prepare in them."""


def measure(job: Job, process: Process) -> Measurement:
    """Trains and measures; all ranks call it, and each returns the measurement of all ranks."""
    config = job.case.configure(job.config)
    check_fields(config)
    workload = _workload(job, process)
    own, plan = _measure_training(job, config, workload, process)
    # The model refers to itself; its memory goes to the tables that are measured alone.
    gc.collect()
    sparse = [batch.sparse_features.to(process.device) for batch in workload.batches]
    tables = time_tables(plan, config, sparse, process) if job.by_table else []
    ranks: list[Any] = [None] * process.world_size
    dist.all_gather_object(ranks, own)
    by_rank: dict[str, Any] = {name: [rank[name] for rank in ranks] for name in own}
    by_rank["losses"] = [sum(step) / len(ranks) for step in zip(*by_rank["losses"], strict=True)]
    types = [table.sharding_type for table in plan.tables]
    return Measurement(
        **by_rank,
        weights=tuple(plan.per_rank("weights")),
        compute=tuple(plan.per_rank("compute")),
        communication=tuple(plan.per_rank("communication")),
        plan=plan_to_json(plan),
        tables=", ".join(f"{name} {types.count(name)}" for name in sorted(set(types))),
        device=torch.cuda.get_device_name() if process.device.type == "cuda" else "cpu",
        notes=workload.notes,
        by_table=tuple(tables),
    )


def _measure_training(
    job: Job, config: TrainConfig, workload: Workload, process: Process
) -> tuple[dict[str, Any], Plan]:
    """What this rank measures while it trains, and the plan; the model is gone when this returns."""
    cuda = process.device.type == "cuda"
    before = _reset_memory_peak()
    model, plan = build_sharded_model(
        config, workload.columns, process, labels_missing=workload.labels_missing, ids_per_row=workload.ids_per_row
    )
    optimizer = build_optimizer(model, sparse=config.sparse, dense=config.dense, train=config.train)
    pipeline = build_pipeline(model, optimizer, config, process)
    iterator = iter(workload.batches)

    def step() -> Tensor:
        losses, _ = pipeline.progress(iterator)
        return losses.clone()

    losses, _ = timed(step, job.warmup, process.device)
    with count_traffic() as traffic:
        measured, step_ms = timed(step, job.steps, process.device)
    last, _ = timed(step, _DRAIN, process.device)
    peak, device_peak = _memory("VmHWM"), torch.cuda.max_memory_allocated() / 2**20 if cuda else 0.0
    # Restores the input distribution of the collections, which the pipeline split in two.
    pipeline.detach()
    sparse = [batch.sparse_features.to(process.device) for batch in workload.batches[: job.steps]]
    collections = [module for _, module in sharded_collections(model)]
    own = {
        "step_ms": step_ms,
        "lookup_ms": time_lookups(collections, sparse, process.device),
        "losses": torch.stack([*losses, *measured, *last]).sum(dim=1).double().tolist(),
        "ids": traffic.ids / job.steps,
        "embeddings": traffic.embeddings / job.steps,
        "gradients": traffic.gradients / job.steps + all_reduced_bytes(plan),
        "memory_before": before,
        "memory_peak": peak,
        "device_memory_peak": device_peak,
    }
    return own, plan


def all_reduced_bytes(plan: Plan) -> float:
    """Bytes that a ring all-reduce sends from each rank for the gradients of data_parallel tables, computed.

    `count_traffic` does not see them, as DistributedDataParallel sends them.
    """
    whole = sum(table.rows * table.dim * 4 for table in plan.tables if table.sharding_type == "data_parallel")
    return whole * 2 * (plan.world_size - 1) / plan.world_size


def _workload(job: Job, process: Process) -> Workload:
    steps = job.warmup + job.steps + _DRAIN
    config, tasks, seed = job.config.data, job.case.tasks, job.config.seed
    if job.tables:
        return workload_of_tables(job.tables, config, process, tasks=tasks, steps=steps, seed=seed)
    return workload_of_log(config, data_folder(config), process, tasks=tasks, steps=steps, seed=seed)


def _memory(name: str) -> float:
    """MiB of this process by a name of /proc/self/status: VmRSS is resident now, VmHWM the peak so far."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) / 1024
    raise AssertionError(name)


def _reset_memory_peak() -> float:
    """Resets the peak of resident memory; returns the MiB that are resident now."""
    Path("/proc/self/clear_refs").write_text("5")
    return _memory("VmRSS")
