"""What --tune lets each model try: settings from lists or a space, within a budget, and refused before training."""

from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest

from stem_torchrec.comparison.grid_search import Budget, Grid
from stem_torchrec.comparison.options import Request
from stem_torchrec.comparison.parts import Part, parts_of
from stem_torchrec.comparison.recorded import record_options
from stem_torchrec.comparison.settings import Lists, Setting
from stem_torchrec.config import SyntheticConfig
from stem_torchrec.data import synthetic
from stem_torchrec.runtime.errors import UserError
from stem_torchrec.runtime.paths import write_json

from test_comparison_options import request_of


def pair(learning_rate: float, embedding_l2: float) -> Setting:
    return Setting((("sparse.learning_rate", learning_rate), ("model.embedding_l2", embedding_l2)))


def write_score(grid: Grid, part: Part, setting: Setting, *, seconds: float) -> None:
    folder = grid.run_folder(part, setting)
    folder.mkdir(parents=True)
    write_json(folder / "score.json", {"score": 0.5 + len(str(folder)) % 7, "valid": {}, "seconds": seconds})


def test_a_budget_in_runs_gives_every_model_the_same_settings_and_no_more(tmp_path: Path) -> None:
    first = pair(0.02, 0.0)
    grid = Grid(Lists((0.01, 0.1), (0.0, 0.1, 1.0)), 0, tmp_path, Budget(first, runs=3))
    for part in (*parts_of("stem", ["a", "b"]), *parts_of("single_task", ["a", "b"])):
        tried = []
        while (setting := grid.next_setting(part, parts=2)) is not None:
            tried.append(setting)
            write_score(grid, part, setting, seconds=1e6)
        assert tried == list(islice(grid.settings(), 3))
        assert tried[0] == first
        assert list(grid.tried(part)) == tried
    for setting in islice(grid.settings(), 1, 30):
        rate, l2 = setting.by_column.values()
        assert 0.01 <= rate <= 0.1
        assert l2 == 0 or 0.1 <= l2 <= 1
        # So that the folder of a setting names it.
        assert setting.name == f"learning_rate={rate:g},embedding_l2={l2:g}"
        assert float(f"{rate:g}") == rate


def test_a_budget_in_minutes_is_shared_by_single_task_models(tmp_path: Path) -> None:
    grid = Grid(Lists((0.01, 0.1), (0.0, 0.1)), 0, tmp_path, Budget(pair(0.02, 0.0), minutes=10))
    numbers = {}
    for model in ("stem", "single_task"):
        parts = parts_of(model, ["a", "b"])
        for part in parts:
            # A single-task model takes half as long here.
            while (setting := grid.next_setting(part, parts=len(parts))) is not None:
                write_score(grid, part, setting, seconds=180 / len(parts))
            numbers[part.name] = len(grid.tried(part))
    assert numbers == {"stem": 4, "single_task/a": 4, "single_task/b": 4}


def test_a_part_that_lacks_memory_tries_no_other_setting_and_one_that_diverges_tries_all(tmp_path: Path) -> None:
    grid = Grid(Lists((0.01, 0.1), (0.0,)), 0, tmp_path)
    for part, lacks_memory in zip(parts_of("single_task", ["a", "b"]), (True, False), strict=True):
        tried = 0
        while (setting := grid.next_setting(part, parts=2)) is not None:
            assert grid.left_out(part, parts=2) is None
            folder, tried = grid.run_folder(part, setting), tried + 1
            folder.mkdir(parents=True)
            write_json(folder / "score.json", {"score": None, "left_out": "why", "lacks_memory": lacks_memory})
        assert tried == (1 if lacks_memory else 2)
        assert grid.left_out(part, parts=2) == f"{part.name} could not be tuned: why"
        write_json(folder / "score.json", {"score": 0.5})
        assert grid.left_out(part, parts=2) is None


def test_a_grid_without_budget_tries_all_pairs(tmp_path: Path) -> None:
    grid, (part,) = Grid(Lists((0.01, 0.1), (0.0, 0.1)), 0, tmp_path), parts_of("stem", ["a"])
    while (setting := grid.next_setting(part, parts=1)) is not None:
        write_score(grid, part, setting, seconds=1)
    assert [*grid.tried(part)] == [pair(0.01, 0.0), pair(0.01, 0.1), pair(0.1, 0.0), pair(0.1, 0.1)]


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("settings") / "log"
    synthetic.generate(SyntheticConfig(train_rows=512, valid_rows=128, test_rows=128), str(folder))
    return folder


