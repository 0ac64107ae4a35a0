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


@pytest.mark.long
def test_a_spec_of_the_wheel_prepares_a_log_in_a_folder_without_the_repository(tmp_path: Path) -> None:
    pytest.importorskip("hatchling", reason="needs hatchling, which builds the wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    site, work = tmp_path / "site", tmp_path / "work"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
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
