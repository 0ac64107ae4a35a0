"""The search for a setting: trials that go on, side by side, and what they leave."""

import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from stem_torchrec.config_file import load_config
from stem_torchrec.data import synthetic
from stem_torchrec.errors import UserError
from stem_torchrec.recipes import tiny
from stem_torchrec.tune import SPACE, main, read_command_line, to_space

SPACE_FILE = """\
sparse.learning_rate: {low: 1e-2, high: 1e-1, log: true}
model.num_shared_experts: {low: 1, high: 2}
model.gate_input: [sum, task]
"""


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("log") / "log"
    synthetic.ensure(tiny().data.synthetic, str(folder))
    return folder


def line(log: Path, out: Path, trials: int) -> list[str]:
    space = out.with_name("space.yaml")
    space.write_text(SPACE_FILE)
    run = ["--recipe", "tiny", "--data.path", str(log), "--train.max-steps", "8", "--train.eval-every", "4"]
    return [*run, "--trials", str(trials), "--space", str(space), "--out", str(out)]


def test_a_study_goes_on_and_leaves_the_best_setting(
    log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "study"
    for trials in (2, 3):
        monkeypatch.setattr(sys, "argv", ["tune.py", *line(log, out, trials)])
        main()
    said = capsys.readouterr().out.splitlines()
    assert [text.split(":")[0] for text in said] == ["trial 0, 1 of 2", "trial 1, 2 of 2", "trial 2, 3 of 3"]
    rows = pq.read_table(out / "trials.parquet").to_pylist()
    assert len(rows) == 3
    (best,) = (row for row in rows if row["best"])
    assert best["score"] == max(row["score"] for row in rows)
    config = load_config(str(out / "best.yaml"))
    assert config.sparse.learning_rate == best["sparse.learning_rate"]
    assert config.model.num_shared_experts == best["model.num_shared_experts"]
    assert config.train.eval_every == 4
    assert [folder.name for folder in (out / "trials").iterdir()] == [f"{best['trial']:04d}"]


def test_ranks_share_the_trials(log: Path, tmp_path: Path) -> None:
    out = tmp_path / "study"
    script = [str(Path(__file__).parent.parent / "stem_torchrec" / "tune.py"), *line(log, out, 4), "--keep-runs"]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", *script]
    done = subprocess.run(
        command, text=True, capture_output=True, timeout=300, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr
    rows = pq.read_table(out / "trials.parquet").to_pylist()
    # A rank may have begun another while the fourth ended.
    assert 4 <= sum(row["state"] in ("COMPLETE", "PRUNED") for row in rows) <= 5
    assert len(list((out / "trials").iterdir())) == len(rows)


@pytest.mark.parametrize(
    ("space", "sentence"),
    [
        ("model.dropuot: [0.1]", "there is no option 'model.dropuot' to search over"),
        ("model.dropout: 0.1", "model.dropout is 0.1, but must be a list, or a mapping with low and high"),
        ("model.dropout: {low: 0.1, high: 3}", r"--model.dropout is 3.*, but must be from 0 to 0.999"),
        ("model.dropout: [x]", "a value of the search space does not fit: could not convert string to float: 'x'"),
        ("- 1", "is no mapping of options to choices"),
        ("model.dropout: {low: 0.3, high: 0.1}", "model.dropout is .*, which is no range"),
    ],
)
def test_a_wrong_space_is_one_sentence(space: str, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "space.yaml").write_text(space)
    with pytest.raises(UserError, match=sentence):
        read_command_line(["--recipe", "tiny", "--out", "x", "--space", str(tmp_path / "space.yaml")])


def test_the_published_space_fits_the_configuration() -> None:
    assert list(to_space(SPACE, tiny(), "SPACE")) == list(SPACE)


def test_another_search_does_not_go_into_the_folder(
    log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "study"
    monkeypatch.setattr(sys, "argv", ["tune.py", *line(log, out, 1)])
    main()
    monkeypatch.setattr(sys, "argv", ["tune.py", *line(log, out, 1), "--model.arch", "mmoe"])
    with pytest.raises(SystemExit, match=r"^2$"):
        main()
    assert "holds a search of other options or another space; give another --out." in capsys.readouterr().err
