"""The numbers of a run on disk: damage is one sentence, and a resumed run goes on with them."""

import json
import math
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from stem_torchrec.runtime.errors import DamagedError
from stem_torchrec.training.meter import Meter
from stem_torchrec.training.metrics_log import read_metrics_log
from stem_torchrec.training.run_folder import METRICS_FILE, StoredMetrics, read_metrics, write_metrics

from distributed import run_ranks

METRICS = dict.fromkeys(("auc", "gauc", "logloss", "ne", "pcoc"), 0.5) | dict.fromkeys(
    ("rows", "positives", "gauc_groups", "gauc_rows"), 3
)


def test_stored_metrics_are_read_back(tmp_path: Path) -> None:
    stored = StoredMetrics(4, {"like": {**METRICS, "auc": None}})
    write_metrics(tmp_path / METRICS_FILE, stored)
    assert read_metrics(tmp_path) == stored


@pytest.mark.parametrize(
    "text",
    [
        *("", "{", '{"step": 2, "val', "[]", "null", "\x00\x00", '{"step": 2, "step": 3, "valid": {}}'),
        *('{"step": true, "valid": {}}', '{"step": "2", "valid": {}}', '{"valid": {}}', '{"step": 2}'),
        '{"step": 2, "valid": {}, "finished": 1}',
        '{"step": 2, "valid": {}, "finish": true}',
        '{"step": 2, "valid": {"like": {"auc": 0.5}}}',
        json.dumps({"step": 2, "valid": {"like": {**METRICS, "auc": "0.5"}}}),
        json.dumps({"step": 2, "valid": {"like": {**METRICS, "auc": True}}}),
        json.dumps({"step": 2, "valid": {"like": {**METRICS, "auc": float("nan")}}}),
        json.dumps({"step": 2, "valid": {"like": {**METRICS, "area": 0.5}}}),
    ],
)
def test_damaged_metrics_are_one_sentence(text: str, tmp_path: Path) -> None:
    (tmp_path / METRICS_FILE).write_text(text)
    with pytest.raises(DamagedError, match=r"metrics.json is damaged \(.*\); delete it, and the same command") as error:
        read_metrics(tmp_path)
    assert "\n" not in str(error.value)


def lines_of(folder: Path, content: bytes) -> list[dict[str, Any]]:
    (folder / "metrics.jsonl").write_bytes(content)
    return read_metrics_log(folder / "metrics.jsonl")


def test_a_last_line_that_a_kill_has_cut_off_is_dropped(tmp_path: Path) -> None:
    whole = [{"step": 5, "train/loss/like": 0.3}, {"step": 6, "valid/like/auc": None}]
    content = "".join(f"{json.dumps(line)}\n" for line in whole).encode()
    last = json.dumps({"step": 7, "train/loss/like": 0.25}).encode()
    for length in range(len(last)):
        assert lines_of(tmp_path, content + last[:length]) == whole
    assert lines_of(tmp_path, content + last) == [*whole, json.loads(last)]
    assert lines_of(tmp_path, content + b"\x00" * 100) == whole
    assert lines_of(tmp_path, b"") == []


@pytest.mark.parametrize(
    "line",
    [
        *(b'{"step": 6; "a": 1}', b"", b"[]", b"6", b'{"a": 1}', b'{"step": true}', b'{"step": 6.5}', b"\xff"),
        *(b'{"step": 6, "a": "1"}', b'{"step": 6, "a": NaN}', b'{"step": 6, "step": 7}', b'{"step": 6, "a": [1]}'),
    ],
)
def test_another_damaged_line_is_named(line: bytes, tmp_path: Path) -> None:
    with pytest.raises(DamagedError, match=r"metrics.jsonl, line 2, is damaged \(.*\); repair or delete") as error:
        lines_of(tmp_path, b'{"step": 5}\n' + line + b'\n{"step": 7}\n')
    assert "\n" not in str(error.value)


def readings_after_a_resume() -> dict[str, Any]:
    """With a pause of 3 seconds after each step."""
    seconds = 1000.0

    def wait() -> None:
        nonlocal seconds
        seconds += 3

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "perf_counter", lambda: seconds)
        before, resumed = Meter(["like"]), Meter(["like"])
        for _ in range(5):
            before.add(torch.tensor([1.0]), labels=torch.tensor([2]), rows=1_000_000)
        seconds += 10
        resumed.restore(before.state())
        for _ in range(2):
            seconds += 0.25
            resumed.add(torch.tensor([4.0]), labels=torch.tensor([5]), rows=100)
            assert resumed.pause(wait) == 3
        return resumed.read()


def test_speed_counts_from_the_resume_without_pauses_and_losses_from_before() -> None:
    (values,) = run_ranks(1, readings_after_a_resume)
    assert values["train/loss/like"] == pytest.approx((5 * 2 * 1.0 + 2 * 5 * 4.0) / 20)
    assert values["train/samples_per_second"] == 2 * 100 / 0.5
    assert values["train/step_ms"] == 250


def readings_without_labels() -> dict[str, Any]:
    meter = Meter(["finish", "like", "share"])
    for losses, labels in (
        ([0.5, 0.0, 0.0], [4, 0, 0]),
        ([1.0, 2.0, 0.0], [4, 1, 0]),
        ([math.nan, 2.0, 0.0], [4, 1, 0]),
    ):
        meter.add(torch.tensor(losses), labels=torch.tensor(labels), rows=4)
    return meter.read()


def test_a_step_without_labels_of_a_task_does_not_count_for_its_loss() -> None:
    (values,) = run_ranks(1, readings_without_labels)
    losses = [values[f"train/loss/{task}"] for task in ("finish", "like", "share")]
    assert losses == [pytest.approx(0.75), pytest.approx(2.0), None]
