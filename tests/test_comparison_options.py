"""The options of a comparison are checked before anything is trained, and recorded in its folder."""

import re
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pyarrow.parquet as pq
import pytest

from stem_torchrec.comparison.built_in import built_in
from stem_torchrec.comparison.options import Request, read_command_line
from stem_torchrec.comparison.parts import parts_of
from stem_torchrec.comparison.recorded import record_options
from stem_torchrec.comparison.resolved import resolve_log
from stem_torchrec.comparison.several_logs import requests_by_log
from stem_torchrec.comparison.variants_file import read_variants
from stem_torchrec.config import LossConfig, SyntheticConfig, TaskGradients, TaskWeights
from stem_torchrec.data import synthetic
from stem_torchrec.data.schema import load_schema, save_schema
from stem_torchrec.losses.table import LOSSES
from stem_torchrec.models.escm2 import ESCM2Options, Estimator
from stem_torchrec.models.group_experts import ExpertKind
from stem_torchrec.models.ple import PLEOptions
from stem_torchrec.models.shared_bottom import SingleTaskOptions
from stem_torchrec.models.stem import STEMOptions
from stem_torchrec.models.table import MODELS
from stem_torchrec.runtime.errors import UserError
from stem_torchrec.training.recipes import tiny


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


def test_every_model_that_is_built_in_may_be_compared_on_a_log_of_steps(tmp_path: Path) -> None:
    # Each label is 1 only where the one before it is, as esmm, escm2 and dcmt take it.
    sizes = SyntheticConfig(train_rows=64, valid_rows=64, test_rows=64, missing=(0.0, 0.0))
    synthetic.generate(sizes, str(tmp_path / "log"))
    options = ["--sparse.update-unlabeled-rows", "--models", ",".join(built_in()), "--recipe", "log"]
    line = ["--data.path", str(tmp_path / "log"), "--out", str(tmp_path / "out"), *options]
    assert {run.model for run in resolve_log(read_command_line(line)).runs} == {*built_in()}


def test_options_that_change_no_result_may_change(tmp_path: Path, log: Path) -> None:
    out = tmp_path / "out"
    record_options(request_of(out, log, "--train.timeout", "60"), 1)
    (out / "runs" / "stem" / "seed_0").mkdir(parents=True)
    record_options(
        request_of(out, log, "--train.log-every", "3", "--checkpoint.minutes", "1", "--models", "single_task"), 1
    )
    with pytest.raises(UserError, match="holds a comparison with other options"):
        record_options(request_of(out, log), 2)


def test_an_eps_that_rows_will_decide_is_no_wrong_eps(tmp_path: Path, log: Path) -> None:
    request = resolve_log(read_command_line(["--data.path", str(log), "--out", str(tmp_path / "out")]))
    assert (request.train.recipe, request.train.sparse.eps) == ("log", 0)


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
    by_name = replace(request.train, model=replace(request.train.model, task_weights={names[1]: 3.0}))
    of_parts = [part.configure(by_name).model.task_weights for part in parts_of("single_task", names)]
    assert of_parts == [(3.0,) if name == names[1] else (1.0,) for name in names]
    (shared,) = (part.configure(request.train) for part in parts_of("shared_bottom", names))
    assert shared.sparse.group_learning_rates == {"shared": 0.1}
    (stem,) = (part.configure(request.train) for part in parts_of("stem", names))
    assert stem == replace(request.train, model=replace(request.train.model, arch="stem"))
    assert [(part.labels, part.configure(request.train).model.arch) for part in parts_of("stem_alone", names)] == [
        ((name,), "stem") for name in names
    ]
    (ablation,) = (part.configure(request.train) for part in parts_of("stem_gate_task", names))
    assert ablation == replace(stem, model=replace(stem.model, gate_input="task"))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--model.task-weights", "1"], "--model.task-weights is 1.0, but needs one number above 0 for each of"),
        (["--sparse.group-learning-rates", "likes", "1"], "names 'likes', but the models have tables of .*, shared"),
        (["--sharding.rules", "shared/*=row_wise"], "single_task/.*: .*shared.*; every model needs rules that fit"),
        (["--train.metric", "auc/lik"], "--train.metric is 'auc/lik'"),
        (["--item", "itm"], "--item is 'itm', but the sparse features are"),
        (
            ["--train.epochs", "2", "--train.fresh-tables", "--sparse.name", "adam"],
            "stem: --train.fresh-tables does not serve adam",
        ),
        (["--sparse.name", "lamb", "--sharding.kernel", "dense"], "stem: lamb runs only fused"),
        (["--train.freeze", "shared"], "single_task/.*: --train.freeze names .*shared"),
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
        (["--tune-runs", "3"], "--tune-runs and --tune-minutes are the budget of --tune; add --tune."),
        (["--tune", "--tune-runs", "3", "--tune-minutes", "3"], "--tune-runs and --tune-minutes are two budgets"),
        (["--tune", "--tune-runs", "3", "--learning-rates", "0"], "--learning-rates has 0, but with a budget"),
        (["--logs", "a", "a"], "--logs is a a, but must be two or more different folders; give others."),
        (["--logs", "a", "b", "--data.path", "c"], "--logs and --data.path both name logs; leave one of them out."),
        (["--learning-rates", "0.1"], "--learning-rates, --embedding-l2 and --space are what --tune chooses from; add"),
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


