"""Tables that begin anew with each epoch, while the rest of the model goes on."""

from contextlib import redirect_stdout
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
import torch
from torch import Tensor

from stem_torchrec.checkpoints.folder import checkpoint_path
from stem_torchrec.config import (
    CheckpointConfig,
    DeltaConfig,
    LoopConfig,
    ShardingConfig,
    SparseOptimizerConfig,
    SyntheticConfig,
    TrainConfig,
)
from stem_torchrec.config.files import dump_config
from stem_torchrec.config.sharding import PlacedType
from stem_torchrec.data.synthetic import generate
from stem_torchrec.deltas.manifest import complete_numbers, read_delta
from stem_torchrec.runtime.errors import UserError
from stem_torchrec.tables import local_pieces, table_of
from stem_torchrec.training.configuration import config_from_command_line
from stem_torchrec.training.fresh_tables import check_fresh_tables
from stem_torchrec.training.recipes import tiny
from stem_torchrec.training.run_start import with_data_folder
from stem_torchrec.training.trainer import Trainer, train

from distributed import run_ranks
from recovery.train_runs import differences
from runs import this_process

EPOCH = 4
"""Steps of an epoch on two ranks."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fresh")
    generate(SyntheticConfig(train_rows=512, valid_rows=64, test_rows=16), str(folder / "log"))
    return folder


def config_in(run: Path, kind: PlacedType = "row_wise") -> TrainConfig:
    """Two epochs of a small run."""
    config = tiny()
    return replace(
        config,
        data=replace(config.data, path=str(run.parent / "log"), batch_size=64),
        sharding=ShardingConfig(type=kind),
        train=LoopConfig(epochs=2, fresh_tables=True, log_every=100),
        checkpoint=CheckpointConfig(minutes=None, steps=2 * EPOCH),
        output_dir=str(run),
    )


def tables_and_rest(trainer: Trainer) -> tuple[list[Tensor], list[Tensor]]:
    """The pieces of tables on this rank, and the other weights."""
    parts: tuple[list[Tensor], list[Tensor]] = ([], [])
    for name, value in trainer.model.state_dict().items():
        parts[table_of(name) is None].extend(piece.clone() for _, piece in local_pieces(value))
    return parts


def states_of_tables(trainer: Trainer) -> list[Tensor]:
    states = trainer.optimizer.state_dict()["state"]
    values = [value for name, of_name in states.items() if table_of(name) for value in of_name.values()]
    return [piece.clone() for value in values for _, piece in local_pieces(value)]


def equal(first: list[Tensor], second: list[Tensor]) -> bool:
    return len(first) == len(second) > 0 and all(map(torch.equal, first, second))


def changed_rows(first: list[Tensor], second: list[Tensor]) -> int:
    return sum(int((a != b).any(dim=1).sum()) for a, b in zip(first, second, strict=True))


def around_the_second_epoch(folder: Path, kind: PlacedType) -> tuple[int, int]:
    """Rows of this rank that an epoch changes, and those that are changed after one more step."""
    trainer = Trainer(config_in(folder / kind, kind), this_process())
    initial, _ = tables_and_rest(trainer)
    while trainer.state.step < EPOCH:
        trainer.train_step()
    learned, rest = tables_and_rest(trainer)
    assert any(state.any() for state in states_of_tables(trainer))
    clock = trainer._meter.start
    for callback in trainer.loop.callbacks:
        callback.before_epoch(trainer.loop)
    again, other = tables_and_rest(trainer)
    assert equal(again, initial)
    assert equal(other, rest)
    # The time that it takes is none of a step.
    assert trainer._meter.start > clock
    states = states_of_tables(trainer)
    assert states
    assert not any(state.any() for state in states)
    trainer.train_step()
    after, _ = tables_and_rest(trainer)
    trainer.close()
    return changed_rows(learned, initial), changed_rows(after, initial)


def around_all(folder: Path, kinds: list[PlacedType]) -> list[tuple[int, int]]:
    return [around_the_second_epoch(folder, kind) for kind in kinds]


def test_tables_and_their_states_begin_anew_with_an_epoch_and_the_rest_goes_on(folder: Path) -> None:
    kinds: list[PlacedType] = ["row_wise", "column_wise", "data_parallel"]
    for of_rank in run_ranks(2, around_all, folder, kinds):
        for learned, after in of_rank:
            assert 0 < after < learned


def in_parts(run: Path, stop: int) -> None:
    """A run that is stopped after some steps, with a checkpoint, and goes on."""
    trainer = Trainer(config_in(run), this_process())
    while trainer.state.step < stop:
        trainer.train_step()
        if trainer.state.evaluate:
            trainer.evaluate()
    trainer.save()
    trainer.close()
    train(config_in(run), this_process())


def whole_and_in_parts(folder: Path) -> None:
    train(config_in(folder / "whole"), this_process())
    in_parts(folder / "between", EPOCH)
    in_parts(folder / "within", EPOCH + 1)


def test_a_run_resumes_to_the_bit_between_two_epochs_and_within_the_second(folder: Path) -> None:
    run_ranks(2, whole_and_in_parts, folder)
    for parts in ("between", "within"):
        assert differences(folder / parts, folder / "whole") == []


def noted(run: Path, source: Path) -> str:
    """What a run that starts from another one prints."""
    config = config_in(run)
    began = replace(config, start_from=str(source), train=replace(config.train, fresh_tables=False), dry_run=True)
    with redirect_stdout(StringIO()) as printed:
        train(began, this_process())
    return printed.getvalue()


def starts_of(folder: Path) -> list[str]:
    """What runs print that start from checkpoints at the end of the first epoch and within the second."""
    trainer = Trainer(config_in(folder / "source"), this_process())
    printed = []
    for step in (EPOCH, EPOCH + 1):
        while trainer.state.step < step:
            trainer.train_step()
        trainer.save()
        source = checkpoint_path(str(folder / "source" / "checkpoints"), step)
        printed.append(noted(folder / "next", Path(source)))
    trainer.close()
    return printed


def test_a_run_that_starts_from_tables_in_the_middle_of_an_epoch_is_told_how_little_they_have_seen(
    folder: Path,
) -> None:
    [printed, _] = run_ranks(2, starts_of, folder)
    lines = [line for each in printed for line in each.splitlines() if "began anew" in line]
    source = checkpoint_path(str(folder / "source" / "checkpoints"), EPOCH + 1)
    assert lines == [
        f"note: the tables of {source} began anew with epoch 2, of which they have seen 128 of 512 rows; RUN:best has "
        "the tables of its best evaluation"
    ]
    assert lines[0] in printed[-1]


def ship(run: Path) -> None:
    config = config_in(run)
    train(replace(config, delta=DeltaConfig(steps=EPOCH // 2)), this_process())


def test_the_first_delta_of_an_epoch_has_all_rows(folder: Path) -> None:
    run_ranks(2, ship, folder / "ships")
    deltas = folder / "ships" / "deltas"
    manifests = [read_delta(deltas / f"{number:06d}").manifest for number in complete_numbers(deltas)]
    assert [(each.step, each.full) for each in manifests] == [(2, True), (4, False), (6, True), (8, False)]


def test_what_tables_have_from_another_run_stays_unless_asked_for_and_then_it_is_refused(folder: Path) -> None:
    line = ["--start-from", str(folder / "no"), "--data.path", str(folder / "log")]
    assert config_from_command_line(line[2:]).train.fresh_tables
    passes = config_from_command_line(line).train
    assert (passes.fresh_tables, passes.epochs) == (False, 1)
    asked = config_from_command_line([*line, "--train.fresh-tables", "--train.epochs", "2"])
    with pytest.raises(UserError) as error:
        check_fresh_tables(asked)
    assert str(error.value) == (
        f"--train.fresh-tables would empty after an epoch what the tables have from {folder / 'no'}; give "
        "--train.no-fresh-tables, or --train.epochs 1."
    )
    check_fresh_tables(replace(asked, train=replace(asked.train, epochs=1)))
    check_fresh_tables(config_from_command_line([*line, "--train.no-fresh-tables", "--train.epochs", "2"]))


def test_the_options_of_another_run_do_not_let_begin_anew_what_a_source_gave(folder: Path) -> None:
    (folder / "other.yaml").write_text(dump_config(config_in(folder / "other")))
    line = ["--config", str(folder / "other.yaml")]
    assert config_from_command_line(line).train.fresh_tables
    assert not config_from_command_line([*line, "--start-from", str(folder / "no")]).train.fresh_tables


def test_a_run_with_a_source_resumes_by_a_command_that_does_not_name_it(folder: Path) -> None:
    run, source = folder / "second_day", str(folder / "first_day")
    config = config_in(run)
    run.mkdir()
    began = replace(config, start_from=source, train=replace(config.train, fresh_tables=False, epochs=1))
    (run / "config.yaml").write_text(dump_config(began))
    resumed, _ = with_data_folder(config)
    assert (resumed.start_from, resumed.train) == (source, began.train)
    check_fresh_tables(resumed)


def test_frozen_tables_are_not_emptied(folder: Path) -> None:
    config = config_in(folder / "frozen")
    frozen = replace(config, train=replace(config.train, freeze=("like", "shared")))
    with pytest.raises(UserError, match="keeps the tables of like, shared, which"):
        check_fresh_tables(frozen)


def test_moments_that_are_corrected_by_a_count_of_steps_are_refused(folder: Path) -> None:
    config = replace(config_in(folder / "adam"), sparse=SparseOptimizerConfig(name="adam"))
    with pytest.raises(UserError, match=r"serve adam, which .* goes on; give --train\.no-fresh-tables, or"):
        check_fresh_tables(config)