def tuned_in(tmp_path: Path, log: Path, space: str, *options: str) -> Request:
    (tmp_path / "space.yaml").write_text(space)
    line = ["--models", "stem,single_task", "--tune", "--space", str(tmp_path / "space.yaml"), *options]
    return request_of(tmp_path / "out", log, *line)


def grid_of(request: Request) -> Grid:
    assert request.grid is not None
    return request.grid


def test_a_space_is_all_combinations_of_its_choices(tmp_path: Path, log: Path) -> None:
    space = "{train.fresh-tables: [true, false], model.tower_hidden: [[8], [16, 8]]}"
    request = tuned_in(tmp_path, log, space)
    settings = [*grid_of(request).settings()]
    configs = [replace(request.parts()["stem"][0], setting=each).configure(request.train) for each in settings]
    assert [(each.train.fresh_tables, each.model.tower_hidden) for each in configs] == [
        (True, (8,)), (True, (16, 8)), (False, (8,)), (False, (16, 8)),
    ]  # fmt: skip
    # Folders have names of plain letters: brackets are none in a URL.
    assert all(each.name.isidentifier() for each in settings)
    assert len({each.name for each in settings}) == 4
    assert [*settings[1].by_column.items()] == [("train.fresh_tables", True), ("model.tower_hidden", "[16, 8]")]


def test_a_list_is_settings_of_options_that_go_together(tmp_path: Path, log: Path) -> None:
    file = "[{}, {sparse.learning-rate: 0.5}, {dense.learning_rate: 0.5, model.dropout: 0.2}]"
    request = tuned_in(tmp_path, log, file, "--models", "stem,duet,single_task")
    settings = [*grid_of(request).settings()]
    assert [each.name for each in settings] == [
        "as_given",
        "learning_rate=0.5",
        "dense.learning_rate=0.5,model.dropout=0.2",
    ]
    (stem,), (duet,), (alone, _) = request.parts().values()
    for part in (stem, duet, alone):
        first, second, third = (replace(part, setting=each).configure(request.train) for each in settings)
        assert first == part.configure(request.train)
        assert second == replace(first, sparse=replace(first.sparse, learning_rate=0.5))
        assert (third.dense.learning_rate, third.sparse, third.model.dropout) == (0.5, first.sparse, 0.2)
    drawn = [*grid_of(tuned_in(tmp_path, log, file, "--tune-runs", "9")).settings()]
    assert (drawn[0].name, len(drawn), {*drawn}) == ("as_given", 3, {*settings})
    record_options(request, 1)
    (tmp_path / "out/tuning/stem/as_given").mkdir(parents=True)
    with pytest.raises(UserError, match="holds a comparison with other options"):
        record_options(tuned_in(tmp_path, log, "[{}]", "--models", "stem,duet,single_task"), 1)


def test_with_a_budget_a_space_is_drawn_from_without_repeats(tmp_path: Path, log: Path) -> None:
    space = "{train.fresh_tables: [true, false], model.dropout: {low: 0.0, high: 0.2, step: 0.1}}"
    request = tuned_in(tmp_path, log, space, "--tune-runs", "20", "--model.dropout", "0.3")
    settings = [*grid_of(request).settings()]
    # That of the other options, which the space does not have, then all six of the space, and no other.
    assert settings[0] == Setting()
    assert settings[0].name == "as_given"
    assert replace(request.parts()["stem"][0], setting=settings[0]).configure(request.train).model.dropout == 0.3
    assert {each.name for each in settings[1:]} == {
        f"train.fresh_tables={fresh},model.dropout={dropout:g}" for fresh in (True, False) for dropout in (0, 0.1, 0.2)
    }
    assert len(settings) == 7
    assert settings == [*grid_of(request).settings()]


def test_numbers_are_drawn_from_a_range_as_their_names_tell(tmp_path: Path, log: Path) -> None:
    space = "{dense.learning_rate: {low: 0.0001, high: 0.01, log: true}, sparse.learning_rate: [0.0123456789]}"
    settings = [*islice(grid_of(tuned_in(tmp_path, log, space, "--tune-minutes", "1")).settings(), 1, 40)]
    for setting in settings:
        rate = setting.by_column["dense.learning_rate"]
        assert 0.0001 <= rate <= 0.01
        assert setting.name == f"dense.learning_rate={rate:g},learning_rate=0.0123456789"
    assert sum(setting.by_column["dense.learning_rate"] < 0.001 for setting in settings) > 10


