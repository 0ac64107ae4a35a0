"""`stem-prepare FILES`: a spec is guessed, can be edited, and prepares a log as it is."""

import json
import re
from pathlib import Path

import pytest

from stem_torchrec.config import parse_arguments
from stem_torchrec.data.schema import load_schema
from stem_torchrec.preparation.options import PrepareOptions
from stem_torchrec.preparation.prepare_log import prepare_log
from stem_torchrec.preparation.specs.spec_file import read_spec
from stem_torchrec.runtime.errors import UserError

from raw_logs import adult, aliexpress, shop, tenrec, tiktok
from raw_logs.kuairand import write_kuairand
from small_runs import run_script

REAL = Path(__file__).parent.parent / "../shared/data"
INCOME = "income=income = '>50K'"
NAMES = ",".join(adult.COLUMNS)


def options(*words: object) -> PrepareOptions:
    return parse_arguments(PrepareOptions(memory=0.5), [str(word) for word in words])


def refused(*words: object) -> str:
    with pytest.raises(UserError) as error:
        prepare_log(options(*words))
    return str(error.value)


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return adult.write_adult(tmp_path_factory.mktemp("raw"), 2000)


def test_adult_becomes_a_log_with_one_command_and_its_spec_keeps_the_comments(people: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    single = "never_married=\"marital-status\" = 'Never-married'"
    words = (people, "--label", INCOME, "--label", single, "--drop", "fnlwgt", "race", "--columns", NAMES)
    prepare_log(options(*words, "--out", log))
    schema = load_schema(str(log))
    assert list(schema.labels) == ["income", "never_married"]
    assert not {"fnlwgt", "race", "marital_status"} & {
        *schema.dense_features,
        *(f.name for f in schema.sparse_features),
    }
    text = (log / "spec.yaml").read_text()
    assert "workclass: {missing: own}  " in text
    assert re.search(r"income: income = '>50K' +# 2\d\.\d % positive\n", text)
    assert "#   race: --drop names it\n" in text
    assert "#   marital-status: labels are made from it: never_married\n" in text
    # Edited and called again, the spec is one like any other.
    edited = tmp_path / "edited.yaml"
    edited.write_text(text.replace("\n  sex:", "\n  # sex:"))
    prepare_log(options(edited, "--out", log, "--overwrite"))
    assert "sex" not in {feature.name for feature in load_schema(str(log)).sparse_features}
    assert (log / "spec.yaml").read_text() == edited.read_text()


@pytest.mark.long
def test_guess_only_writes_a_spec_that_the_next_command_takes(people: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    shown = prepare_log(options(people, "--label", "rich=col14 = '>50K'", "--guess-only", "--out", log))
    assert shown == f"wrote {log}/spec.yaml; edit it, then run:\n  stem-prepare {log}/spec.yaml --out {log}"
    assert [path.name for path in log.iterdir()] == ["spec.yaml"]
    assert list(read_spec(log / "spec.yaml").sources["log"].columns) == [f"col{i}" for i in range(15)]
    assert refused(people, "--label", "rich=col14 = '>50K'", "--guess-only", "--out", log) == (
        f"{log}/spec.yaml exists already and may have been edited; --overwrite replaces it."
    )
    prepare_log(options(log / "spec.yaml", "--out", log))
    assert list(load_schema(str(log)).labels) == ["rich"]


def test_a_label_is_never_guessed(people: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert refused(people, "--columns", NAMES, "--out", log) == (
        '--label is missing, and a label is never guessed. These columns could be one: --label income="income = '
        "'>50K'\" --label sex=\"sex = 'Male'\""
    )
    assert not log.exists()
    shown = prepare_log(options(people, "--columns", NAMES, "--guess-only", "--out", log))
    assert "note: it has no label yet. These columns could be one: --label income=" in shown
    text = (log / "spec.yaml").read_text()
    assert "#   --label income=\"income = '>50K'\"\n" in text
    with pytest.raises(UserError, match="labels"):
        read_spec(log / "spec.yaml")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--label", "incom"], "--label incom: no column is called 'incom'; did you mean 'income'?"),
        (
            ["--label", "a=incom = 1"],
            "--label a is 'incom = 1': no column is called 'incom'; did you mean 'income'?",
        ),
        (
            ["--label", "a=marital-status = 'x'"],
            "--label a is \"marital-status = 'x'\": no column is called 'marital'; did you mean 'marital-status'? The "
            'column marital-status is written "marital-status" in an expression.',
        ),
        (
            ["--label", "a=age"],
            "--label a has values from 17 to {greatest}, but must have 0, 1 or nothing; compare it, as in --label "
            'a="age >= {greatest}".',
        ),
        (
            ["--label", "a=age > 200"],
            "--label a has only the value 0 in the rows that were read; correct its expression.",
        ),
        (["--label", INCOME, "--drop", "fnlwgth"], "--drop fnlwgth is no column; did you mean 'fnlwgt'?"),
        (
            ["--columns", "a,b", "--label", "a"],
            "--columns names 2 columns, but {file} has 15; name all of them.",
        ),
        (
            ["--header-from", "{file}", "--label", "a"],
            "--columns and --header-from both name the columns; give one of them.",
        ),
    ],
)
def test_a_mistake_is_one_sentence(people: Path, tmp_path: Path, words: list[str], sentence: str) -> None:
    names = [] if words[0] == "--columns" else ["--columns", NAMES]
    given = [word.format(file=people) for word in words]
    greatest = max(int(line.split(",")[0]) for line in people.read_text().split("\n") if line)
    expected = sentence.format(file=people, greatest=greatest)
    assert refused(people, *names, *given, "--out", tmp_path / "log") == expected
    assert not list(tmp_path.iterdir())


def test_options_of_raw_files_do_not_go_with_a_spec(tmp_path: Path) -> None:
    assert refused("adult", "--label", "a=b", "--out", tmp_path / "log") == (
        "--label is for raw files, but adult is given; leave the option out and edit the spec, or give raw files."
    )


def test_names_come_from_a_file_with_a_header(tmp_path: Path) -> None:
    pairs = shop.write_shop(tmp_path, 2000)
    (tmp_path / "header.tsv").write_text("user_id\titem_id\tdepth\n")
    words = (pairs, "--header-from", tmp_path / "header.tsv", "--label", "view=depth >= 1")
    prepare_log(options(*words, "--out", tmp_path / "log"))
    schema = load_schema(str(tmp_path / "log"))
    assert schema.group == "group_user_id"
    assert [feature.name for feature in schema.sparse_features] == ["user_id", "item_id"]


def test_kuairand_is_split_by_day_and_leaves_feedback_out(tmp_path: Path) -> None:
    write_kuairand(tmp_path, 3000, 0, "pure")
    words = (tmp_path / "log_standard_*.csv", "--label", "long_view", "--label", "is_like")
    prepare_log(options(*words, "--out", tmp_path / "log"))
    spec = read_spec(tmp_path / "log/spec.yaml")
    assert spec.split.time is not None
    assert spec.split.time.by == "date"
    assert (spec.group, spec.order) == ("user_id", "time_ms")
    assert {"user_id", "video_id", "tab", "hour"} <= set(spec.features)
    assert not {"is_click", "play_time_ms", "profile_stay_time", "is_rand"} & {*spec.features, *spec.dense}


@pytest.mark.long
@pytest.mark.parametrize("name", ["tiktok", "tenrec", "aliexpress"])
def test_the_guess_for_a_public_log_prepares(name: str, tmp_path: Path) -> None:
    if name == "tiktok":
        tiktok.write_tiktok(tmp_path / tiktok.FILE, 4000, 0)
        words = [tmp_path / tiktok.FILE, "--label", "finish", "--label", "like", "--columns", ",".join(tiktok.COLUMNS)]
    elif name == "tenrec":
        words = [tenrec.write_tenrec(tmp_path, 4000, 0, "QK"), "--label", "click"]
    else:
        # Of which train.csv has 70 %.
        aliexpress.write_aliexpress(tmp_path, 6000, 0)
        words = [tmp_path / "AliExpress_NL/train.csv", "--label", "click"]
    prepare_log(options(*words, "--out", tmp_path / "log"))
    assert load_schema(str(tmp_path / "log")).splits["train"].rows > 3000


@pytest.mark.skipif(not REAL.exists(), reason="the real data is not in ../shared/data")
@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("adult/adult.data", ["--label", INCOME, "--columns", NAMES]),
        ("shop/pairs.tsv", ["--label", "view=col2 >= 1"]),
        ("KuaiRand-Pure/data/log_standard_4_22_to_5_08_pure.csv", ["--label", "long_view", "--label", "is_like"]),
    ],
)
@pytest.mark.long
def test_the_guess_for_a_real_log_prepares(file: str, words: list[str], tmp_path: Path) -> None:
    prepare_log(options(REAL / file, *words, "--out", tmp_path / "log"))
    assert load_schema(str(tmp_path / "log")).splits["valid"].rows > 1000


@pytest.mark.long
def test_the_guess_for_adult_trains(people: Path, tmp_path: Path) -> None:
    log, run = tmp_path / "log", tmp_path / "run"
    prepare_log(options(people, "--label", INCOME, "--columns", NAMES, "--out", log))
    words = ("--recipe", "tiny", "--data.path", log, "--data.batch-size", "64", "--train.max-steps", "20")
    run_script("stem_torchrec/train.py", *map(str, words), "--output-dir", str(run))
    assert json.loads((run / "metrics.json").read_text())["valid"]["income"]["auc"] > 0.6
