"""stem-apply-delta brings copies and bundles to a state of the trainer, or refuses and changes nothing."""

import hashlib
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from stem_torchrec.calibration.calibration_file import CALIBRATION_FILE
from stem_torchrec.config import DeltaConfig
from stem_torchrec.data.schema import load_schema
from stem_torchrec.deltas.log_files import LogFiles, write_vocabulary
from stem_torchrec.deltas.manifest import (
    MANIFEST_FILE,
    Delta,
    DeltaFile,
    DeltaManifest,
    Piece,
    complete_numbers,
    delta_path,
    manifest_text,
    read_delta,
)
from stem_torchrec.deltas.row_files import Rows, encode
from stem_torchrec.runtime.errors import DamagedError, DivergedError, UserError
from stem_torchrec.runtime.paths import exchange
from stem_torchrec.server.served_bundle import open_bundle
from stem_torchrec.serving import bundle, manifest, patch_bundle
from stem_torchrec.serving.apply_deltas import ApplyConfig, apply_deltas
from stem_torchrec.serving.bundle import load_bundle
from stem_torchrec.serving.export_run import ExportConfig, export_run
from stem_torchrec.serving.table_file import create_tables
from stem_torchrec.training.callbacks import Callback
from stem_torchrec.training.loop import StepOutput, TrainLoop
from stem_torchrec.training.recipes import tiny
from stem_torchrec.training.trainer import Trainer

from bundles import MODELS, raw_of_valid, scores
from distributed import run_ranks
from reference import TABLES
from runs import this_process
from shipments import edit_delta, same, weights_of_copy

Weights = dict[str, torch.Tensor]


class KeepWeights(Callback):
    """Keeps all weights at each pause."""

    def __init__(self) -> None:
        self.trainer: Trainer | None = None
        self.kept: dict[int, Weights] = {}

    def on_pause(self, loop: TrainLoop) -> None:
        assert self.trainer is not None
        state = self.trainer.model.state_dict()
        tensors = {n: w.local_shards()[0].tensor if hasattr(w, "local_shards") else w for n, w in state.items()}
        self.kept[loop.state.step] = {n.removeprefix("model."): w.detach().clone() for n, w in tensors.items()}


def train_and_ship(folder: Path, name: str, precision: str = "fp32") -> dict[int, Weights]:
    config, keep = tiny(), KeepWeights()
    config = replace(
        config,
        data=replace(config.data, path=str(folder / "log"), batch_size=64),
        model=MODELS["stem"],
        train=replace(config.train, epochs=2, log_every=100),
        delta=DeltaConfig(steps=4, precision=precision),
        output_dir=str(folder / name),
    )
    keep.trainer = Trainer(config, this_process(), callbacks=[keep])
    keep.trainer.run()
    return keep.kept


@pytest.fixture(scope="module")
def shipped(stem_bundle: Path) -> tuple[Path, dict[int, Weights]]:
    """The folder of the run `ship` and its weights by step: deltas 0, 1 and 2 are of the steps 4, 8 and 10."""
    [kept] = run_ranks(1, train_and_ship, stem_bundle, "ship")
    return stem_bundle, kept


def train_to_a_loss_that_is_not_finite(folder: Path) -> str:
    config = tiny()

    class Spoil(Callback):
        def after_step(self, loop: TrainLoop, output: StepOutput) -> bool:
            if loop.state.step == 3:
                with torch.no_grad():
                    next(w for n, w in trainer.model.named_parameters() if "towers" in n).fill_(torch.nan)
            return False

    config = replace(
        config,
        data=replace(config.data, path=str(folder / "log"), batch_size=64),
        model=MODELS["stem"],
        train=replace(config.train, log_every=100),
        delta=DeltaConfig(steps=4),
        output_dir=str(folder / "spoiled"),
    )
    trainer = Trainer(config, this_process(), callbacks=[Spoil()])
    with pytest.raises(DivergedError) as error:
        trainer.run()
    return str(error.value)


