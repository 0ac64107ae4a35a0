"""stem-score: the probabilities of raw rows from files of every format, or one sentence for a row that is wrong."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as csv
import pyarrow.parquet as pq
import pytest
from numpy.testing import assert_allclose

from stem_torchrec.calibration.curves import PlattCurve, calibrate
from stem_torchrec.runtime.errors import DataError, UserError
from stem_torchrec.serving.bundle import Bundle, load_bundle
from stem_torchrec.serving.export_run import ExportConfig, export_run
from stem_torchrec.serving.score_file import ScoreConfig, score_file

from bundles import ROUNDING, TASKS, predictions, raw_of_valid
from stores import s3_server

ROOT = Path(__file__).parent.parent
PACKINGS = {".gz": "gzip", ".zst": "zstd"}


@pytest.fixture(scope="module")
def bundle(stem_bundle: Path) -> Bundle:
    return load_bundle(stem_bundle / "bundle-stem")


def raw_rows() -> pa.Table:
    """The raw rows of the validation split, numbered."""
    rows = raw_of_valid()
    for name in ("user", "city", "price", "tags"):
        assert 0 < rows[name].null_count < 50
    return rows.append_column("number", [list(range(len(rows)))])


def write(rows: pa.Table, file: Path) -> str:
    """Writes rows in the format of a name; returns the path."""
    packing = PACKINGS.get(file.suffix)
    kind = file.with_suffix("").suffix if packing else file.suffix
    if kind == ".parquet":
        pq.write_table(rows, file, row_group_size=37)
        return str(file)
    with pa.output_stream(str(file), compression=packing) as output:
        if kind == ".jsonl":
            # A missing value is null, or its key is left out.
            lines = [
                {name: value for name, value in row.items() if value is not None or i % 2}
                for i, row in enumerate(rows.to_pylist())
            ]
            output.write("".join(json.dumps(line) + "\n" for line in lines).encode())
        else:
            csv.write_csv(rows, output, csv.WriteOptions(delimiter="\t" if kind == ".tsv" else ","))
    return str(file)


def read(file: str) -> dict[str, list[Any]]:
    """The columns of an output."""
    if file.endswith(".jsonl"):
        lines = [json.loads(line) for line in Path(file).read_text().splitlines()]
        return {name: [line[name] for line in lines] for name in lines[0]}
    table = pq.read_table(file) if file.endswith(".parquet") else csv.read_csv(file)
    return table.to_pydict()


def test_probabilities_of_a_file_are_those_of_the_calibration(bundle: Bundle, tmp_path: Path) -> None:
    rows = raw_rows()
    calibrated = replace(bundle, curves={"buy": PlattCurve(a=1.5, b=-0.4)})
    source, target = write(rows, tmp_path / "rows.parquet"), str(tmp_path / "scores.parquet")
    score_file(ScoreConfig(input=source, output=target), calibrated)
    scored, before = read(target), bundle.score(rows)
    expected = calibrate(before["buy"].to_numpy(), calibrated.curves["buy"])
    # A curve of slope 1.5 makes a difference of rounding larger.
    assert_allclose(scored["buy"], expected, rtol=0, atol=1.5 * ROUNDING)
    assert_allclose(scored["click"], before["click"], rtol=0, atol=ROUNDING)
    assert np.abs(scored["buy"] - before["buy"].to_numpy()).min() > 1e-3


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("rows.parquet", "scores.parquet"),
        ("rows.csv", "scores.csv"),
        ("rows.tsv.gz", "scores.jsonl"),
        ("rows.jsonl.zst", "scores.jsonl"),
    ],
)
def test_the_rows_of_each_format_are_scored_as_the_run_predicts_them(
    stem_bundle: Path, bundle: Bundle, tmp_path: Path, source: str, target: str
) -> None:
    file, output = write(raw_rows(), tmp_path / source), str(tmp_path / target)
    score_file(ScoreConfig(input=file, output=output, keep=("number",), batch_rows=13), bundle)
    scored, predicted = read(output), predictions(stem_bundle, "stem")
    assert list(scored) == ["number", *TASKS]
    assert list(map(int, scored["number"])) == list(range(100))
    for task in TASKS:
        assert np.ptp(predicted[task]) > 1e-3
        np.testing.assert_allclose(scored[task], predicted[task], rtol=0, atol=ROUNDING)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([source, target])


def test_numbers_are_read_as_training_read_them_and_other_types_refused(bundle: Bundle, tmp_path: Path) -> None:
    rows = raw_rows()
    score_file(ScoreConfig(input=write(rows, tmp_path / "rows.parquet"), output=str(tmp_path / "a.jsonl")), bundle)
    # As pandas writes a column of whole numbers with a missing one, and as a file of text does.
    for name, change in {
        "floats": lambda column: pc.fill_null(column.cast(pa.float64()), float("nan")),
        "texts": lambda column: column.cast(pa.string()),
    }.items():
        other = rows.set_column(rows.column_names.index("user"), "user", change(rows["user"]))
        file = write(other, tmp_path / f"{name}.parquet")
        score_file(ScoreConfig(input=file, output=str(tmp_path / f"{name}.jsonl")), bundle)
        assert (tmp_path / f"{name}.jsonl").read_text() == (tmp_path / "a.jsonl").read_text()
    times = rows.set_column(rows.column_names.index("user"), "user", rows["user"].cast(pa.timestamp("us")))
    file = write(times, tmp_path / "times.parquet")
    with pytest.raises(UserError) as error:
        score_file(ScoreConfig(input=file, output=str(tmp_path / "new.csv"), on_bad_row="null"), bundle)
    assert str(error.value) == (
        f"{file}: column 'user' must hold int, but it is timestamp[us]; cast it where the file is written."
    )


GOOD = '{"user": 1, "city": "rome", "tags": "1|2", "time": 5, "price": 1.5}\n'


def scored_lines(bundle: Bundle, folder: Path, text: str, name: str = "rows.jsonl", **options: Any) -> list[Any]:
    (folder / name).write_text(text)
    output = folder / "scores.jsonl"
    score_file(ScoreConfig(input=str(folder / name), output=str(output), **options), bundle)
    return [json.loads(line) for line in output.read_text().splitlines()]


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ('{"user": "anna"}', "column 'user' has 'anna', which is not a whole number"),
        ('{"user": [1]}', "column 'user' has [1], which is not a whole number"),
        ('{"price": {"eur": 1}}', "column 'price' has {'eur': 1}, which is not a number"),
        ('{"city": 1.5}', "column 'city' has 1.5, which is not text"),
        ('{"user": 99999999999999999999}', "column 'user' has 99999999999999999999, which is not a whole number"),
        ("[1]", "the line is list of JSON, but must be an object"),
        ('{"user": 1', "the line is no JSON (Expecting ',' delimiter"),
        ('{"city": "\\ud800"}', "column 'city' has '\\ud800', which is not text"),
    ],
)
def test_a_row_that_is_wrong_is_named_and_no_output_is_left(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture, line: str, what: str
) -> None:
    with pytest.raises(DataError) as error:
        scored_lines(bundle, tmp_path, f"{GOOD}\n{GOOD}{line}\n{GOOD}", batch_rows=1)
    assert str(error.value).startswith(f"{tmp_path}/rows.jsonl, line 4: {what}")
    assert str(error.value).endswith("; correct it, or score the others with --on-bad-row null.")
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]

    scores = scored_lines(bundle, tmp_path, f"{GOOD}\n{GOOD}{line}\n{GOOD}", on_bad_row="null", keep=("time",))
    assert scores[2] == {"time": None, "buy": None, "click": None}
    assert scores[0] == scores[1] == scores[3]
    assert 0 < scores[0]["buy"] < 1
    assert f"warning: 1 of 4 rows have null predictions; the first is {tmp_path}/rows.jsonl, line 4: " in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('user,city,tags,time,price\n1,"a\nb",2,3,4\n1,a,2,3\n', "line 4: the line has 4 cells, not 5"),
        ("user,city,tags,time,price\n1,a,2,,4\n1,a,2,3.5,4\n", "line 3: column 'time' has '3.5', which is not a whole"),
        ('user,city,tags,time,price\n1,"a,2,3,4\n', "line 2: a quote is not closed"),
        (
            "user;city;tags;time;price\n1;a;2;3;4\n",
            "the first line has one cell; is the delimiter ';'?",
        ),
        ("user,city,tag,time,price\n1,a,2,3,4\n", "the rows have no column 'tags'; did you mean 'tag'?"),
        ("", "rows.csv is empty"),
    ],
)
def test_a_csv_file_that_is_wrong_is_refused(bundle: Bundle, tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        scored_lines(bundle, tmp_path, text, "rows.csv")
    assert f"{tmp_path}/rows.csv" in str(error.value)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["rows.csv"]


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16", "utf-16-le"])
def test_a_header_in_another_encoding_is_refused(bundle: Bundle, tmp_path: Path, encoding: str) -> None:
    (tmp_path / "rows.csv").write_bytes("user,city,tags,time,price,né\n1,a,2,3,4,5\n".encode(encoding))
    with pytest.raises(UserError, match=r"rows\.csv: the names of the columns in the first line are no UTF-8; write"):
        score_file(ScoreConfig(input=str(tmp_path / "rows.csv"), output=str(tmp_path / "new.csv")), bundle)


def test_texts_of_csv_stay_as_they_are_and_cells_mean_what_the_options_say(bundle: Bundle, tmp_path: Path) -> None:
    text = "001; rome ;1|2;5;1.5\n;?;;6;\n"
    names = "user,city,tags,time,price"
    csv_options = {"columns": names, "delimiter": ";", "nulls": ("", "?"), "trim": True}
    [first, second] = scored_lines(bundle, tmp_path, text, "rows.csv", keep=("user", "city"), **csv_options)
    assert (first["user"], first["city"]) == ("001", "rome")
    assert (second["user"], second["city"]) == (None, None)
    (tmp_path / "scores.jsonl").unlink()
    [same, missing] = scored_lines(bundle, tmp_path, GOOD + '{"time": 6}\n')
    assert [first["buy"], second["buy"]] == [same["buy"], missing["buy"]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"input": ""}, "--bundle, --input or --output is missing"),
        ({"input": "rows.dat"}, "--input rows.dat does not end as a format does; give --input-format parquet|csv|tsv"),
        ({"output": "./rows.jsonl"}, "--output ./rows.jsonl is the input; give another."),
        ({"output": "old.csv"}, "--output old.csv exists already; give another, or --overwrite."),
        ({"output": "nowhere/new.csv"}, "--output nowhere/new.csv is in a folder that does not exist"),
        ({"output": "new.csv.gz"}, "--output new.csv.gz would be packed"),
        ({"output": "bundle-stem/new.csv"}, "--output bundle-stem/new.csv is in a bundle"),
        (
            {"output": "bundle-stem/vocabulary/city.parquet", "overwrite": True},
            "--output bundle-stem/vocabulary/city.parquet is in vocabulary/ of the log",
        ),
        ({"output": "link.csv", "overwrite": True}, "--output link.csv is in a bundle"),
        ({"keep": ("buy",)}, "--keep buy is a task of the bundle"),
        ({"keep": ("usr",)}, "rows.jsonl: no row has the key 'usr'"),
        ({"delimiter": "||"}, "--delimiter is '||', but must be one character"),
        ({"input": "rows.parquet", "input_format": None}, "rows.parquet is no Parquet file, or damaged"),
        ({"input": "packed.jsonl.gz"}, "packed.jsonl.gz cannot be unpacked"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    stem_bundle: Path, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bundle-stem").symlink_to(stem_bundle / "bundle-stem")
    (tmp_path / "link.csv").symlink_to(stem_bundle / "bundle-stem/new.csv")
    for name in ("rows.jsonl", "old.csv", "rows.parquet", "packed.jsonl.gz"):
        Path(name).write_text(GOOD.replace("time", "usr2"))
    before = sorted(tmp_path.iterdir())
    with pytest.raises(UserError) as error:
        score_file(replace(ScoreConfig(input="rows.jsonl", output="new.csv"), **changes), bundle)
    assert str(error.value).startswith(message)
    assert sorted(tmp_path.iterdir()) == before


def test_a_file_without_rows_gives_one_without_rows(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("\n")
    options = ScoreConfig(input=str(tmp_path / "rows.jsonl"), output=str(tmp_path / "old.csv"), overwrite=True)
    (tmp_path / "old.csv").write_text("replaced")
    score_file(options, bundle)
    assert (tmp_path / "old.csv").read_text() == "buy,click\n"


COMMAND = """
import sys
from importlib.machinery import PathFinder