def test_each_log_has_a_folder_and_runs_of_its_own_and_the_same_tasks(tmp_path: Path, log: Path) -> None:
    synthetic.generate(SyntheticConfig(train_rows=512, valid_rows=128, test_rows=128, seed=1), str(tmp_path / "b"))
    line = ["--recipe", "tiny", "--logs", str(log), str(tmp_path / "b"), "--out", str(tmp_path / "out"), "--tune"]
    first, second = requests_by_log(read_command_line(line))
    assert [first.train.data.path, second.train.data.path] == [str(log), str(tmp_path / "b")]
    assert second.config.out == str(tmp_path / "out" / "log_2")
    assert {run.folder.parents[2] for run in second.runs} == {tmp_path / "out" / "log_2"}
    assert {run.log for run in second.runs} == {2}
    assert second.grid is not None
    assert second.grid.folder == tmp_path / "out" / "log_2" / "tuning"
    other = SyntheticConfig(train_rows=512, valid_rows=128, test_rows=128, tasks=("x", "y"))
    synthetic.generate(other, str(tmp_path / "c"))
    with pytest.raises(UserError, match=r"--logs: .*/c has the tasks x, y, and .* finish, like; name those that all"):
        requests_by_log(read_command_line([*line[:2], "--logs", str(log), str(tmp_path / "c"), *line[5:]]))
    save_schema(replace(load_schema(str(tmp_path / "b")), group=None), str(tmp_path / "b"))
    sentence = f"--logs: {log} has a group column, and {tmp_path / 'b'} has none; give logs of one kind."
    with pytest.raises(UserError, match=f"^{re.escape(sentence)}$"):
        requests_by_log(read_command_line(line))


def written(tmp_path: Path, text: str) -> str:
    (tmp_path / "variants.yaml").write_text(text)
    return str(tmp_path / "variants.yaml")


