"""Whose deltas a folder has: of a run that begins again, of one made anew in its folder; and which deltas are kept."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from torch import Tensor

from stem_torchrec.config import CheckpointConfig, DeltaConfig, LoopConfig, TrainConfig
from stem_torchrec.config.synthetic import SyntheticConfig
from stem_torchrec.data.synthetic import generate
from stem_torchrec.deltas.chain import Applied, missing_deltas
from stem_torchrec.deltas.manifest import complete_numbers, read_delta
from stem_torchrec.runtime.errors import UserError
from stem_torchrec.starting.record import read_start
from stem_torchrec.training.recipes import tiny
from stem_torchrec.training.trainer import Trainer, train

from distributed import run_ranks
from runs import this_process
from shipments import Shipment, apply, same, shipping_config, weights_of_copy

Weights = dict[str, Tensor]


def run_in(folder: Path) -> TrainConfig:
    """A run whose deltas are beside the run folder."""
    config = tiny()
    return replace(
        config,
        data=replace(config.data, path=str(folder / "log"), batch_size=64),
        train=LoopConfig(log_every=100),
        checkpoint=CheckpointConfig(minutes=None),
        delta=DeltaConfig(steps=100, out=str(folder / "deltas")),
        output_dir=str(folder / "run"),
    )


def killed_after(steps: int, config: TrainConfig) -> str:
    """Makes steps, ships a delta, and ends without a checkpoint; returns the id of the run."""
    trainer = Trainer(config, this_process())
    while trainer.state.step < steps:
        trainer.train_step()
    trainer.checkpoints.deltas.ship(steps)
    trainer.close()
    record = read_start(Path(trainer.folder))
    assert record is not None
    return record.id


def begin_again_and_make_anew(folder: Path) -> tuple[list[str], str]:
    """The ids of a run that is killed and begins again in another place, and the error of a new one in its folder."""
    generate(SyntheticConfig(train_rows=512, valid_rows=64, test_rows=16), str(folder / "log"))
    config = run_in(folder)
    ids = [killed_after(2, config)]
    shutil.move(folder / "run", folder / "moved")
    moved = replace(config, output_dir=str(folder / "moved"))
    ids.append(killed_after(3, moved))
    shutil.rmtree(folder / "moved")
    messages = []
    for dry_run in (True, False):
        with pytest.raises(UserError) as error:
            train(replace(moved, dry_run=dry_run), this_process())
        messages.append(str(error.value))
    assert messages[0] == messages[1]
    assert not (folder / "moved").exists()
    return ids, messages[0]


def test_a_run_has_an_id_by_which_its_deltas_are_told_from_those_of_another_one_in_its_folder(tmp_path: Path) -> None:
    [(ids, message)] = run_ranks(1, begin_again_and_make_anew, tmp_path)
    assert ids == 2 * [ids[0]]
    assert len(ids[0]) == 16
    assert message == (
        f"the deltas in {tmp_path}/deltas are of an earlier run in {tmp_path}/moved, which was deleted and made again; "
        f"give another --delta.out, or delete {tmp_path}/deltas, and make copies and bundles anew."
    )
    manifests = [read_delta(tmp_path / f"deltas/{number:06d}").manifest for number in range(2)]
    assert [(manifest.step, manifest.full, manifest.run_id) for manifest in manifests] == [
        (2, True, ids[0]), (3, True, ids[0])
    ]  # fmt: skip
    assert manifests[0].chain == manifests[1].chain


def begin_again_otherwise(folder: Path) -> list[Weights]:
    """A run that is killed after step 4, without a checkpoint, and begins again with other weights."""
    weights = []
    for seed, stops in ((1, (2, 4)), (2, (2, 3, 5, 6))):
        config = replace(shipping_config(folder, "run", "adagrad", "row_wise"), seed=seed)
        shipment, before = Shipment.build(folder, "run", config), 0
        for stop in stops:
            shipment.make_steps(stop - before)
            shipment.ship()
            before = stop
            weights.append(shipment.run.weights())
        shipment.deltas.close()
    return weights


def test_a_copy_never_goes_back_and_gets_the_state_of_a_run_that_began_again_otherwise(tmp_path: Path) -> None:
    [weights] = run_ranks(1, begin_again_otherwise, tmp_path)
    source, copy = tmp_path / "run-deltas", tmp_path / "copy"
    manifests = [read_delta(source / f"{number:06d}").manifest for number in complete_numbers(source)]
    assert [(manifest.step, manifest.full) for manifest in manifests] == [
        *[(2, True), (4, False)], *[(5, True), (6, False)]
    ]  # fmt: skip
    for until, at_step in ((1, 1), (2, 4), (3, 5)):
        apply(source, copy, until=until)
        assert same(weights_of_copy(copy), weights[at_step])


def keep_two(folder: Path) -> tuple[list[list[int]], Weights]:
    """The deltas that a folder has after each one, in two runs of one life, and the last weights."""
    config = shipping_config(folder, "run", "adagrad", "row_wise", keep=2)
    seen, path = [], ""
    for steps in (4, 2):
        shipment = Shipment.build(folder, "run", config)
        if path:
            shipment.resume(path, 4)
        for _ in range(steps):
            shipment.make_steps(1)
            shipment.ship()
            seen.append(complete_numbers(folder / "run-deltas"))
        path = shipment.save()
        shipment.deltas.close()
    return seen, shipment.run.weights()


def test_old_deltas_are_removed_once_a_later_one_has_all_rows_so_that_every_copy_can_go_on(tmp_path: Path) -> None:
    [(seen, last), _] = run_ranks(2, keep_two, tmp_path)
    source = tmp_path / "run-deltas"
    assert seen == [[0], [0, 1], [0, 1, 2], [2, 3], [2, 3, 4], [4, 5]]
    assert {path.name for path in source.iterdir()} == {"000004", "000005"}
    assert [read_delta(source / f"{number:06d}").manifest.full for number in (4, 5)] == [True, False]
    assert apply(source, tmp_path / "new") == 2
    assert same(weights_of_copy(tmp_path / "new"), last)
    # A copy that is at a removed delta goes on with the one that has all rows.
    at_removed = Applied(read_delta(source / "000005").manifest.chain, 1, sha256="", run="run", step=2)
    deltas = missing_deltas(source, at_removed, until=None, target="copy")
    assert [delta.manifest.number for delta in deltas] == [4, 5]
    with pytest.raises(UserError, match=r"delta 3 is missing in .*, which has 4 to 5"):
        apply(source, tmp_path / "new", until=3)
