"""A model that cannot be trained is left out by all ranks alike, and its memory is free for the next."""

import weakref
from pathlib import Path

import torch

from stem_torchrec.runtime.errors import AllocationError, DivergedError, NoMemoryError
from stem_torchrec.runtime.process import Process
from stem_torchrec.training.left_out import LeftOut, trained_or_left_out

from distributed import run_ranks
from runs import this_process


class Model:
    """Refers to itself, as sharded modules do."""

    def __init__(self) -> None:
        self.itself = self


def test_a_model_without_memory_leaves_its_own_to_the_next() -> None:
    models, written = list[weakref.ref[Model]](), list[LeftOut]()

    def train() -> None:
        model = Model()
        models.append(weakref.ref(model))
        torch.empty(2**60)

    process = Process(rank=0, world_size=1, local_world_size=1, device=torch.device("cpu"))
    trained_or_left_out(train, process, name="big", leave_out=written.append)
    assert models[0]() is None
    [left_out] = written
    assert left_out.left_out.startswith("big: the memory does not suffice ([enforce fail at alloc_cpu.cpp")
    assert left_out.lacks_memory


def outcomes(folder: Path) -> list[str]:
    """What each rank does about errors of all ranks, and about one of the second rank alone."""
    process, facts = this_process(), list[str]()

    def failing(error: Exception | None) -> int:
        if error is not None:
            raise error
        return 7

    alone = None if process.is_first else torch.OutOfMemoryError("CUDA out of memory.")
    for name, error in {"a": DivergedError("nan"), "b": NoMemoryError("9 GiB"), "c": None, "d": alone}.items():

        def write(left_out: LeftOut, file: Path = folder / f"{name}{process.rank}") -> None:
            file.write_text(left_out.left_out)

        def train(error: Exception | None = error) -> int:
            return failing(error)

        try:
            facts.append(str(trained_or_left_out(train, process, name=name, leave_out=write)))
        except AllocationError as raised:
            facts.append(str(raised))
    return facts


def test_all_ranks_leave_a_model_out_or_the_one_that_lacks_memory_writes_why_and_ends(tmp_path: Path) -> None:
    first, second = run_ranks(2, outcomes, tmp_path)
    lack = "the memory does not suffice (CUDA out of memory); give smaller sizes."
    assert first == ["None", "None", "7", "7"]
    assert second == ["None", "None", "7", lack]
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {
        "a0": "a: nan", "b0": "b: 9 GiB", "d1": f"d: {lack}",
    }  # fmt: skip
