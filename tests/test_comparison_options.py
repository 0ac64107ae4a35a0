"""The options of a comparison are checked before anything is trained, and recorded in its folder."""

from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from stem_torchrec.comparison.options import Request, read_command_line, record_options, resolve_log
from stem_torchrec.comparison.runs import comparable_models, parts_of
from stem_torchrec.config import SyntheticConfig
from stem_torchrec.data import synthetic
from stem_torchrec.runtime.errors import UserError


@pytest.fixture
def log(tmp_path: Path) -> Path:
    sizes = SyntheticConfig(train_rows=512, valid_rows=128, test_rows=128)
    synthetic.generate(sizes, str(tmp_path / "log"))
    return tmp_path / "log"


def request_of(out: Path, log: Path, *options: str) -> Request:
    return resolve_log(read_command_line(["--recipe", "tiny", "--data.path", str(log), "--out", str(out), *options]))


def test_other_options_are_refused_once_tuning_has_begun(tmp_path: Path, log: Path) -> None:
    out = tmp_path / "out"
    record_options(request_of(out, log, "--tune"), 1)
    record_options(request_of(out, log, "--tune", "--train.metric", "logloss"), 1)  # Nothing has been trained.
    (out / "tuning" / "stem" / "cell").mkdir(parents=True)
    with pytest.raises(UserError, match="holds a comparison with other options or of another log"):
        record_options(request_of(out, log, "--tune"), 1)


def test_options_that_change_no_result_may_change(tmp_path: Path, log: Path) -> None:
    out = tmp_path / "out"
    record_options(request_of(out, log, "--train.timeout", "60"), 1)
    (out / "runs" / "stem" / "seed_0").mkdir(parents=True)
    record_options(
        request_of(out, log, "--train.log-every", "3", "--checkpoint.minutes", "1", "--models", "single_task"), 1
    )
    with pytest.raises(UserError, match="holds a comparison with other options"):
        record_options(request_of(out, log), 2)


def test_a_log_that_was_rewritten_is_another_log(tmp_path: Path, log: Path) -> None:
    out = tmp_path / "out"
    record_options(request_of(out, log), 1)
    (out / "runs" / "stem" / "seed_0").mkdir(parents=True)
    (file,) = (log / "train").glob("*.parquet")
    pq.write_table(pq.read_table(file), file, row_group_size=100)
    with pytest.raises(UserError, match="holds a comparison with other options or of another log"):
        record_options(request_of(out, log), 1)


def test_a_part_has_the_weights_and_rates_of_its_own_tasks(tmp_path: Path, log: Path) -> None:
    names = synthetic.SyntheticConfig().tasks
    assert len(names) >= 2
    weights = [str(1.0 + i) for i in range(len(names))]
    request = request_of(
        tmp_path / "out", log,
        "--model.task-weights", *weights, "--sparse.group-learning-rates", names[1], "0.005", "shared", "0.1",
    )  # fmt: skip
    alone = [part.configure(request.train) for part in parts_of("single_task", names)]
    assert [config.model.task_weights for config in alone] == [(1.0 + i,) for i in range(len(names))]
    assert [config.sparse.group_learning_rates for config in alone[:2]] == [{}, {names[1]: 0.005}]
    (shared,) = (part.configure(request.train) for part in parts_of("shared_bottom", names))
    assert shared.sparse.group_learning_rates == {"shared": 0.1}
    (stem,) = (part.configure(request.train) for part in parts_of("stem", names))
    assert stem == replace(request.train, model=replace(request.train.model, arch="stem"))
    (ablation,) = (part.configure(request.train) for part in parts_of("stem_gate_task", names))
    assert ablation == replace(stem, model=replace(stem.model, **comparable_models()["stem_gate_task"]))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--model.task-weights", "1"], "--model.task-weights is 1.0, but needs one number above 0 for each of"),
        (["--sparse.group-learning-rates", "likes", "1"], "names 'likes', but the models have tables of .*, shared"),
        (["--sharding.rules", "shared/*=row_wise"], "single_task/.*: .*shared.*; every model needs rules that fit"),
        (["--train.metric", "auc/lik"], "--train.metric is 'auc/lik'"),
        (["--item", "itm"], "--item is 'itm', but the sparse features are"),
    ],
)
def test_options_that_do_not_fit_the_log_are_refused_before_training(
    tmp_path: Path, log: Path, options: list[str], sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        request_of(tmp_path / "out", log, *options)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--models", "stem,mmmoe"], "there is no model 'mmmoe', only all, stem, .*; did you mean 'me_mmoe'|'mmoe'"),
        (["--resamples", "0"], "--resamples is 0, but must be from 1 to 1000000."),
        (["--models", "stem"], "--base is 'single_task', which is not among --models stem; add it."),
        (["--seeds", "0,x"], "--seeds is '0,x', but must be different whole numbers below 2.32, such as 0,1,2."),
        (["--seeds", "0,00"], "--seeds is '0,00', but must be different whole numbers"),
        (["--ratio-edges", "2", "1"], r"--ratio-edges is \[2.0, 1.0\], but must ascend from above 0, such as 0.5 2."),
        (["--split", "valid"], "--split is 'valid', on which models are trained or chosen; give another such as test."),
        (["--learning-rates", "0.1"], "--learning-rates and --embedding-l2 are the values that --tune chooses from;"),
        (["--checkpoint.folder", "s"], "--checkpoint.folder and --resume do not apply"),
        (
            ["--sharding.plan", "plan.json"],
            "--sharding.plan pins the tables of one model, but every model has its own;",
        ),
    ],
)
def test_options_that_make_no_sense_are_refused(options: list[str], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        read_command_line(["--out", "x", *options])