def test_a_loss_that_is_not_finite_is_not_followed_by_a_delta(stem_bundle: Path) -> None:
    [message] = run_ranks(1, train_to_a_loss_that_is_not_finite, stem_bundle)
    assert "the loss at step 4 is not finite" in message
    assert complete_numbers(stem_bundle / "spoiled/deltas") == []


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def edit(folder: Path, **fields: Any) -> None:
    """Changes fields of the manifest.json of a bundle."""
    path = folder / MANIFEST_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def refused(delta: Path, to: Path, **options: Any) -> str:
    with pytest.raises(UserError) as error:
        apply_deltas(ApplyConfig(str(delta), str(to), **options))
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_copy_is_a_run_folder_with_the_weights_of_each_delta(shipped: Any, tmp_path: Path) -> None:
    folder, kept = shipped
    for number, step in enumerate((4, 8, 10)):
        assert apply_deltas(ApplyConfig(str(folder / "ship/deltas"), str(tmp_path / "copy"), until=number)) == 1
        assert same(weights_of_copy(tmp_path / "copy"), kept[step])
    assert apply_deltas(ApplyConfig(str(folder / "ship/deltas"), str(tmp_path / "copy"))) == 0
    for name in ("config.yaml", "schema.json"):
        assert (tmp_path / "copy" / name).read_bytes() == (folder / "ship" / name).read_bytes()
    assert {path.name for path in (tmp_path / "copy/vocabulary").iterdir()} == {
        path.name for path in (folder / "log/vocabulary").iterdir()
    }


@pytest.mark.parametrize(
    ("tables", "run", "tasks"),
    [
        ("fp32", "ship", ()),
        *(
            pytest.param(*case, marks=pytest.mark.long)
            for case in [("fp16", "ship", ("click",)), ("int8", "ship", ()), ("int8", "ship-int8", ("buy",))]
        ),
    ],
)
def test_a_bundle_gets_the_bytes_that_exporting_at_that_step_gives(
    shipped: Any, tmp_path: Path, tables: Any, run: str, tasks: tuple[str, ...]
) -> None:
    folder, _ = shipped
    if run != "ship":
        run_ranks(1, train_and_ship, folder, run, "int8")
    patched, exported = tmp_path / "patched", tmp_path / "exported"
    if tables == "fp32":
        shutil.copytree(folder / "bundle-stem", patched)
    else:
        export_run(ExportConfig(run=str(folder / "stem"), out=str(patched), tables=tables, tasks=tasks))
    before = open_bundle(patched)
    old = scores(before.bundle.score(raw_of_valid()))
    assert apply_deltas(ApplyConfig(str(folder / run / "deltas"), str(patched), until=1)) == 2
    assert apply_deltas(ApplyConfig(str(folder / run / "deltas" / "000002"), str(patched))) == 1
    # The one that was loaded before goes on.
    assert (scores(before.bundle.score(raw_of_valid())) == old).all()
    # Both runs have trained the same weights.
    apply_deltas(ApplyConfig(str(folder / "ship/deltas"), str(tmp_path / "copy")))
    export_run(ExportConfig(run=str(tmp_path / "copy"), out=str(exported), tables=tables, tasks=tasks))
    assert same(load_file(patched / "tables.safetensors"), load_file(exported / "tables.safetensors"))
    of_programs = [torch.export.load(bundle / "model.pt2").state_dict for bundle in (patched, exported)]
    assert same(*of_programs)
    after, expected = open_bundle(patched), load_bundle(exported)
    assert after.version != before.version
    assert (scores(after.bundle.score(raw_of_valid())) == scores(expected.score(raw_of_valid()))).all()
    assert after.bundle.manifest.run["delta"]["number"] == 2
    # A bundle that is exported from a copy is at the delta of the copy.
    if run == "ship":
        of_copy, of_deltas = expected.manifest.run, after.bundle.manifest.run
        assert {name: of_copy[name] for name in ("folder", "step", "delta")} == of_deltas
    assert apply_deltas(ApplyConfig(str(folder / "ship/deltas"), str(exported))) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"patched", "exported", "copy"}


