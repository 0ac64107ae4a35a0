"""Deltas follow each other without a gap through kills, other ranks, full stores, and from one run to the next."""

import dataclasses
import errno
import shutil
from pathlib import Path
from threading import Event
from typing import IO, Any

import pytest
import torch
import torch.distributed as dist
from iopath.common.file_io import g_pathmgr
from torch import Tensor

from stem_torchrec.checkpoints.watch import RunWatch
from stem_torchrec.data.schema import SparseFeature
from stem_torchrec.deltas.began import Began
from stem_torchrec.deltas.manifest import complete_numbers, newest_delta, read_delta
from stem_torchrec.runtime.errors import UnwritableError, UserError

from distributed import run_ranks
from reference import COLUMNS, TABLES, random_batch
from runs import Run
from shipments import Shipment, apply, edit_delta, same, shipping_config, weights_of_copy
from test_checkpoints import Store

Weights = dict[str, Tensor]


def ship_and_save(folder: Path, later: bool) -> str:
    """A delta after step 2, a checkpoint after 4, a delta after 6 if `later`, and then a kill."""
    shipment = Shipment.build(folder, "run", shipping_config(folder, "run", "adagrad", "row_wise"))
    shipment.make_steps(2)
    shipment.ship()
    shipment.make_steps(2)
    path = shipment.save()
    shipment.make_steps(2)
    if later:
        shipment.ship()
    shipment.deltas.close()
    return path


def resume_and_ship(folder: Path, path: str, layout: str) -> Weights:
    shipment = Shipment.build(folder, "run", shipping_config(folder, "run", "adagrad", "table_wise", layout=layout))
    shipment.resume(path, 4)
    # Other rows have labels than in the steps before the kill, as on other ranks other rows may come.
    shipment.make_steps(2, missing=0.9)
    shipment.ship()
    shipment.make_steps(1)
    shipment.ship()
    shipment.deltas.close()
    return shipment.run.weights()


