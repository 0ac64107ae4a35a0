"""A bundle compiled for this machine scores as its exported program does, in Python and in C++."""

import json
import shutil
import subprocess
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from stem_torchrec.preparation.transforms import apply_transforms
from stem_torchrec.runtime.errors import UserError
from stem_torchrec.serving.bundle import Bundle, load_bundle
from stem_torchrec.serving.inputs import to_inputs
from stem_torchrec.serving.manifest import TablePrecision

from bundles import ROUNDING, bundle_of, raw_of_valid, scores

pytestmark = pytest.mark.long
ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module", params=["fp32", "int8"])
def compiled(stem_bundle: Path, request: pytest.FixtureRequest) -> Bundle:
    """Of the run `stem`."""
    precision: TablePrecision = request.param
    return bundle_of(stem_bundle, "stem", tables=precision, compile=True)


def test_a_compiled_bundle_scores_the_same_and_is_for_one_machine(compiled: Bundle, tmp_path: Path) -> None:
    rows = raw_of_valid()
    plain = scores(load_bundle(compiled.folder, compiled=False).score(rows))
    for n in (1, 2, 100):
        np.testing.assert_allclose(scores(compiled.score(rows.slice(0, n))), plain[:n], rtol=0, atol=ROUNDING)
    # By default it is the compiled program that scored.
    assert type(compiled.program) is type(load_bundle(compiled.folder, compiled=True).program)
    assert type(compiled.program) is not type(load_bundle(compiled.folder, compiled=False).program)
    elsewhere = tmp_path / "bundle"
    shutil.copytree(compiled.folder, elsewhere)
    manifest = json.loads((elsewhere / "manifest.json").read_text())
    manifest["compiled"]["processor"] = "another"
    (elsewhere / "manifest.json").write_text(json.dumps(manifest))
    assert np.array_equal(scores(load_bundle(elsewhere).score(rows)), plain)
    with pytest.raises(UserError, match="is compiled for"):
        load_bundle(elsewhere, compiled=True)


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """examples/score.cpp, compiled as docs/serving.md says."""
    if shutil.which("g++") is None:
        pytest.skip("g++ compiles examples/score.cpp, and is not installed")
    file, libraries = tmp_path_factory.mktemp("cpp") / "score", Path(torch.__file__).parent
    page = (ROOT / "docs/serving.md").read_text()
    line = page[page.index("g++ ") : page.index("-o score") + len("-o score")]
    words = line.replace("$TORCH", str(libraries)).replace("\\\n", "").split()
    words[words.index("examples/score.cpp")], words[-1] = str(ROOT / "examples/score.cpp"), str(file)
    subprocess.run(words, check=True)
    return file


def test_the_same_bundle_scores_the_same_in_cpp(compiled: Bundle, program: Path) -> None:
    rows = raw_of_valid()
    done = subprocess.run(
        [program, compiled.folder], input=as_lines(compiled, rows), text=True, capture_output=True, check=True
    )
    scored = np.array([line.split("\t") for line in done.stdout.splitlines()], np.float32)
    np.testing.assert_allclose(scored, scores(compiled.score(rows)), rtol=0, atol=ROUNDING)


def as_lines(bundle: Bundle, rows: pa.Table) -> str:
    """Raw rows in the format that score.cpp reads."""
    assert bundle.transforms is not None
    columns, (batch,) = bundle.columns, rows.combine_chunks().to_batches()
    inputs = to_inputs(apply_transforms(bundle.transforms, batch), columns)
    weights = dict(zip(columns.weights, inputs.weights, strict=True))
    fields = [[",".join(map(repr, row)) for row in inputs.dense.tolist()]]
    for name, values, offsets in zip(columns.sparse, inputs.values, inputs.offsets, strict=True):
        ids = list(map(str, values.tolist()))
        if name in weights:
            ids = [f"{id_}:{weight!r}" for id_, weight in zip(ids, weights[name].tolist(), strict=True)]
        fields.append([",".join(ids[start:stop]) for start, stop in pairwise(offsets.tolist())])
    names = ["dense", *(f"{name}:" if name in weights else name for name in columns.sparse)]
    return "".join("\t".join(line) + "\n" for line in [names, *zip(*fields, strict=True)])
