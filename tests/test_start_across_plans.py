"""A run starts from a state of any number of ranks, layout and sharding type, under any other, bit for bit."""

import itertools
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor

from stem_torchrec.checkpoints.rowwise import row_pieces
from stem_torchrec.config import ShardingType, TrainConfig
from stem_torchrec.starting.carry_planner import CarryLoadPlanner, Copy, continued
from stem_torchrec.starting.id_maps import IdMap
from stem_torchrec.tables import TableTensor

from distributed import run_ranks
from reference import COLUMNS, sparse_features
from runs import MODEL, Run, config_of
from starts import save_run, source_of, start, whole_states

TYPES = [kind for kind in get_args(ShardingType) if kind != "auto"]
LAYOUTS = ("split", "packed")
# Other ids and another order of the tasks, which is that of the columns of packed tables.
TODAY = replace(COLUMNS, sparse=sparse_features(uid=6500, tags=9), labels=("like", "finish"))
TAGS = torch.tensor([0, 6, -1, 2, 4, 1, -1, 5, 0])
IDS = {"tags": IdMap(7, 9, TAGS, how="matched by value")}


@dataclass(frozen=True)
class Case:
    """How the source is saved, and how the run that starts from it is sharded."""

    ranks: tuple[int, int]
    layouts: tuple[str, str]
    types: tuple[str, str]

    def config(self, side: int) -> TrainConfig:
        model = replace(MODEL, num_layers=1, layout=self.layouts[side])
        return config_of("adagrad", self.types[side], model=model)

    @property
    def source(self) -> str:
        return f"{self.ranks[0]}-{self.layouts[0]}-{self.types[0]}"