@pytest.mark.parametrize(
    ("later", "ranks", "layout"),
    [(True, 1, "packed"), (False, 2, "split"), pytest.param(True, 2, "split", marks=pytest.mark.long)],
)
def test_what_changed_since_the_last_delta_survives_a_kill_on_any_ranks(
    tmp_path: Path, later: bool, ranks: int, layout: str
) -> None:
    path = run_ranks(2, ship_and_save, tmp_path, later)[0]
    weights = run_ranks(ranks, resume_and_ship, tmp_path, path, layout)[0]
    source = tmp_path / "run-deltas"
    manifests = [read_delta(source / f"{number:06d}").manifest for number in complete_numbers(source)]
    # Where step 6 was shipped before the kill, it is shipped again: other ranks make other weights.
    assert [(manifest.step, manifest.full) for manifest in manifests] == [
        (2, True), *[(6, False)] * (2 if later else 1), (7, False)
    ]  # fmt: skip
    assert apply(source, tmp_path / "copy") == len(manifests)
    assert same(weights_of_copy(tmp_path / "copy"), weights)


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was killed after a delta at step 6, with a checkpoint of step 4."""
    folder = tmp_path_factory.mktemp("killed")
    run_ranks(1, ship_and_save, folder, True)
    return folder


def end_before_the_newest(folder: Path, path: str) -> tuple[Weights, list[int]]:
    """Resumes after step 4, with deltas up to step 6, and ends at step 5."""
    shipment = Shipment.build(folder, "run", shipping_config(folder, "run", "adagrad", "row_wise"))
    shipment.resume(path, 4)
    shipment.make_steps(1, missing=0.9)
    shipment.ship()
    numbers = [len(complete_numbers(folder / "run-deltas"))]
    for _ in range(2):
        shipment.deltas.ship_last(5)
        numbers.append(len(complete_numbers(folder / "run-deltas")))
    shipment.deltas.close()
    return shipment.run.weights(), numbers


def test_the_last_state_of_a_run_is_shipped_once_also_where_a_delta_has_a_later_step(
    killed: Path, tmp_path: Path
) -> None:
    shutil.copytree(killed, tmp_path, dirs_exist_ok=True)
    path = str(tmp_path / "run/checkpoints/step-000000004")
    [(weights, numbers)] = run_ranks(1, end_before_the_newest, tmp_path, path)
    assert numbers == [2, 3, 3]
    assert apply(tmp_path / "run-deltas", tmp_path / "copy") == 3
    assert same(weights_of_copy(tmp_path / "copy"), weights)


@pytest.mark.parametrize("damage", ["file", "folder"])
def test_a_delta_that_is_damaged_or_missing_makes_the_next_one_have_all_rows(
    killed: Path, tmp_path: Path, damage: str
) -> None:
    shutil.copytree(killed, tmp_path, dirs_exist_ok=True)
    path = str(tmp_path / "run/checkpoints/step-000000004")
    source, lost = tmp_path / "run-deltas", tmp_path / "run-deltas/000001"
    if damage == "file":
        file = next(lost.glob("rows-*"))
        file.write_bytes(file.read_bytes()[:-1])
    else:
        shutil.copytree(lost, source / "000002")
        shutil.rmtree(lost)
        edit_delta(source / "000002", number=2)
    run_ranks(1, end_before_the_newest, tmp_path, path)
    newest = newest_delta(source)
    assert newest is not None
    assert newest.manifest.full


def resume_without(folder: Path, path: str) -> Weights:
    """Resumes with another folder of deltas than the checkpoint knows."""
    config = shipping_config(folder, "elsewhere", "adagrad", "row_wise")
    shipment = Shipment.build(folder, "run", config)
    shipment.make_steps(1)
    shipment.ship()
    shipment.resume(path, 4)
    shipment.make_steps(3)
    shipment.ship()
    shipment.deltas.close()
    return shipment.run.weights()


def test_a_delta_has_all_rows_where_it_is_not_known_what_has_changed(tmp_path: Path) -> None:
    path = run_ranks(2, ship_and_save, tmp_path, False)[0]
    weights = run_ranks(2, resume_without, tmp_path, path)[0]
    source = tmp_path / "elsewhere-deltas"
    assert [read_delta(source / f"{number:06d}").manifest.full for number in (0, 1)] == [True, True]
    assert apply(source, tmp_path / "copy") == 1
    assert same(weights_of_copy(tmp_path / "copy"), weights)


class FullStore(Store):
    """A store that refuses rows while it is full, until so many have been refused."""

    until = 1000

    def _open(self, path: str, mode: str = "r", buffering: int = -1, **_: Any) -> IO[Any]:
        if self.full and "w" in mode and "rows" in path:
            self.until -= 1
            self.full = self.until > 0
            raise OSError(errno.ENOSPC, "No space left on device")
        self._local(path).parent.mkdir(parents=True, exist_ok=True)
        return self._local(path).open(mode)


def ask_on_one_rank() -> list[tuple[bool, bool, bool]]:
    """Of each step: whether it pauses the run, whether that is for a delta, and whether for a checkpoint or the end."""
    watch = RunWatch(
        lambda state, wait: None, seconds=None, ending=Event(), keep_batch=None, lost=lambda: False, timeout=60,
        delta_is_due=lambda: dist.get_rank() == 1,
    )  # fmt: skip
    asked = []
    for step in range(3):
        pauses = watch.should_pause(step, random_batch(0), torch.zeros(2))
        asked.append((pauses, watch.delta_is_requested, watch.pause_is_requested))
    watch.check_finite()
    watch.close()
    return [*asked, (False, False, watch.pause_is_requested)]


def test_a_delta_that_is_due_by_the_clock_of_one_rank_pauses_all_of_them_at_the_same_step() -> None:
    for asked in run_ranks(2, ask_on_one_rank):
        assert asked == [(False, False, False), (True, True, False), (True, True, False), (False, False, False)]


def fill_the_store(folder: Path) -> tuple[Weights, list[int], list[str]]:
    handler = FullStore(folder)
    g_pathmgr.register_handler(handler)
    config = shipping_config(folder, "run", "adagrad", "row_wise")
    config = dataclasses.replace(
        config,
        delta=dataclasses.replace(config.delta, out="store://run-deltas"),
        checkpoint=dataclasses.replace(config.checkpoint, max_failures=2),
    )
    shipment = Shipment.build(folder, "run", config)
    shipment.make_steps(1)
    shipment.ship()
    # On one rank only; all ranks get the error.
    handler.full = dist.get_rank() == 1
    shipment.make_steps(2)
    shipment.ship()
    facts = [shipment.deltas.failed, len(complete_numbers(folder / "run-deltas"))]
    # The store has room again at the second try.
    handler.until = 1
    shipment.make_steps(1)
    shipment.deltas.ship_last(4)
    facts += [shipment.deltas.failed, len(complete_numbers(folder / "run-deltas"))]
    weights, messages = shipment.run.weights(), []
    handler.full, handler.until = True, 1000
    shipment.make_steps(1)
    for ship in (lambda: shipment.deltas.ship_last(5), shipment.ship):
        with pytest.raises(UnwritableError) as error:
            ship()
        messages.append(str(error.value))
    return weights, facts, messages


def test_a_full_store_keeps_the_earlier_deltas_and_the_next_one_has_what_failed(tmp_path: Path) -> None:
    [(weights, facts, messages), _] = run_ranks(2, fill_the_store, tmp_path)
    assert facts == [1, 1, 2, 2]
    last, later = messages
    assert last.startswith("the last delta could not be written to store://run-deltas; make room, and the same command")
    assert later.startswith("store://run-deltas/000002 cannot be written (OSError: [Errno 28] No space left")
    assert "3 times in a row" in later
    assert "give another --delta.out" in later
    assert apply(tmp_path / "run-deltas", tmp_path / "copy") == 2
    assert same(weights_of_copy(tmp_path / "copy"), weights)


def write_where_another_does(folder: Path) -> int:
    config = shipping_config(folder, "run", "sgd", "row_wise")
    shipment = Shipment.build(folder, "run", config)
    for _ in range(2):
        shipment.make_steps(1)
        shipment.ship()
        if not (folder / "run-deltas/000001").exists():
            shutil.copytree(folder / "run-deltas/000000", folder / "run-deltas/000001")
    failed = shipment.deltas.failed
    shipment.deltas.close()
    return failed


def test_a_delta_of_another_process_is_not_replaced(tmp_path: Path) -> None:
    assert run_ranks(1, write_where_another_does, tmp_path) == [1]
    manifests = [(tmp_path / f"run-deltas/00000{number}/manifest.json").read_bytes() for number in range(2)]
    assert manifests[0] == manifests[1]


def continue_and_grow(folder: Path) -> tuple[Weights, list[str]]:
    """Another run of the same tables, one of which has grown, goes on with the deltas of the first."""
    config = shipping_config(folder, "monday", "sgd", "row_wise")
    monday = Shipment.build(folder, "monday", config)
    monday.make_steps(2)
    monday.ship()
    monday.deltas.close()
    grown = dataclasses.replace(COLUMNS, sparse=COLUMNS.sparse | {"tags": SparseFeature("tags", 9)})
    config = dataclasses.replace(config, seed=2)
    began = Began(str(folder / "monday"), "monday", 2, {"uid": 5000, "tags": 7})
    tuesday = Shipment.build(folder, "tuesday", config, grown, began=began)
    carry(monday.run, tuesday.run)
    tuesday.make_steps(1)
    tuesday.ship()
    tuesday.deltas.close()
    messages = []
    for other in (Began(str(folder / "sunday"), "sunday", 2), None):
        with pytest.raises(UserError) as error:
            Shipment.build(folder, "wednesday", config, grown, began=other)
        messages.append(str(error.value))
    # Its run folder was moved, which changes nothing.
    began = Began(str(folder / "moved"), "tuesday", 7)
    later = Shipment.build(folder, "wednesday", config, grown, began=began)
    later.ship()
    later.deltas.close()
    return tuesday.run.weights(), messages


def carry(source: Run, target: Run) -> None:
    """The weights of a run on one rank, in the first rows of another's tables."""
    state = source.model.state_dict()
    with torch.no_grad():
        for name, weight in target.model.state_dict().items():
            old = state[name]
            if TABLES in name:
                weight, old = weight.local_shards()[0].tensor, old.local_shards()[0].tensor
            weight[: len(old)].copy_(old)


def test_a_run_that_began_with_the_last_state_goes_on_with_the_deltas_and_ships_its_new_rows(tmp_path: Path) -> None:
    [(weights, messages)] = run_ranks(1, continue_and_grow, tmp_path)
    source = tmp_path / "monday-deltas"
    first, second, third = (read_delta(source / f"{number:06d}").manifest for number in range(3))
    assert (second.full, second.number, second.run, second.step) == (False, 1, str(tmp_path / "tuesday"), 1)
    assert second.chain == first.chain
    assert second.changed_rows < 100
    apply(source, tmp_path / "copy", until=0)
    assert apply(source, tmp_path / "copy", until=1) == 1
    assert same(weights_of_copy(tmp_path / "copy"), weights)
    assert third.full, "of another step than the last delta has"
    for message, began in zip(messages, (str(tmp_path / "sunday"), "fresh weights"), strict=True):
        assert f"are of the run {tmp_path}/tuesday, and this one began with {began}; start from that run" in message
