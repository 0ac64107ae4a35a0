"""Fifty deltas of a run that is killed between them make a copy that is the trainer, to the bit."""

import random
import signal
from itertools import pairwise
from pathlib import Path

import pytest

from stem_torchrec.deltas.manifest import complete_numbers, delta_path, read_delta

from recovery.train_runs import tensors_of
from shipments import apply, same
from small_runs import start

KILLS = 6
EVERY = ("--delta.steps", "1")


def weights_in(folder: Path) -> dict:
    """The weights in a checkpoint or a copy."""
    return {name: value for name, value in tensors_of(folder).items() if name.startswith("model.")}


@pytest.mark.long
def test_fifty_deltas_with_kills_between_them_make_the_trainer_to_the_bit(tmp_path: Path) -> None:
    whole, killed, rng = tmp_path / "whole", tmp_path / "killed", random.Random(23)
    assert start(whole, "--checkpoint.keep", "100", ranks=2).end()[0] == [0, 0]
    deltas, copy = killed / "deltas", tmp_path / "copy"
    for kill in range(KILLS):
        with start(killed, *EVERY, ranks=2) as run:
            run.wait_for(f"delta {len(complete_numbers(deltas)) + rng.randrange(4, 9)} written")
            run.send(signal.SIGKILL)
        # What comes meanwhile is applied meanwhile.
        assert apply(deltas, copy) > 0, kill
    assert start(killed, *EVERY, ranks=2).end()[0] == [0, 0]
    numbers = complete_numbers(deltas)
    manifests = [read_delta(delta_path(deltas, number)).manifest for number in numbers]
    assert numbers == list(range(len(numbers)))
    assert len(numbers) >= 50
    # No copy goes back, though steps are made again, all of them by a run that is killed before its first checkpoint.
    assert all(before.step <= after.step for before, after in pairwise(manifests))
    assert manifests[-1].step == 66
    compared = 0
    for manifest in manifests:
        checkpoint = whole / f"checkpoints/step-{manifest.step:09d}"
        if checkpoint.exists():
            anew = tmp_path / "anew"
            apply(deltas, anew, until=manifest.number)
            assert same(weights_in(anew / "best"), weights_in(checkpoint)), manifest.step
            compared += 1
    assert compared >= 5
    apply(deltas, copy)
    assert same(weights_in(copy / "best"), weights_in(whole / "checkpoints/step-000000066"))