def test_models_of_a_file_have_its_options_over_those_of_the_command_line(tmp_path: Path, log: Path) -> None:
    file = written(
        tmp_path,
        """
        focal: {model.arch: stem, loss.kinds: {"*": focal, like: bce}, loss.positive-weights: {like: 3}}
        deep: {model.arch: ple, model.num_layers: 2, model.task_weights: [1, 2]}
        regular: {model.arch: single_task, model.embedding_l2: 0.1}
        wide: {model.expert_hidden: [64, 32], alone: true}
        """,
    )
    request = request_of(
        tmp_path / "out", log, "--variants", file, "--models", "focal,deep,regular,wide", "--base", "regular",
        "--model.dropout", "0.1",
    )  # fmt: skip
    configs = {name: [part.configure(request.train) for part in parts] for name, parts in request.parts().items()}
    assert {name: [config.data.labels for config in each] for name, each in configs.items()} == {
        "focal": [("finish", "like")],
        "deep": [("finish", "like")],
        "regular": [("finish",), ("like",)],
        "wide": [("finish",), ("like",)],
    }
    [plain] = read_variants(written(tmp_path, "plain: {}"), replace(request.train, model=SingleTaskOptions())).values()
    assert plain.alone
    (focal,), (deep,), (regular, _), (wide, _) = configs.values()
    assert focal.loss == LossConfig({"*": "focal", "like": "bce"}, {"like": 3.0})
    assert (type(deep.model), deep.model.dropout, deep.model.task_weights) == (PLEOptions, 0.1, (1.0, 2.0))
    assert (regular.model.arch, regular.model.embedding_l2, regular.model.dropout) == ("single_task", 0.1, 0.1)
    assert wide.model == replace(request.train.model, expert_hidden=(64, 32))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("- focal", "is not a mapping of models to their options; write lines like `stem_wide: {model.arch: stem"),
        ("a: focal", "a is 'focal', but must be a mapping of options; write lines like"),
        ("a/b: {}", "the model 'a/b' must have a name of letters, digits and _.- only; give it another."),
        ("stem: {model.dropout: 0.1}", "stem is the name of a model that is built in; give yours another."),
        ("a: {model.arch: stemm}", "a: --model.arch is 'stemm', but must be one of .*; did you mean 'stem'?"),
        ("a: {model.dropuot: 0.1}", "a: there is no option 'model.dropuot'; did you mean 'model.dropout'?"),
        ("a: {model.dropout: 3}", "a: model.dropout is 3, but must be from 0 to 0.999."),
        ("a: {model.arch: ple, model.reads: all}", "a: model.reads is an option of stem, duet, not of ple."),
        ("a: {balance.gradients: pcgard}", "a: balance.gradients is 'pcgard', but must be 'sum', 'pcgrad'"),
        ("a: {seed: 3}", "a: seed is not an option of one model, as those of balance, .* are; leave it out."),
        ("a: {sharding.plan: plan.json}", "a: sharding.plan is not an option of one model"),
        ("a: {recipe: publishd}", "a: recipe is 'publishd', but must be one of log, synthetic, .*published."),
        ("a: {alone: both}", "a: alone is 'both', but must be true or false."),
    ],
)
def test_a_wrong_model_of_a_file_is_refused_with_its_place(tmp_path: Path, text: str, sentence: str) -> None:
    with pytest.raises(UserError, match=rf"variants.yaml: {sentence}|variants.yaml {sentence}"):
        read_variants(written(tmp_path, text), tiny())


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("a: {loss.kinds: {likes: focal}}", "a: --loss.kinds names the task 'likes', but the tasks are finish, like"),
        ("a: {model.task_weights: [1]}", "a: --model.task-weights is 1.0, but needs one number above 0 for each of"),
        ("a: {sparse.group_learning_rates: {likes: 1}}", "a: --sparse.group-learning-rates names 'likes', but"),
        ("a: {model.arch: single_task, alone: false, balance.gradients: pcgrad}", "a: --balance.gradients is pcgrad,"),
        (
            "a: {data.spaces: {likes: finish}}",
            "a: --data.spaces names the task 'likes', but the tasks are finish, like",
        ),
        ("a: {sparse.learning_rate: 1}", "a: sparse.learning_rate is chosen by --tune; leave one of both out."),
    ],
)
def test_a_model_of_a_file_that_does_not_fit_the_log_is_refused_before_training(
    tmp_path: Path, log: Path, text: str, sentence: str
) -> None:
    file = written(tmp_path, text)
    with pytest.raises(UserError, match=f"variants.yaml: {sentence}"):
        request_of(tmp_path / "out", log, "--variants", file, "--models", "a,single_task", "--tune")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--recommend"], "a: data.spaces lets it validate on other rows than the other models, by which --recommend"),
        (
            ["--data.spaces", "like", "finish"],
            "a: data.spaces and --data.spaces differ in the rows that a task is test",
        ),
    ],
)
def test_models_with_spaces_of_their_own_are_told_apart_on_the_same_rows_alone(
    tmp_path: Path, log: Path, options: list[str], sentence: str
) -> None:
    file = written(tmp_path, "a: {model.arch: stem, data.spaces: {like: finish}}")
    with pytest.raises(UserError, match=f"variants.yaml: {sentence}"):
        request_of(tmp_path / "out", log, "--variants", file, "--models", "a,single_task", *options)


def test_a_comparison_takes_further_models_of_a_file_and_refuses_another_of_the_same_name(
    tmp_path: Path, log: Path
) -> None:
    def record(text: str, models: str) -> None:
        options = ("--variants", written(tmp_path, text), "--models", models, "--base", "a")
        record_options(request_of(tmp_path / "out", log, *options), 1)

    record("a: {model.dropout: 0.1}", "a")
    (tmp_path / "out" / "runs" / "a" / "seed_0").mkdir(parents=True)
    record("{a: {model.dropout: 0.1}, b: {model.dropout: 0.2}}", "a,b")
    record("{a: {model.dropout: 0.1}, b: {model.dropout: 0.3}}", "a,b")  # No run of b has begun.
    refusal = "out holds runs of a with other options, where options.model.dropout is 0.1 and not 0.3; see variants/a"
    with pytest.raises(UserError, match=rf"variants.yaml: a: .*{refusal}"):
        record("a: {model.dropout: 0.3}", "a")


def test_every_method_is_a_model_of_the_comparison() -> None:
    models = {name: each for name, each in built_in().items() if not each.alone}
    named = {(option, str(value)) for each in models.values() for option, value in each.options.items()}
    methods = {
        *(("model.arch", arch) for arch in MODELS if arch != "single_task"),
        *(("model.expert", kind) for kind in get_args(ExpertKind) if kind != STEMOptions.expert),
        *((f"model.{gate}", "True") for gate in ("feature_gate", "self_gate")),
        ("model.covariance_weight", "1.0"),
        *(("model.estimator", name) for name in get_args(Estimator) if name != ESCM2Options.estimator),
        *(
            ("loss.kinds", str({"*": kind}))
            for kind, loss in LOSSES.items()
            if loss.labels == "binary" and kind != "bce"
        ),
        ("loss.positive_weights", str({"*": 10.0})),
        *(("balance.weights", name) for name in get_args(TaskWeights) if name != "fixed"),
        *(("balance.gradients", name) for name in get_args(TaskGradients) if name != "sum"),
        ("train.best_by_task", "True"),
    }
    assert methods <= named


