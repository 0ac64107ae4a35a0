"""Folders of earlier versions: an option that their file lacks has its default, and nothing of other options mixes."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from stem_torchrec.comparison.grid_search import SCORE_FILE
from stem_torchrec.comparison.options import Request
from stem_torchrec.comparison.recorded import COMPARISON_FILE, record_options
from stem_torchrec.comparison.runs import TEST_FILE
from stem_torchrec.config import SyntheticConfig, TrainConfig, dump_config
from stem_torchrec.data import synthetic
from stem_torchrec.runtime.errors import UserError
from stem_torchrec.runtime.process import Process
from stem_torchrec.sharding.topology import Bandwidths
from stem_torchrec.training.recipes import tiny
from stem_torchrec.training.recorded_options import check_recorded
from stem_torchrec.tuning import study
from stem_torchrec.tuning.search_space import Search, resolve_log, to_space

from common.table_list import TableSpec
from earlier_versions import add, forget
from planning.config import PlanConfig
from planning.plans import PlanFolder
from sweep.config import Sweep, SweepConfig
from sweep.run import open_folder
from test_comparison_options import request_of

PROCESS = Process(0, 1, 1, torch.device("cpu"))
RATES = ("--sparse.learning-rate", "0.3", "--model.expert-hidden", "4")


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("log") / "log"
    synthetic.generate(SyntheticConfig(train_rows=512, valid_rows=128, test_rows=128), str(folder))
    return folder


def written(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def compared(out: Path, log: Path, *options: str) -> Request:
    """The comparison of a folder that has a run of stem already, which is trained and tested."""
    request = request_of(out, log, "--models", "stem,single_task", "--seeds", "3", *options)
    record_options(request, 1)
    write_runs(request)
    return request


def write_runs(request: Request) -> None:
    for run in request.runs:
        for part in request.parts()[run.model]:
            folder = run.folder / part.labels[0] if part.alone else run.folder
            config = replace(part.configure(request.train), seed=run.seed, output_dir=str(folder))
            written(folder / "config.yaml", dump_config(config))
        written(run.folder / TEST_FILE, "{}")


def tuned(out: Path, log: Path) -> Search:
    """The search of a folder that has a trial already."""
    base = replace(tiny(), data=replace(tiny().data, path=str(log)), sparse=replace(tiny().sparse, learning_rate=0.3))
    search = resolve_log(Search(base, to_space({"model.dropout": [0.1], "model.expert_hidden": [[4]]}, base, "space")))
    study.record_options(out, search)
    trial = search.trial_config({"model.dropout": 0.1, "model.expert_hidden": "[4]"})
    written(out / "trials/0000/config.yaml", dump_config(replace(trial, output_dir=str(out / "trials/0000"))))
    written(out / "study.log", "")
    return search


def comparison(out: Path, log: Path) -> tuple[Path, str, Callable[[], object]]:
    request = compared(out, log, *RATES)
    return out / COMPARISON_FILE, "train", lambda: record_options(request, 1)


def search(out: Path, log: Path) -> tuple[Path, str, Callable[[], object]]:
    found = tuned(out, log)
    return out / "study.yaml", "train", lambda: study.record_options(out, found)


def sweep(out: Path, log: Path) -> tuple[Path, str, Callable[[], object]]:
    wanted = Sweep((), {}, (TableSpec("user", 100, 8),), tiny(), ("finish",))
    open_folder(SweepConfig(out=str(out)), wanted, PROCESS)
    return out / "sweep.json", "sweep", lambda: open_folder(SweepConfig(out=str(out)), wanted, PROCESS)


def plans(out: Path, log: Path) -> tuple[Path, str, Callable[[], object]]:
    def opened() -> PlanFolder:
        return PlanFolder(PlanConfig(out=str(out)), [TableSpec("user", 100, 8)], Bandwidths(hbm=9.0), {})

    opened()
    return out / "search.json", "search", opened


@pytest.mark.parametrize(
    ("begin", "lacking"),
    [
        (comparison, ["train.loss", "train.model.dropout", "train.train.best_by_task", "tuned"]),
        (search, ["train.balance", "train.model.layout", "train.start"]),
        (sweep, ["sweep.loss", "sweep.model.dropout", "sweep.tables.0.own"]),
        (plans, ["search.labels", "search.tables.0.own", "search.bandwidths.ddr"]),
    ],
)
def test_the_same_command_goes_on_where_the_file_lacks_options_that_are_the_defaults(
    begin: Callable, lacking: list[str], tmp_path: Path, log: Path
) -> None:
    file, _, again = begin(tmp_path / "out", log)
    forget(file, *lacking)
    again()


@pytest.mark.parametrize("begin", [comparison, search, sweep])
def test_an_option_that_this_version_does_not_know_is_one_sentence(begin: Callable, tmp_path: Path, log: Path) -> None:
    file, section, again = begin(tmp_path / "out", log)
    add(file, f"{section}.model.new_option", 3)
    before = file.read_text()
    with pytest.raises(UserError) as error:
        again()
    assert str(error.value) == (
        f"{file}: there is no field 'model.new_option'; if a newer stem_torchrec wrote the file, install that version, "
        "else give another --out."
    )
    assert file.read_text() == before


@pytest.mark.parametrize("begin", [search, sweep, plans])
def test_an_unknown_entry_of_the_file_itself_is_one_sentence(begin: Callable, tmp_path: Path, log: Path) -> None:
    file, section, again = begin(tmp_path / "out", log)
    add(file, "new_entry" if section == "train" else f"{section}.new_entry", 3)
    with pytest.raises(UserError, match=f"{file}: there is no option 'new_entry'; if a newer stem_torchrec wrote"):
        again()


def test_a_real_difference_is_named_and_the_file_stays(tmp_path: Path, log: Path) -> None:
    compared(tmp_path / "out", log, *RATES)
    file = tmp_path / "out" / COMPARISON_FILE
    forget(file, "train.loss")
    before = file.read_text()
    options = ("--model.expert-hidden", "4", "--sparse.learning-rate", "0.5", "--model.dropout", "0.2")
    with pytest.raises(UserError) as error:
        record_options(request_of(tmp_path / "out", log, *options), 1)
    assert (
        "holds a comparison with other options or of another log, where train.model.dropout is 0.0 and not 0.2, "
        "train.sparse.learning_rate is 0.3 and not 0.5; see comparison.yaml in it"
    ) in str(error.value)
    assert file.read_text() == before


def test_a_file_that_lacks_options_gets_them(tmp_path: Path, log: Path) -> None:
    file, _, again = comparison(tmp_path / "out", log)
    before = file.read_text()
    forget(file, "train.loss", "train.schedule")
    again()
    assert file.read_text() == before


def test_a_comparison_that_lost_an_option_does_not_mix_runs(tmp_path: Path, log: Path) -> None:
    """The file then agrees with a command that leaves the option at its default; the runs do not."""
    compared(tmp_path / "out", log, *RATES)
    file = tmp_path / "out" / COMPARISON_FILE
    default = TrainConfig().sparse.learning_rate
    forget(file, "train.sparse.learning_rate")
    options = ("--models", "single_task", "--seeds", "3", "--model.expert-hidden", "4")
    before = file.read_text()
    with pytest.raises(
        UserError, match=rf"was trained with other options, where sparse.learning_rate is 0.3 and not {default}"
    ):
        record_options(request_of(tmp_path / "out", log, *options, "--sparse.learning-rate", str(default)), 1)
    assert file.read_text() == before


def test_settings_that_were_tried_with_other_options_are_not_chosen_from(tmp_path: Path, log: Path) -> None:
    options = ("--models", "stem", "--base", "stem", "--tune", "--learning-rates", "0.1")
    request = request_of(tmp_path / "out", log, *options, "--model.dropout", "0.3")
    record_options(request, 1)
    assert request.grid is not None
    (part,) = request.parts()["stem"]
    setting = next(request.grid.settings())
    folder = request.grid.run_folder(part, setting)
    of_setting = replace(part, setting=setting)
    config = replace(of_setting.configure(request.train), seed=request.grid.seed, output_dir=str(folder))
    written(folder / "config.yaml", dump_config(config))
    written(folder / SCORE_FILE, "{}")
    record_options(request, 1)
    forget(tmp_path / "out" / COMPARISON_FILE, "train.model.dropout")
    with pytest.raises(UserError, match=r"was trained with other options, where model.dropout is 0.3 and not 0.0"):
        record_options(request_of(tmp_path / "out", log, *options, "--model.dropout", "0.0"), 1)


def test_a_study_that_lost_an_option_does_not_mix_trials(tmp_path: Path, log: Path) -> None:
    found = tuned(tmp_path / "out", log)
    default = TrainConfig().sparse.learning_rate
    forget(tmp_path / "out/study.yaml", "train.sparse.learning_rate")
    base = replace(found.base, sparse=replace(found.base.sparse, learning_rate=default))
    with pytest.raises(
        UserError, match=r"trials/0000 was trained with other options, where sparse.learning_rate is 0.3"
    ):
        study.record_options(tmp_path / "out", replace(found, base=base))


@pytest.mark.parametrize("begin", [comparison, search])
def test_results_without_their_file_are_refused(begin: Callable, tmp_path: Path, log: Path) -> None:
    file, _, again = begin(tmp_path / "out", log)
    file.unlink()
    with pytest.raises(UserError, match=rf"out holds results, but no {file.name} that tells the options behind them"):
        again()


@pytest.mark.parametrize("content", [None, [], "text"])
def test_a_file_that_is_no_mapping_is_one_sentence(content: object) -> None:
    with pytest.raises(UserError, match=r"x.yaml: it is not a mapping of options, but .*; if a newer"):
        check_recorded(Path("x.yaml"), content, {"a": 1}, refusal="", fix="")