class WithoutTorchRec(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        hidden = name.partition(".")[0] in ("torchrec", "fbgemm_gpu")
        return None if hidden else super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = WithoutTorchRec
from stem_torchrec.score import main
main()
"""


def command(folder: Path, *options: str) -> list[str]:
    return [sys.executable, "-c", COMMAND, "--bundle", str(folder / "bundle-stem"), *options]


ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}


def test_the_command_is_a_part_of_a_pipeline_and_needs_no_torchrec(stem_bundle: Path, bundle: Bundle) -> None:
    # Given twice, an option is noted, but not among the rows.
    line = command(stem_bundle, "--input", "-", "--output", "-", "--batch-rows", "9", "--batch-rows", "2")
    done = subprocess.run(line, env=ENVIRONMENT, input=GOOD * 3, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    [score, *others] = [json.loads(text) for text in done.stdout.splitlines()]
    # A matrix product of other rows may round otherwise.
    assert others == [pytest.approx(score, abs=ROUNDING)] * 2
    rows = pa.table({name: [value] for name, value in json.loads(GOOD).items()})
    assert score["buy"] == pytest.approx(bundle.score(rows)["buy"][0].as_py(), abs=ROUNDING)
    assert "3 rows scored in " in done.stderr


@pytest.mark.long
def test_a_batch_is_written_before_the_next_is_read_and_the_command_ends_with_its_reader(stem_bundle: Path) -> None:
    line = command(stem_bundle, "--input", "-", "--output", "-", "--batch-rows", "1")
    with subprocess.Popen(line, env=ENVIRONMENT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for _ in range(2):
            process.stdin.write(GOOD)
            process.stdin.flush()
            assert 0 < json.loads(process.stdout.readline())["buy"] < 1
        process.stdout.close()
        process.stdin.write(GOOD)
        process.stdin.flush()
        # Its input stays open.
        assert process.wait(timeout=60) == 0


@pytest.mark.long
def test_a_wrong_row_ends_the_command_with_status_2_and_one_sentence(stem_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("user,city,tags,time,price\nanna,a,2,3,4\n")
    line = command(stem_bundle, "--input", str(tmp_path / "rows.csv"), "--output", str(tmp_path / "new.csv"))
    done = subprocess.run(line, env=ENVIRONMENT, text=True, capture_output=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"error: {tmp_path}/rows.csv, line 2: column 'user' has 'anna', which is not a whole number; correct it, or "
        "score the others with --on-bad-row null. [STEM-ROW]\n"
    )


@pytest.mark.long
def test_files_in_a_store_are_scored(stem_bundle: Path, bundle: Bundle, tmp_path: Path) -> None:
    with s3_server() as (_, store):
        store.put(write(raw_rows(), tmp_path / "rows.csv.gz"), "bucket/rows.csv.gz")
        store.put(write(raw_rows(), tmp_path / "rows.parquet"), "bucket/rows.parquet")
        for name in ("rows.csv.gz", "rows.parquet"):
            score_file(ScoreConfig(input=f"s3://bucket/{name}", output=f"s3://bucket/{name}.jsonl"), bundle)
        with store.open("bucket/rows.csv.gz.jsonl") as file, store.open("bucket/rows.parquet.jsonl") as other:
            assert file.read() == other.read()
        with store.open("bucket/bad.jsonl", "w") as file:
            file.write(GOOD + '{"user": "anna"}')
        with pytest.raises(DataError):
            score_file(ScoreConfig(input="s3://bucket/bad.jsonl", output="s3://bucket/new.csv", batch_rows=1), bundle)
        assert not store.exists("bucket/new.csv")


@pytest.mark.long
@pytest.mark.parametrize(
    ("source", "target"), [("parquet", "csv"), ("csv", "parquet"), ("jsonl", "jsonl"), ("csv.gz", "tsv")]
)
def test_memory_does_not_grow_with_the_file(stem_bundle: Path, tmp_path: Path, source: str, target: str) -> None:
    peaks = {}
    for times in (1, 20):
        file, output = tmp_path / f"{times}.{source}", tmp_path / f"{times}.out.{target}"
        rows = write_repeated(raw_rows(), file, 300 * times)
        line = command(stem_bundle, "--input", str(file), "--output", str(output))
        line[2] = COMMAND + "import resource; print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
        done = subprocess.run(line, env=ENVIRONMENT, text=True, capture_output=True)
        assert done.returncode == 0, done.stderr
        peaks[times] = int(done.stdout)
        if target == "parquet":
            assert pq.read_metadata(output).num_rows == rows
        else:
            with output.open() as scores:
                assert sum(1 for _ in scores) == rows + (target != "jsonl")
    # KiB: 600,000 rows of 9 columns are 50 MB in memory, and their scores 5 MB.
    assert peaks[20] - peaks[1] < 30_000


def write_repeated(rows: pa.Table, file: Path, times: int) -> int:
    """Writes rows many times into one file; returns how many it has then."""
    if file.suffix == ".parquet":
        many = pa.concat_tables([rows] * 300)
        with pq.ParquetWriter(file, rows.schema) as writer:
            for _ in range(times // 300):
                writer.write_table(many)
    else:
        small = Path(write(rows, file.with_name(f"small.{file.name}")))
        with pa.input_stream(str(small)) as stream, pa.output_stream(str(file)) as output:
            text = stream.read()
            head = b"" if ".jsonl" in file.name else text[: text.index(b"\n") + 1]
            output.write(head)
            for _ in range(times):
                output.write(text[len(head) :])
    return times * len(rows)


def test_a_log_without_transforms_is_scored_from_its_columns(tmp_path: Path) -> None:
    data = ROOT / "tests" / "data"
    export_run(ExportConfig(run=str(data / "run_format_1"), log=str(data / "log"), out=str(tmp_path / "bundle")))
    bundle = load_bundle(tmp_path / "bundle")
    assert not bundle.raw_types
    dense = {name: [0.5, 1.0, 2.0] for name in bundle.columns.dense}
    rows = pa.table({"item_id": [1, None, 2], "tags": [[1, 2], None, []]} | dense)
    files = [write(rows, tmp_path / name) for name in ("rows.parquet", "rows.jsonl")]
    texts = rows.set_column(1, "tags", pa.array(["[1, 2]", None, "[]"]))
    files.append(write(texts, tmp_path / "rows.csv"))
    expected = bundle.score(rows)
    for file in files:
        score_file(ScoreConfig(input=file, output=f"{file}.out.parquet"), bundle)
        assert pq.read_table(f"{file}.out.parquet").equals(expected)
    # A row has the same values whichever rows it is read with, and so the same probabilities but for rounding.
    texts = texts.set_column(1, "tags", pa.array(["[1, 2]", "003", "nan"])).set_column(
        0, "item_id", [["01", "nan", "2"]]
    )
    outputs = []
    for batch_rows in (1, 3):
        output = tmp_path / f"{batch_rows}.parquet"
        file = write(texts, tmp_path / "texts.csv")
        score_file(ScoreConfig(input=file, output=str(output), batch_rows=batch_rows), bundle)
        outputs.append(pq.read_table(output))
    alone, together = (np.stack([column.to_numpy() for column in output.columns]) for output in outputs)
    assert_allclose(alone, together, rtol=0, atol=ROUNDING)
    outside = {name: values[:1] for name, values in rows.to_pydict().items()} | {"item_id": [10**6]}
    with pytest.raises(DataError, match=r"line 1: column 'item_id': 1000000 is not an id in \[0, "):
        scored_lines(bundle, tmp_path, json.dumps({name: value for name, [value] in outside.items()}), "bad.jsonl")