@pytest.mark.parametrize(
    ("space", "sentence"),
    [
        (
            "{model.num_shared_experts: [1, 2]}",
            "space.yaml: model.num_shared_experts is an option of stem, .*, not of ",
        ),
        (
            "[{}, {model.num_shared_experts: 2}]",
            "space.yaml: model.num_shared_experts is an option of stem, .*, not of",
        ),
        ("[{}, {model.dropout: 2}]", "space.yaml: setting 2: model.dropout is 2, but must be from 0 to 0.999."),
        ("[{}, model.dropout]", "space.yaml: setting 2 is 'model.dropout', but must be a mapping of options such as"),
        ("[{model.dropout: 0.1}, {model.dropout: 0.1}]", "space.yaml has 2 settings, but must have one or more, each"),
        ("[]", "space.yaml has 0 settings, but must have one or more, each once."),
        ("[{train.metric: auc}]", "space.yaml: train.metric is what models differ in, or are judged by; leave it out."),
        ("{model.dropout: {low: 0.0, high: 0.3}}", "space.yaml: model.dropout has a range, from which a budget alone"),
        ("{model.arch: [stem, mmoe]}", "space.yaml: model.arch is what models differ in, or are judged by; leave it"),
        ("{data.spaces: [{like: finish}]}", "space.yaml: data.spaces is what models differ in, or are judged by; le"),
        ("{data.features: [[user_id]]}", "space.yaml: data.features is not an option of one model, as those of"),
        ("{train.metric: [auc]}", "space.yaml: train.metric is the same for all trials; leave it out of the space."),
        ("{model.dropout: [2]}", "space.yaml: model.dropout is 2, but must be from 0 to 0.999."),
        (
            "{sparse.name: [adam], train.fresh_tables: [true]}",
            "stem, sparse.name=adam,train.fresh_tables=True: --train.fresh-tables does not serve adam",
        ),
        ("{loss.kinds: [{likes: focal}]}", "stem, setting_.*: --loss.kinds names the task 'likes', but the tasks are"),
        ("{sparse.group_learning_rates: [{likes: 1}]}", "stem, setting_.*: --sparse.group-learning-rates names 'like"),
    ],
)
def test_a_space_that_some_model_refuses_is_refused_before_training(
    tmp_path: Path, log: Path, space: str, sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        tuned_in(tmp_path, log, space, "--train.epochs", "2")


def test_what_a_space_chooses_no_model_may_set_and_no_list(tmp_path: Path, log: Path) -> None:
    with pytest.raises(UserError, match=r"stem_by_task: train.best_by_task is chosen by --tune; leave one of"):
        tuned_in(tmp_path, log, "{train.best_by_task: [true, false]}", "--models", "stem_by_task,single_task")
    with pytest.raises(UserError, match="--space takes the place of --learning-rates and --embedding-l2; leave one"):
        tuned_in(tmp_path, log, "{model.dropout: [0.1]}", "--learning-rates", "0.1")


def test_a_folder_keeps_its_space(tmp_path: Path, log: Path) -> None:
    request = tuned_in(tmp_path, log, "{model.dropout: [0.1, 0.2]}")
    record_options(request, 1)
    (tmp_path / "out/tuning/stem/model.dropout=0.1").mkdir(parents=True)
    record_options(tuned_in(tmp_path, log, "{model.dropout: [0.1, 0.2]}"), 1)
    with pytest.raises(UserError, match="holds a comparison with other options"):
        record_options(tuned_in(tmp_path, log, "{model.dropout: [0.1, 0.3]}"), 1)


def test_a_space_of_sizes_goes_on_after_some_that_are_too_large(tmp_path: Path, log: Path) -> None:
    dimensions = [4 * n for n in range(1, 21)]
    request = tuned_in(tmp_path, log, f"{{model.embedding_dim: {dimensions}}}")
    grid, (part,) = grid_of(request), request.parts()["stem"]
    tried = []
    while (setting := grid.next_setting(part, parts=1)) is not None:
        tried.append(setting.by_column["model.embedding_dim"])
        folder, large = grid.run_folder(part, setting), tried[-1] > 16
        folder.mkdir(parents=True)
        write_json(folder / "score.json", {"score": None if large else 0.5, "left_out": "x", "lacks_memory": large})
    # Ten that are too large, one after the other, and no other.
    assert tried == dimensions[:14]
    assert grid.best_setting(part) == Setting((("model.embedding_dim", 4),))