def test_missing_repeated_and_foreign_deltas_are_refused_by_number(shipped: Any, tmp_path: Path) -> None:
    folder, _ = shipped
    deltas, copy = tmp_path / "deltas", tmp_path / "copy"
    shutil.copytree(folder / "ship/deltas", deltas)
    assert "delta 0 is missing: " in refused(deltas / "000001", copy)
    apply_deltas(ApplyConfig(str(deltas), str(copy), until=0))
    assert refused(deltas / "000002", copy) == (f"delta 1 is missing: {copy} is at delta 0; apply those between first.")
    shutil.move(deltas / "000001", tmp_path / "elsewhere")
    assert refused(deltas, copy) == f"delta 1 is missing: {copy} is at delta 0; apply those between first."
    assert refused(deltas, tmp_path / "other").startswith("delta 1 is missing: ")
    assert refused(deltas, copy, until=1).startswith(f"delta 1 is missing in {deltas}, which has 0 to 2")
    shutil.move(tmp_path / "elsewhere", deltas / "000001")
    apply_deltas(ApplyConfig(str(deltas / "000001"), str(copy)))
    assert refused(deltas / "000001", copy) == f"{copy} has delta 1 already: it is at delta 1; give a later one."
    assert refused(deltas, copy, until=0).startswith(f"{copy} is at delta 1, and none leads back to 0; ")
    edit_delta(deltas / "000002", chain="another", run="runs/other")
    assert refused(deltas, copy).startswith(
        f"the deltas in {deltas} are of the run runs/other and {copy} has those of {folder}/ship; give their folder"
    )
    edit_delta(deltas / "000002", chain=read_delta(deltas / "000001").manifest.chain)
    edit_delta(deltas / "000002", base="0" * 64)
    assert "delta 2" in refused(deltas, copy)
    assert "does not follow the delta 1" in refused(deltas, copy)


