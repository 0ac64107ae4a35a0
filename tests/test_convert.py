"""A run converted to the other layout predicts the same bits, or is refused with nothing left behind."""

import contextlib
import dataclasses
import io
import sys
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch.distributed as dist

from stem_torchrec import convert
from stem_torchrec.config import SyntheticConfig
from stem_torchrec.data import synthetic
from stem_torchrec.runtime.errors import UserError
from stem_torchrec.training.configuration import load_config
from stem_torchrec.training.recipes import tiny
from stem_torchrec.training.run_evaluation import EvaluateConfig, evaluate_run
from stem_torchrec.training.trainer import train
from stem_torchrec.transfer.convert_layout import ConvertConfig, convert_run

from distributed import run_ranks
from runs import this_process


@dataclass
class Converted:
    """What two ranks converted, and what they printed and raised."""

    folder: Path
    messages: dict[str, str]
    output: str


def convert_on_two_ranks(folder: Path) -> tuple[dict[str, str], str]:
    """Trains a run, converts it to packed and back, evaluates all three; refusals and what was printed."""
    process = this_process()
    config = tiny()
    log = str(folder / "log")
    if process.is_first:
        synthetic.ensure(SyntheticConfig(train_rows=2048, valid_rows=515, test_rows=1), log)
    dist.barrier()
    config = dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, path=log),
        # Without the rule, evaluation is table_wise in all layouts: the planner might sum bags in another order.
        sharding=dataclasses.replace(config.sharding, type="table_wise", rules=("shared/*=row_wise",)),
        output_dir=str(folder / "trained"),
    )
    train(config, process)
    with contextlib.redirect_stdout(io.StringIO()) as output:
        convert_run(ConvertConfig(run=str(folder / "trained"), out=str(folder / "packed")), process)
        convert_run(ConvertConfig(run=str(folder / "packed"), layout="split", out=str(folder / "back")), process)
    for run in ("trained", "packed", "back"):
        evaluate_run(EvaluateConfig(run=str(folder / run), predictions=str(folder / f"{run}-predictions")), process)

    messages = {}
    for name, wrong in {
        "no options": ConvertConfig(),
        "no run": ConvertConfig(run=str(folder / "nowhere"), out=str(folder / "new")),
        "the same": ConvertConfig(run=str(folder / "packed"), out=str(folder / "new")),
        "out exists": ConvertConfig(run=str(folder / "trained"), out=str(folder / "packed")),
        "no weights": ConvertConfig(run=str(folder / "cut off"), out=str(folder / "new")),
        "damaged": ConvertConfig(run=str(folder / "damaged"), out=str(folder / "new")),
        "half of .metadata": ConvertConfig(run=str(folder / "halved"), out=str(folder / "new")),
    }.items():
        if process.is_first and name in ("no weights", "damaged", "half of .metadata"):
            source, metadata = Path(wrong.run), (folder / "trained/best/.metadata").read_bytes()
            (source / "best").mkdir(parents=True)
            for file in ("config.yaml", "schema.json"):
                (source / file).write_bytes((folder / "trained" / file).read_bytes())
            if name != "no weights":
                rest = metadata if name == "damaged" else metadata[: len(metadata) // 2]
                (source / "best/.metadata").write_bytes(rest)
        dist.barrier()
        with pytest.raises(UserError) as error:
            convert_run(wrong, process)
        messages[name] = str(error.value).replace(f"{folder}/", "")
    return messages, output.getvalue()


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Converted:
    folder = tmp_path_factory.mktemp("converted")
    [(messages, output), (other_messages, _)] = run_ranks(2, convert_on_two_ranks, folder)
    assert messages == other_messages
    return Converted(folder, messages, output)


@pytest.mark.parametrize("run", ["packed", "back"])
def test_a_converted_run_predicts_the_same_bits(converted: Converted, run: str):
    trained, new = (pq.read_table(converted.folder / f"{name}-predictions") for name in ("trained", run))
    assert len(trained) == 515
    assert new.equals(trained)
    for file in ("schema.json", "metrics.json"):
        assert (converted.folder / run / file).read_text() == (converted.folder / "trained" / file).read_text()
    config, before = (load_config(str(converted.folder / name / "config.yaml")) for name in (run, "trained"))
    assert config.model == dataclasses.replace(before.model, layout="packed" if run == "packed" else "split")
    assert config.sharding.rules == ()
    assert {path.name for path in (converted.folder / run).iterdir()} == {
        "best",
        "config.yaml",
        "metrics.json",
        "schema.json",
        "start.json",
    }


def test_the_command_prints_what_the_new_run_does_not_take_over(converted: Converted):
    assert "note: --sharding.rules and .plan name tables of the other layout" in converted.output
    assert (
        "note: to train the new run, choose --sparse.name adagrad or sgd: rowwise_adagrad couples" in converted.output
    )


@pytest.mark.parametrize(
    ("case", "message"),
    [
        (
            "no options",
            "--run or --out is missing; give the run to convert and the new folder: --run RUN --out NEWRUN.",
        ),
        ("no run", "there is no configuration 'nowhere/config.yaml'; a run writes one as config.yaml in its folder."),
        ("the same", "packed is packed already; give the other --layout."),
        ("out exists", "packed exists already; give another --out, or delete it."),
        ("no weights", "cut off/best holds no weights; a training run writes them at its first evaluation."),
        ("damaged", "damaged/best cannot be read: [Errno 2] No such file or directory: 'damaged/best/__0_0.distcp'"),
        ("half of .metadata", "halved/best cannot be read: pickle data was truncated"),
    ],
)
def test_a_run_that_cannot_be_converted_leaves_no_folder(converted: Converted, case: str, message: str):
    assert converted.messages[case] == message
    assert not list(converted.folder.glob("new*"))


def test_the_command_converts_and_answers_a_mistake_in_one_sentence(
    converted: Converted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    options = ["--run", str(converted.folder / "trained"), "--layout", "packed", "--out", str(tmp_path / "packed")]
    monkeypatch.setattr(sys, "argv", ["convert.py", *options])
    convert.main()
    assert f"{tmp_path / 'packed'} is {converted.folder / 'trained'} in the packed layout" in capsys.readouterr().out
    assert (tmp_path / "packed" / "best" / ".metadata").exists()
    with pytest.raises(SystemExit, match=r"^2$"):
        convert.main()
    sentence = f"{tmp_path / 'packed'} exists already; give another --out, or delete it."
    assert capsys.readouterr().err == f"error: {sentence} [STEM-TRANSFER]\n"