def test_options_of_experts_losses_and_estimators_and_a_choice_of_tables_fit_a_log(tmp_path: Path, log: Path) -> None:
    file = written(
        tmp_path,
        """
        own: {model.arch: duet, model.own_tables: [user_id]}
        groups: {model.arch: stem, model.table_groups: {finish: watched, like: watched}}
        widths: {model.arch: me_ple, model.table_widths: {finish: 4, like/tags: 0}}
        """,
    )
    models = ["own", "groups", "widths", "stem_cross_norm", "stem_self_gate", "stem_positives", "escm2_dr"]
    options = ("--variants", file, "--models", ",".join(models), "--base", "own")
    assert list(request_of(tmp_path / "out", log, *options).parts()) == models


def test_published_models_have_the_options_of_the_public_code_whatever_the_command_line_has(tmp_path: Path) -> None:
    """As config/model_config.yaml of github.com/LiangcaiSu/STEM has them for TikTok."""
    sizes = SyntheticConfig(train_rows=512, valid_rows=128, test_rows=128, missing=(0.1, 0.2))
    synthetic.generate(sizes, str(tmp_path / "log"))
    line = ["--data.path", str(tmp_path / "log"), "--out", str(tmp_path / "out"), "--base", "single_task_published"]
    line += ["--models", "stem_published,single_task_published", "--train.best-by-task", "--train.max-steps", "9"]
    line += ["--model.dropout", "0.1"]
    # As for every optimizer with moments, the user has to allow it where labels are missing.
    with pytest.raises(UserError, match=r"stem_published: .*--sparse.update-unlabeled-rows"):
        resolve_log(read_command_line(line))
    request = resolve_log(read_command_line([*line, "--sparse.update-unlabeled-rows"]))
    configs = {part.name: part.configure(request.train) for parts in request.parts().values() for part in parts}
    assert list(configs) == ["stem_published", "single_task_published/finish", "single_task_published/like"]
    for name, config in configs.items():
        rate = 1e-3 if name == "stem_published" else 1e-4
        assert (config.sparse.name, config.dense.name, config.sharding.kernel) == ("adam", "adam", "dense")
        assert config.sparse.learning_rate == config.dense.learning_rate == rate
        # Half the squared norm of all rows times 1e-6, whose gradient is a decay of 1e-6.
        assert (config.sparse.weight_decay, config.sparse.decay_whole_tables) == (1e-6, True)
        assert (config.sparse.eps, config.sparse.betas, config.dense.betas) == (1e-8, (0.9, 0.999), (0.9, 0.999))
        assert (config.data.batch_size, config.train.epochs, config.train.patience) == (4096, 20, 1)
        assert (config.train.eval_every, config.train.fresh_tables, config.train.best_by_task) == (None, False, False)
        assert (config.dense.weight_decay, config.model.dropout, config.model.embedding_dropout) == (0, 0, 0)
        assert (config.model.embedding_dim, config.model.embedding_std, config.model.embedding_l2) == (16, 1e-4, 0)
        assert config.model.expert_hidden == (512, 512, 512)  # type: ignore[attr-defined]
        # A limit of all models, and no option of a recipe.
        assert config.train.max_steps == 9
    stem = configs["stem_published"].model
    assert isinstance(stem, STEMOptions)
    assert (stem.num_layers, stem.num_shared_experts, stem.num_task_experts) == (1, 8, 1)
    assert (stem.gate_hidden, stem.tower_hidden) == ((128, 64), (128, 64))
    assert configs["single_task_published/like"].model.tower_hidden == (128, 128)
    assert built_in()["single_task_published"].text.startswith("recipe published, model.arch single_task, ")


def test_a_model_of_a_file_may_start_from_a_recipe(tmp_path: Path, log: Path) -> None:
    file = written(tmp_path, "p: {recipe: published, model.arch: ple, sparse.learning_rate: 0.0001}")
    options = ("--variants", file, "--models", "p", "--base", "p", "--sparse.update-unlabeled-rows")
    request = request_of(tmp_path / "out", log, *options)
    (part,) = request.parts()["p"]
    config = part.configure(request.train)
    assert isinstance(config.model, PLEOptions)
    assert (config.sparse.name, config.sparse.learning_rate, config.train.epochs) == ("adam", 1e-4, 20)
    record_options(request, 1)
    assert "recipe: published" in (tmp_path / "out" / "variants" / "p.yaml").read_text()
    with pytest.raises(UserError, match=r"p: sparse.learning_rate is chosen by --tune; leave one of both out."):
        request_of(tmp_path / "tuned", log, *options, "--tune")
