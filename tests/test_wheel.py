"""What is installed works without the repository: the specs of public logs are in the wheel."""

import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from stem_torchrec.data.schema import load_schema
from stem_torchrec.preparation.specs.installed_specs import installed_specs

from kuairand_files import ROOT
from raw_logs.kuairand import write_kuairand

SPECS = {path.name for path in (ROOT / "datasets").glob("*.yaml")}


def test_the_build_puts_every_spec_into_the_wheel() -> None:
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    components = {"launch/components.py": "stem_torchrec_components.py"}
    assert wheel["force-include"] == components | {
        f"datasets/{name}": f"stem_torchrec/preparation/public_logs/{name}" for name in SPECS
    }
    assert set(installed_specs()) == {Path(name).stem for name in SPECS}


def test_every_extra_that_a_sentence_or_a_page_names_can_be_installed() -> None:
    folders = [ROOT / "stem_torchrec", ROOT / "docs"]
    texts = [path.read_text() for folder in folders for path in folder.rglob("*.*") if path.suffix in (".py", ".md")]
    named = set(re.findall(r"stem_torchrec\[([a-z0-9-]+)\]", " ".join(texts)))
    assert {"delta", "s3", "spark"} <= named
    assert named <= set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what is in the wheel."""
    pytest.importorskip("hatchling", reason="needs hatchling, which builds the wheel")
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


@pytest.mark.long
def test_torchx_has_the_components_of_the_wheel_beside_its_own(site: Path, tmp_path: Path) -> None:
    line = [sys.executable, "-m", "torchx.cli.main", "builtins"]
    variables = {**os.environ, "PYTHONPATH": str(site)}
    done = subprocess.run(line, cwd=tmp_path, env=variables, check=True, capture_output=True, text=True)
    listed = set(re.findall(r"\d+\. (\S+)", done.stdout))
    assert {"dist.ddp", *(f"stem.{name}" for name in ("train", "compare", "tune", "bench", "prepare"))} <= listed
    assert not [name for name in listed if name.startswith("stem._")]


@pytest.mark.long
def test_a_spec_of_the_wheel_prepares_a_log_in_a_folder_without_the_repository(site: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    assert {path.name for path in (site / "stem_torchrec/preparation/public_logs").iterdir()} == SPECS
    work.mkdir()
    write_kuairand(work, 3000)
    code = "import stem_torchrec.prepare as prepare; print(prepare.__file__); prepare.main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "kuairand_pure", "--set", f"raw={work}", "--out", "log"],
        cwd=work,
        env={**os.environ, "PYTHONPATH": str(site)},
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout.startswith(str(site))
    assert load_schema(str(work / "log")).labels == ("long_view", "is_like")
