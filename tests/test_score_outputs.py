"""What stem-score writes: files that are whole, also if two commands write the same one."""

from pathlib import Path

import pyarrow as pa
import pytest

from stem_torchrec.serving.score_outputs import open_output


def test_two_commands_with_one_output_write_two_files_and_the_last_one_wins(tmp_path: Path) -> None:
    output, other = tmp_path / "scores.csv", tmp_path / ".new.scores.csv"
    other.write_text("of the user")
    with open_output(str(output), "csv") as first:
        first.write(pa.table({"buy": [0.1]}))
        with open_output(str(output), "csv") as second:
            second.write(pa.table({"buy": [0.2]}))
        assert output.read_text() == "buy\n0.2\n"
        first.write(pa.table({"buy": [0.3]}))
    assert output.read_text() == "buy\n0.1\n0.3\n"
    assert other.read_text() == "of the user"
    assert sorted(tmp_path.iterdir()) == [other, output]


@pytest.mark.parametrize(
    ("column", "texts"),
    [
        (pa.array([[1.0, float("nan")], [float("-inf")], None]), ["[1.0, null]", "[null]", "null"]),
        (pa.array([{"x": float("inf"), "y": [0.5]}]), ['{"x": null, "y": [0.5]}']),
        (pa.array([float("nan"), 0.5]), ["null", "0.5"]),
    ],
)
def test_json_lines_have_null_for_what_json_lacks(tmp_path: Path, column: pa.Array, texts: list[str]) -> None:
    with open_output(str(tmp_path / "scores.jsonl"), "jsonl") as output:
        output.write(pa.table({"kept": column}))
    lines = (tmp_path / "scores.jsonl").read_text().splitlines()
    assert lines == [f'{{"kept": {text}}}' for text in texts]