def test_damage_is_named_and_changes_nothing(shipped: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, kept = shipped
    deltas, copy, bundle = tmp_path / "deltas", tmp_path / "copy", tmp_path / "bundle"
    shutil.copytree(folder / "ship/deltas", deltas)
    shutil.copytree(folder / "bundle-stem", bundle)
    for target in (copy, bundle):
        apply_deltas(ApplyConfig(str(deltas), str(target), until=1))
    files = sorted((deltas / "000002").glob("*.safetensors"))
    assert len(files) == 2
    version = open_bundle(bundle).version
    for file, target in zip(files, (copy, bundle), strict=True):
        whole = file.read_bytes()
        file.write_bytes(bytes([*whole[:-1], whole[-1] ^ 1]))
        with pytest.raises(DamagedError, match=f"{file} is damaged .* copy delta 2 again"):
            apply_deltas(ApplyConfig(str(deltas), str(target)))
        file.write_bytes(whole)
    assert same(weights_of_copy(copy), kept[8])
    monkeypatch.setattr(patch_bundle, "_write_log_files", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        apply_deltas(ApplyConfig(str(deltas), str(bundle)))
    monkeypatch.undo()
    assert open_bundle(bundle).version == version
    for target in (copy, bundle):
        assert apply_deltas(ApplyConfig(str(deltas), str(target))) == 1
    assert same(weights_of_copy(copy), kept[10])
    assert {path.name for path in tmp_path.iterdir()} == {"deltas", "copy", "bundle"}


def test_a_damaged_copy_or_bundle_is_not_given_new_checksums(
    shipped: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = shipped
    deltas, copy, patched = folder / "ship/deltas", tmp_path / "copy", tmp_path / "patched"
    shutil.copytree(folder / "bundle-stem", patched)
    for target in (copy, patched):
        apply_deltas(ApplyConfig(str(deltas), str(target), until=1))
    # As for tables that are too large to be read whenever a bundle is loaded.
    monkeypatch.setattr(manifest, "_HASHED_TABLES", 0)
    for file in (copy / "best/__0_0.distcp", patched / "tables.safetensors"):
        content = bytearray(file.read_bytes())
        middle = len(content) // 2
        # Wider than the gaps between tensors.
        content[middle : middle + 512] = bytes(512 * [170])
        file.write_bytes(content)
    for target in (copy, patched):
        with pytest.raises(DamagedError, match=str(target)):
            apply_deltas(ApplyConfig(str(deltas), str(target)))


def ship_shrunk_tables(deltas: Path, feature: str, rows: int) -> Weights:
    """Adds a delta after the last, in which the tables of a feature have fewer rows; returns these by name."""
    numbers = complete_numbers(deltas)
    last, folder = read_delta(delta_path(deltas, numbers[-1])), delta_path(deltas, numbers[-1] + 1)
    tables = [replace(t, rows=min(t.rows, rows)) if t.name.endswith(f"/{feature}") else t for t in last.manifest.tables]
    shrunk = [
        Rows(t.name, 0, torch.arange(t.rows), torch.randn(t.rows, t.columns))
        for t, old in zip(tables, last.manifest.tables, strict=True)
        if t != old
    ]
    contents = {
        "rows": b"".join(encode(shrunk, last.manifest.row_format)), last.manifest.dense: last.read(last.manifest.dense)
    }  # fmt: skip
    manifest = replace(
        last.manifest,
        number=numbers[-1] + 1,
        base=last.sha256,
        tables=tuple(tables),
        pieces=tuple(Piece(r.table, "rows", 0, r.weights.shape[1], rows, 0) for r in shrunk),
        files={name: DeltaFile(len(content), sha(content)) for name, content in contents.items()},
    )
    folder.mkdir()
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    (folder / MANIFEST_FILE).write_text(manifest_text(manifest))
    return {each.table: each.weights for each in shrunk}


def to_fp16(bundle: Path) -> None:
    """Gives a bundle tables of fp16."""
    written = manifest.read_manifest(bundle)
    tables = {name: table.half() for name, table in load_file(bundle / manifest.TABLES_FILE).items()}
    filled = create_tables(bundle / manifest.TABLES_FILE, written.tables, "fp16")
    for name, table in tables.items():
        filled[name].copy_(table)
    files = written.files | manifest.file_entries(bundle, [manifest.TABLES_FILE])
    manifest.write_manifest(bundle, replace(written, precision="fp16", files=files))


def test_tables_that_have_become_smaller_lose_their_last_rows_in_copies_and_bundles(
    shipped: Any, tmp_path: Path
) -> None:
    """Also where the same command applies earlier deltas, which have rows behind the new end; fp16 is rounded once."""
    folder, kept = shipped
    deltas, copy, bundle = tmp_path / "deltas", tmp_path / "copy", tmp_path / "bundle"
    shutil.copytree(folder / "ship/deltas", deltas)
    shutil.copytree(folder / "bundle-stem", bundle)
    to_fp16(bundle)
    for target in (copy, bundle):
        apply_deltas(ApplyConfig(str(deltas), str(target), until=1))
    shrunk = ship_shrunk_tables(deltas, "user", 5)
    for target in (copy, bundle):
        assert apply_deltas(ApplyConfig(str(deltas), str(target))) == 2
    expected = {n: w for n, w in kept[10].items() if not n.endswith("/user.weight")}
    expected |= {f"{TABLES}.{name}.weight": weight for name, weight in shrunk.items()}
    assert same(weights_of_copy(copy), expected)
    served = load_file(bundle / manifest.TABLES_FILE)
    assert len(shrunk) == 3
    assert same(served, {name: expected[f"{TABLES}.{name}.weight"].half() for name in served})
    rows = {feature.name: feature.num_embeddings for feature in load_schema(str(bundle)).sparse_features}
    assert rows["user"] == 5


def test_curves_that_the_last_delta_does_not_have_are_removed(shipped: Any, tmp_path: Path) -> None:
    folder, _ = shipped
    copy = tmp_path / "copy"
    apply_deltas(ApplyConfig(str(folder / "ship/deltas"), str(copy), until=1))
    (copy / CALIBRATION_FILE).write_text("{}")
    apply_deltas(ApplyConfig(str(folder / "ship/deltas"), str(copy)))
    assert not (copy / CALIBRATION_FILE).exists()


def test_a_bundle_that_is_replaced_while_it_is_loaded_is_loaded_again(
    shipped: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = shipped
    loaded, new = tmp_path / "bundle", tmp_path / "new"
    for target in (loaded, new):
        shutil.copytree(folder / "bundle-stem", target)
    apply_deltas(ApplyConfig(str(folder / "ship/deltas"), str(new)))
    expected, load = scores(load_bundle(new).score(raw_of_valid())), bundle.load_program
    swaps = iter([True])

    def load_program(*args: Any, **options: Any) -> Any:
        program = load(*args, **options)
        if next(swaps, False):
            exchange(loaded, new)
        return program

    monkeypatch.setattr(bundle, "load_program", load_program)
    assert (scores(load_bundle(loaded).score(raw_of_valid())) == expected).all()


def test_what_deltas_cannot_change_is_refused(shipped: Any, tmp_path: Path) -> None:
    folder, _ = shipped
    deltas, bundle, other = folder / "ship/deltas", tmp_path / "bundle", tmp_path / "000000"
    shutil.copytree(folder / "bundle-stem", bundle)
    shutil.copytree(deltas / "000000", other)
    edit_delta(other, precision="int8")
    assert "are in int8, and the tables of" in refused(other, bundle)
    assert "are in int8, and a copy has fp32" in refused(other, tmp_path / "copy")
    tables = json.loads((bundle / MANIFEST_FILE).read_text())["tables"]
    edit(bundle, compiled={"torch": "2.13.0", "processor": "any", "name": ""})
    assert "has a compiled program, in which weights cannot be replaced" in refused(deltas, bundle)
    run = json.loads((bundle / MANIFEST_FILE).read_text())["run"]
    edit(bundle, compiled=None, run=run | {"steps": {"buy": 8, "click": 16}})
    assert "has several models, as its run kept weights of each task's best evaluation" in refused(deltas, bundle)
    renamed = [{**table, "name": f"x{table['name']}"} for table in tables]
    edit(bundle, run=run | {"steps": {"buy": 8, "click": 8}}, tables=renamed)
    assert "has the table xbuy/city of 8 columns, and the deltas in" in refused(deltas, bundle)
    assert "is a run that trained, not a copy made of deltas" in refused(deltas, folder / "stem")
    assert "is neither a copy nor a bundle" in refused(deltas, folder / "log")
    assert "holds no delta" in refused(folder / "log", tmp_path / "copy")
    with pytest.raises(UserError, match="--delta or --to is missing"):
        apply_deltas(ApplyConfig("", "copy"))


def test_new_entries_of_a_vocabulary_are_shipped_alone_and_added_once(tmp_path: Path) -> None:
    log, run, copy = (tmp_path / name for name in ("log", "run", "copy"))
    (log / "vocabulary").mkdir(parents=True)
    run.mkdir()
    (run / CALIBRATION_FILE).write_text("{}")
    values = ["rome", "oslo", None, "lima"]
    files, before = LogFiles(run, log), None
    for number, count in enumerate((2, 2, 4)):
        table = pa.table({"value": values[:count], "id": list(range(count)), "count": [number] * count})
        # Of two engines only one marks columns that have no nulls.
        table = table.cast(table.schema.set(1, pa.field("id", pa.int64(), nullable=count > 2)))
        pq.write_table(table, log / "vocabulary/city.parquet")
        changed = files.changed(before)
        assert set(changed.contents) == [
            {"log.calibration.json", "vocabulary.city.parquet"}, set(), {"vocabulary.city.parquet"}
        ][number]  # fmt: skip
        folder = delta_path(tmp_path, number)
        folder.mkdir()
        for name, content in changed.contents.items():
            (folder / name).write_bytes(content)
        before = DeltaManifest(
            "a", number, number == 0, "", "run", "", number, "fp32", "safetensors", "", (), (), "",
            changed.log, changed.vocabularies, {n: DeltaFile(len(c), sha(c)) for n, c in changed.contents.items()},
        )  # fmt: skip
        if number == 2:
            assert pq.read_table(folder / "vocabulary.city.parquet")["value"].to_pylist() == [None, "lima"]
        for _ in range(2):  # As after an interruption.
            write_vocabulary(copy / "vocabulary/city.parquet", Delta(folder, before, ""))
        assert pq.read_table(copy / "vocabulary/city.parquet")["value"].to_pylist() == values[:count]
    path, status = log / "vocabulary/city.parquet", (log / "vocabulary/city.parquet").stat()
    with path.open("r+b") as file:
        file.write(b"not Parquet")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    # A file that has not changed since it was read is not read again.
    assert not files.changed(before).contents
    with pytest.raises(OSError, match="header"):
        LogFiles(run, log).changed(before)
    pq.write_table(
        pa.table({"value": ["bonn", "oslo"], "id": [0, 1], "count": [1, 1]}), copy / "vocabulary/city.parquet"
    )
    with pytest.raises(DamagedError, match="does not have the 2 entries that delta 2 adds to"):
        write_vocabulary(copy / "vocabulary/city.parquet", Delta(folder, before, ""))
