"""Rows a second and peak memory of exact metrics, beside sklearn and torchmetrics.

python benchmarks/metrics.py --out runs/metrics
"""

import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from sklearn.metrics import roc_auc_score
from tabulate import tabulate
from torch import Tensor

from stem_torchrec.cli import parse_arguments, run_main
from stem_torchrec.errors import UserError
from stem_torchrec.metrics import MultiTaskMetrics
from stem_torchrec.process import join_process_group

from local_ranks import rank_environments
from sweep_machine import describe_run

BATCH = 2**16
USERS_PER_ROW = 1 / 50

Side = Literal["ours", "sklearn", "torchmetrics"]


@dataclass(frozen=True)
class MetricsConfig:
    """What to measure: one task, rows drawn with a signal, a fiftieth as many users as rows."""

    out: str = ""
    """Folder for metrics.md and metrics.parquet."""
    rows: tuple[int, ...] = (1_000_000, 10_000_000, 30_000_000)
    """Rows of the evaluation set, over all ranks."""
    ranks: tuple[int, ...] = (1, 2)
    """Ranks that ours runs on; the other sides have one."""
    rounds: int = 3
    """How often each case runs, in a process of its own, one after the other."""
    worker: str = ""
    """Of this benchmark's own processes: what to measure."""


def main(config: MetricsConfig) -> None:
    """Measures every case and writes the table."""
    if not config.out:
        raise UserError("say where the results go: --out DIR.")
    if min(*config.rows, *config.ranks, config.rounds, 1) < 1:
        raise UserError("--rows, --ranks and --rounds must be at least 1.")
    cases: list[tuple[Side, int, int]] = [("ours", ranks, rows) for rows in config.rows for ranks in config.ranks]
    cases += [(side, 1, rows) for rows in config.rows for side in ("sklearn", "torchmetrics")]
    cases.sort(key=lambda case: case[2])
    found: dict[tuple[Side, int, int], list[dict[str, Any]]] = {case: [] for case in cases}
    for _ in range(config.rounds):
        for case in cases:
            found[case].append(run_case(*case))
            last = found[case][-1]
            print(f"{case[0]:13} {case[1]} ranks {case[2]:12,} rows {last['seconds']:7.1f} s", flush=True)
    write(Path(config.out), config, found)


def run_case(side: Side, ranks: int, rows: int) -> dict[str, Any]:
    """What one run measures: the seconds of the slowest rank and the memory of the largest."""
    line = [sys.executable, __file__, "--worker", json.dumps([side, rows])]
    processes = [
        subprocess.Popen(line, env=environment, stdout=subprocess.PIPE, text=True)
        for environment in rank_environments(ranks)
    ]
    answers = [process.communicate()[0] for process in processes]
    if any(process.returncode for process in processes):
        raise UserError(f"{side} with {rows:,} rows on {ranks} ranks failed; its error stands above.")
    parsed = [json.loads(answer.splitlines()[-1]) for answer in answers]
    return {name: max(answer[name] for answer in parsed) for name in parsed[0]}


def work(side: Side, rows: int) -> None:
    """Measures in this process, and prints what."""
    with join_process_group() as process:
        mine = rows * (process.rank + 1) // process.world_size - rows * process.rank // process.world_size
        batches = draw(mine, seed=process.rank)
        before = peak_mib()
        start = time.perf_counter()
        drawing = 0.0
        metrics = MultiTaskMetrics(["task"])
        logits: list[Tensor] = []
        labels: list[Tensor] = []
        while True:
            begin = time.perf_counter()
            batch = next(batches, None)
            drawing += time.perf_counter() - begin
            if batch is None:
                break
            if side == "ours":
                metrics.update(*batch)
            else:
                logits.append(batch[0])
                labels.append(batch[1])
        if side == "ours":
            auc = metrics.compute()["task"].auc
        elif side == "sklearn":
            auc = float(roc_auc_score(torch.cat(labels)[:, 0], torch.cat(logits)[:, 0]))
        else:
            from torchmetrics.classification import BinaryAUROC  # Its import warns, and only this side needs it.

            # None asks for the exact curve.
            judge = BinaryAUROC(thresholds=None)
            judge.update(torch.cat(logits)[:, 0], torch.cat(labels)[:, 0].long())
            auc = judge.compute().item()
        seconds = time.perf_counter() - start - drawing
        print(json.dumps({"seconds": seconds, "peak_mib": peak_mib() - before, "auc": auc}))


def draw(rows: int, *, seed: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Batches of logits (B, 1), labels (B, 1) and users (B,)."""
    generator = torch.Generator().manual_seed(seed)
    for start in range(0, rows, BATCH):
        size = min(BATCH, rows - start)
        logits = torch.randn(size, 1, generator=generator)
        labels = (torch.rand(size, 1, generator=generator) < (logits - 2).sigmoid()).float()
        yield logits, labels, torch.randint(max(1, int(rows * USERS_PER_ROW)), (size,), generator=generator)


def peak_mib() -> float:
    """The most memory that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def write(folder: Path, config: MetricsConfig, found: dict[tuple[Side, int, int], list[dict[str, Any]]]) -> None:
    """Writes the medians as Markdown, and every run as Parquet."""
    folder.mkdir(parents=True, exist_ok=True)
    head = describe_run("metrics.py")
    lines, raw = [], []
    for (side, ranks, rows), runs in found.items():
        raw += [{"side": side, "ranks": ranks, "rows": rows, **run} for run in runs]
        seconds, peak = (median(run[name] for run in runs) for name in ("seconds", "peak_mib"))
        lines.append([side, ranks, rows, seconds, rows / seconds / 1e6, peak, runs[0]["auc"]])
    pq.write_table(pa.Table.from_pylist(raw), folder / "metrics.parquet")
    names = ["", "ranks", "rows", "seconds", "million rows/s", "MiB per rank", "AUC"]
    table = tabulate(lines, names, tablefmt="github", intfmt=",", floatfmt=("", "", "", ".1f", ".2f", ",.0f", ".12f"))
    note = (
        "ours: AUC, gAUC, logloss, NE and PCOC; sklearn: roc_auc_score; torchmetrics: BinaryAUROC(thresholds=None). "
        f"Medians of {config.rounds} runs, each in a process of its own; MiB are those beyond what imports take."
    )
    text = ["# Exact metrics", "", *(f"- {name}: {value}" for name, value in head.items()), "", table, "", note, ""]
    (folder / "metrics.md").write_text("\n".join(text))
    print(f"report: {folder / 'metrics.md'}")


def start(args: Sequence[str] | None = None) -> None:
    """Runs the benchmark, or one of its processes."""
    config = parse_arguments(MetricsConfig(), args, description=__doc__ or "")
    if config.worker:
        work(*json.loads(config.worker))
    else:
        main(config)


if __name__ == "__main__":
    run_main(start)
