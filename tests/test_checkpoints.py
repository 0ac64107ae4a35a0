"""Checkpoints in a folder, local or remote: complete or absent, pruned, damaged, or not written to a full store."""

import errno
import os
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import pytest
import torch
import torch.distributed as dist
from iopath.common.file_io import PathHandler, g_pathmgr
from torch import Tensor
from torch.distributed.checkpoint.planner import LoadPlan

from stem_torchrec.checkpoints.compatibility import check_same_run
from stem_torchrec.checkpoints.folder import PROGRESS_FILE, checkpoint_path, complete_steps, read_progress
from stem_torchrec.checkpoints.load_planner import LayoutLoadPlanner
from stem_torchrec.checkpoints.saver import CheckpointSaver, host_memory_for
from stem_torchrec.checkpoints.state import training_state
from stem_torchrec.checkpoints.storage import IoPathFileSystem, UncachedFile
from stem_torchrec.checkpoints.weights import load_state, read_metadata, save_tensors
from stem_torchrec.models.table import all_options
from stem_torchrec.runtime.errors import DamagedError, UserError

from distributed import run_ranks
from reference import TABLES
from runs import Run, batches_of_ranks, config_of, of_this_rank, progress_after

pytestmark = pytest.mark.stack


class Store(PathHandler):
    """Serves `store://...` from a folder, as an object store does: it cannot rename, and may be full."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder
        self.full = False

    def _get_supported_prefixes(self) -> list[str]:
        return ["store://"]

    def _local(self, path: str) -> Path:
        return self.folder / path.removeprefix("store://")

    def _open(self, path: str, mode: str = "r", buffering: int = -1, **_: Any) -> IO[Any]:
        if self.full and "w" in mode and path.endswith(".distcp"):
            raise OSError(errno.ENOSPC, "No space left on device")
        return self._local(path).open(mode)

    def _exists(self, path: str, **_: Any) -> bool:
        return self._local(path).exists()

    def _isfile(self, path: str, **_: Any) -> bool:
        return self._local(path).is_file()

    def _isdir(self, path: str, **_: Any) -> bool:
        return self._local(path).is_dir()

    def _ls(self, path: str, **_: Any) -> list[str]:
        return sorted(each.name for each in self._local(path).iterdir())

    def _mkdirs(self, path: str, **_: Any) -> None:
        self._local(path).mkdir(parents=True, exist_ok=True)

    def _rm(self, path: str, **_: Any) -> None:
        self._local(path).unlink()
        if not list(self._local(path).parent.iterdir()):
            self._local(path).parent.rmdir()

    def _copy(self, src_path: str, dst_path: str, overwrite: bool = False, **_: Any) -> bool:
        self._local(dst_path).write_bytes(self._local(src_path).read_bytes())
        return True


def state_after(step: int) -> dict[str, Tensor]:
    return {f"weights_{dist.get_rank()}": torch.full((1000,), float(step)), "count": torch.tensor(step)}


def read(path: str) -> dict[str, Tensor]:
    state = {f"weights_{dist.get_rank()}": torch.zeros(1000), "count": torch.tensor(0)}
    load_state(state, path)
    return state


class Hungry(LayoutLoadPlanner):
    """Needs more memory than any rank has."""

    def create_local_plan(self) -> LoadPlan:
        torch.empty(2**60)
        return super().create_local_plan()


def test_a_checkpoint_that_no_memory_holds_does_not_count_as_damaged(tmp_path: Path) -> None:
    save_tensors({"weights": torch.ones(3)}, tmp_path / "best", {})
    with pytest.raises(MemoryError, match="alloc_cpu"):
        load_state({"weights": torch.zeros(3)}, tmp_path / "best", Hungry())


def save_and_prune(folder: str, store: Path | None) -> list[Any]:
    if store is not None:
        g_pathmgr.register_handler(Store(store))
    saver = CheckpointSaver(folder, keep=2)
    facts: list[Any] = []
    for step in (10, 20, 30):
        state = state_after(step)
        saver.save(state, progress_after(step))
        state[f"weights_{dist.get_rank()}"].fill_(-1)  # Training continues meanwhile.
    saver.close()
    facts.append(complete_steps(folder))
    for step in complete_steps(folder):
        state = read(checkpoint_path(folder, step))
        facts.append((set(state[f"weights_{dist.get_rank()}"].tolist()), int(state["count"])))
    facts.append(read_progress(checkpoint_path(folder, 30), all_options()).left)
    return facts


@pytest.mark.parametrize("remote", [False, True])
def test_a_checkpoint_holds_the_state_of_its_step_and_old_ones_go(tmp_path: Path, remote: bool) -> None:
    folder = "store://runs/a/checkpoints" if remote else str(tmp_path / "checkpoints")
    for facts in run_ranks(2, save_and_prune, folder, tmp_path if remote else None):
        assert facts == [[30, 20], ({30.0}, 30), ({20.0}, 20), [[[[30, 100]]]]]
    where = tmp_path / "runs/a/checkpoints" if remote else tmp_path / "checkpoints"
    assert {path.name for path in where.iterdir()} == {"step-000000020", "step-000000030"}


def fill_the_store(folder: str, store: Path, max_failures: int) -> tuple[list[Any], str]:
    handler = Store(store)
    g_pathmgr.register_handler(handler)
    saver = CheckpointSaver(folder, keep=2, max_failures=max_failures)
    saver.save(state_after(10), progress_after(10), wait=True)
    # On one rank only; all ranks get the error.
    handler.full = dist.get_rank() == 1
    message = ""
    try:
        for step in (20, 30, 40):
            saver.save(state_after(step), progress_after(step))
        saver.wait()
    except UserError as error:
        message = str(error)
    handler.full = False
    facts = [saver.failures.total, complete_steps(folder)]
    saver.save(state_after(50), progress_after(50), wait=True)
    return [*facts, complete_steps(folder), saver.failures.in_a_row], message


def test_a_full_store_keeps_the_earlier_checkpoint_and_training_continues(tmp_path: Path) -> None:
    for facts, message in run_ranks(2, fill_the_store, "store://a", tmp_path, 3):
        assert facts == [3, [10], [50, 10], 0]
        assert message == ""
    assert {path.name for path in (tmp_path / "a").iterdir()} == {"step-000000010", "step-000000050"}


def test_too_many_failures_end_the_run_in_a_sentence(tmp_path: Path) -> None:
    for facts, message in run_ranks(2, fill_the_store, "store://a", tmp_path, 1):
        assert facts[0] == 2
        assert message.startswith("store://a/step-000000030 cannot be written (rank 1: OSError: [Errno 28] No")
        assert "and so 2 times in a row; make room there or give another --checkpoint.folder" in message
        assert "\n" not in message


def test_a_folder_that_is_being_written_is_not_a_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "step-000000010").mkdir()
    (tmp_path / "step-000000010/__0_0.distcp").write_bytes(b"half")
    (tmp_path / "other").mkdir()
    assert complete_steps(str(tmp_path)) == []
    assert complete_steps(str(tmp_path / "nothing")) == []


def read_damaged(folder: Path, names: Sequence[str]) -> list[str]:
    saver = CheckpointSaver(str(folder))
    saver.save(state_after(10), progress_after(10), wait=True)
    path = checkpoint_path(str(folder), 10)
    messages = []
    for name in names:
        file = Path(path, name)
        whole = file.read_bytes()
        file.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(DamagedError) as error:
            read(path)
        messages.append(str(error.value))
        file.write_bytes(whole)
    assert read(path)["count"] == 10
    read_metadata(path)
    file = Path(path, "__0_0.distcp")
    flipped = bytearray(file.read_bytes())
    # Within the numbers, which torch.load does not check.
    flipped[flipped.index(torch.full((1000,), 10.0).numpy().tobytes()) + 2] ^= 1
    file.write_bytes(flipped)
    with pytest.raises(DamagedError) as error:
        read_metadata(path)
    messages.append(str(error.value))
    read_progress(path, all_options())
    for name, old, new in ((PROGRESS_FILE, b'"step": 10', b'"step": 11'), (".metadata", b"count", b"cound")):
        whole = Path(path, name).read_bytes()
        assert old in whole
        Path(path, name).write_bytes(whole.replace(old, new))
        with pytest.raises(ValueError, match="is not what was written there"):
            read_progress(path, all_options())
        Path(path, name).write_bytes(whole)
    Path(path, PROGRESS_FILE).write_text("[]")
    with pytest.raises(ValueError, match="is not a mapping"):
        read_progress(path, all_options())
    return messages


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    (messages,) = run_ranks(1, read_damaged, tmp_path, ["__0_0.distcp", ".metadata"])
    for each in messages:
        assert each.startswith(f"{tmp_path}/step-000000010 cannot be read: ")
        assert "\n" not in each


def test_another_run_is_refused_with_all_fields_that_differ() -> None:
    config = {
        "model": {"arch": "stem", "layout": "split", "embedding_dim": 8}, "sparse": {"name": "adagrad"},
        "data": {"features": [], "labels": ["a"], "shuffle_rows": 9, "batch_size": 4}, "seed": 0,
    }  # fmt: skip
    schema = {"labels": ["a"], "sparse_features": [], "dense_features": [], "splits": {"train": {"rows": 9}}}
    free = {**config, "model": {**config["model"], "layout": "packed"}, "data": {**config["data"], "batch_size": 8}}
    check_same_run("there", (config, schema), (free, schema))
    other = {**config, "model": {**config["model"], "embedding_dim": 16}, "seed": 1}
    with pytest.raises(UserError) as error:
        check_same_run("there", (config, schema), (other, {**schema, "splits": {"train": {"rows": 8}}}))
    assert str(error.value) == (
        "there is of another run: model.embedding_dim was 8 and is 16; schema.splits.train.rows was 9 and is 8; "
        "seed was 0 and is 1; give another --output-dir, for a new day's log with --start-from and this run "
        "(docs/day_two.md), or the same options."
    )


def bytes_of_room() -> list[tuple[int, int]]:
    """Bytes of host memory of each shard of a table: taken, and needed."""
    run = Run.build(config_of("adagrad", "table_wise"))
    run.train(of_this_rank(batches_of_ranks(1, 2)))
    memory = host_memory_for(training_state(run.model, run.optimizer, torch.zeros(3)))
    shards = [
        shard.tensor for name in memory["model"] if TABLES in name for shard in memory["model"][name].local_shards()
    ]
    return [(tensor.untyped_storage().nbytes(), tensor.nbytes) for tensor in shards]


def test_the_copy_of_a_table_has_memory_for_that_table_alone() -> None:
    """The tables of a rank share one storage, and torch's own copy takes all of it for each table."""
    for sizes in run_ranks(2, bytes_of_room):
        assert len(sizes) > 1
        assert all(taken == needed for taken, needed in sizes)


def test_a_file_that_leaves_the_page_cache_holds_what_was_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(UncachedFile, "_MAX_CACHED", 4096)
    parts = [bytes(range(256)) * 50, b"", b"end"]
    dropped: list[int] = []
    advise = os.posix_fadvise
    monkeypatch.setattr(os, "posix_fadvise", lambda *args: (dropped.append(args[-1]), advise(*args)))
    with IoPathFileSystem().create_stream(tmp_path / "file", "wb") as file:
        assert [file.write(memoryview(part)) for part in parts] == [len(part) for part in parts]
        assert file.tell() == 12803
    assert (tmp_path / "file").read_bytes() == b"".join(parts)
    assert dropped == [os.POSIX_FADV_DONTNEED] * 3