RANKS = ((2, 2), (1, 2), (2, 1))
SOME = [
    Case(RANKS[i % 3], (LAYOUTS[i // 2 % 2], LAYOUTS[i % 2]), (kind, TYPES[(i + 3) % len(TYPES)]))
    for i, kind in enumerate(TYPES)
]
"""Each type on each side, and each pair of layouts and of numbers of ranks."""
ALL = [
    Case(ranks, layouts, types)
    for i, types in enumerate(itertools.product(TYPES, TYPES))
    for ranks, layouts in [(RANKS[i % 3], (LAYOUTS[i // 2 % 2], LAYOUTS[i % 2]))]
]


def values(run: Run) -> dict[str, Tensor]:
    """Weights and states of tables, and dense ones."""
    return run.weights() | whole_states(run)


def save_all(folder: Path, cases: list[Case]) -> dict[str, dict[str, Tensor]]:
    saved = {}
    for case in cases:
        if case.ranks[0] == dist.get_world_size() and case.source not in saved:
            _, run = save_run(folder / case.source, case.config(0))
            saved[case.source] = values(run)
    return saved


def start_all(folder: Path, cases: list[Case]) -> dict[Case, dict[str, Tensor]]:
    started = {}
    for case in cases:
        if case.ranks[1] == dist.get_world_size():
            run, _ = start(source_of(folder / case.source, case.config(0)), case.config(1), TODAY, id_maps=IDS)
            started[case] = values(run)
    return started


def two_ranks(folder: Path, cases: list[Case]) -> tuple[Any, Any]:
    return save_all(folder, cases), start_all(folder, cases)


@pytest.fixture(
    scope="module", params=[pytest.param(SOME, id="some"), pytest.param(ALL, id="all", marks=pytest.mark.long)]
)
def results(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("runs")
    [saved] = run_ranks(1, save_all, folder, request.param, timeout=600)
    [(saved_by_two, started), (_, of_second)] = run_ranks(2, two_ranks, folder, request.param, timeout=600)
    [of_one] = run_ranks(1, start_all, folder, request.param, timeout=600)
    results = [(case, (saved | saved_by_two)[case.source], new) for case, new in (started | of_one).items()]
    results += [(case, (saved | saved_by_two)[case.source], new) for case, new in of_second.items()]
    assert {case for case, _, _ in results} == set(request.param)
    return results


@pytest.mark.stack
def test_rows_and_states_are_continued_under_any_plan_layout_and_number_of_ranks(results):
    for case, old, new in results:
        for name, value in old.items():
            if name.startswith("layers") or ".layers." in name:
                # The columns of a layer's input are in the order of the features, those of a gate in that of the tasks.
                continue
            if "tags" in name:
                assert torch.equal(new[name][TAGS >= 0], value[TAGS[TAGS >= 0]]), (case, name)
            else:
                assert torch.equal(new[name][: len(value)] if value.dim() else new[name], value), (case, name)
        for group in ("finish", "like", "shared"):
            sums = new[f"{group}/uid.momentum1"]
            assert len(sums) == 6500
            assert sums[5000:].count_nonzero() == 0


ROW_CASES = [
    ("column_wise", "table_wise"),
    ("table_wise", "column_wise"),
    ("column_wise", "data_parallel"),
    ("data_parallel", "column_wise"),
    ("column_wise", "column_wise"),
]
CUTS = {"column_wise": ((0, 4), (4, 8))}
"""Columns of the shards of a table on two ranks, where it is cut by columns."""


def row_states(run: Run) -> dict[str, Tensor]:
    """The number that a row-wise optimizer keeps for each element of the tables, (R, D)."""
    weights, pieces = run.model.state_dict(), []
    for name, states in run.optimizer.state_dict()["state"].items():
        tensor = TableTensor.parse(name)
        for state, value in states.items():
            if tensor is not None and state != "step":
                for columns, first, numbers in row_pieces(value, weights[name]):
                    pieces.append((tensor.table, columns, first, numbers.flatten().clone()))
    gathered: list[list] = [[]] * dist.get_world_size()
    dist.all_gather_object(gathered, pieces)
    whole: dict[str, Tensor] = {}
    for table, (low, high), first, numbers in itertools.chain(*gathered):
        target = whole.setdefault(table, torch.full(run.size_of(table), torch.nan))
        target[first : first + len(numbers), low:high] = numbers[:, None]
    return whole


def start_row_wise(folder: Path) -> list[tuple[dict[str, Tensor], dict[str, Tensor]]]:
    results = []
    for i, (kind, new_kind) in enumerate(ROW_CASES):
        config, today = (
            config_of("rowwise_adagrad", each, model=replace(MODEL, num_layers=1)) for each in (kind, new_kind)
        )
        source, run = save_run(folder / str(i), config)
        new, _ = start(source, today, TODAY, id_maps=IDS)
        results.append((row_states(run), row_states(new)))
    return results


def test_row_wise_states_are_continued_across_cuts_of_columns(tmp_path: Path):
    for of_rank in run_ranks(2, start_row_wise, tmp_path):
        for (kind, new_kind), (old, new) in zip(ROW_CASES, of_rank, strict=True):
            for table, numbers in new.items():
                rows = TAGS if table.endswith("tags") else torch.arange(6500).where(torch.arange(6500) < 5000, -1)
                assert numbers[rows < 0].count_nonzero() == 0
                for low, high in CUTS.get(new_kind, ((0, 8),)):
                    expected = old[table][rows[rows >= 0], low:high].mean(dim=1, keepdim=True)
                    # The mean of two numbers is rounded in another order than that of eight.
                    torch.testing.assert_close(
                        numbers[rows >= 0, low:high], expected.expand(-1, high - low), rtol=1e-6, atol=0
                    )
                if kind == new_kind:
                    assert torch.equal(numbers[rows >= 0], old[table][rows[rows >= 0]])
            assert not torch.equal(old["like/uid"][:, 0], old["like/uid"][:, 4]) or kind != "column_wise"


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")  # A warning of dcp.save and dcp.load.
def test_a_saved_shard_is_read_once_for_all_pieces_and_no_more_of_it_than_they_need(tmp_path: Path):
    saved = torch.arange(800.0).view(100, 8)
    dcp.save({"packed": saved}, checkpoint_id=tmp_path, no_dist=True)
    rows = torch.tensor([70, -1, 20, 33])
    pieces = [torch.zeros(4, 4), torch.zeros(3, 2)]
    copies = [
        Copy(pieces[0], "packed", (rows, continued(None, 4, first=0, count=4, start=4))),
        Copy(pieces[1], "packed", (rows[1:], torch.tensor([6, 2]))),
    ]
    planner = CarryLoadPlanner(copies)
    dcp.load({}, checkpoint_id=tmp_path, planner=planner, no_dist=True)
    assert torch.equal(pieces[0][[0, 2, 3]], saved[[70, 20, 33], 4:])
    assert torch.equal(pieces[1][1:], saved[[20, 33]][:, [6, 2]])
    assert pieces[0][1].count_nonzero() == pieces[1][0].count_nonzero() == 0
    [item] = planner.create_local_plan().items
    assert (tuple(item.storage_offsets), tuple(item.lengths)) == ((20, 2), (51, 6))
