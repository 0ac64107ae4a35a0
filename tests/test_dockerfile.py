"""The Dockerfile: its steps, taken in an environment of this machine, give commands that run."""

import fnmatch
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from dataclasses import dataclass
from pathlib import Path

import pytest

from stem_torchrec.server.options import PACKAGES

ROOT = Path(__file__).parents[1]
ARGUMENTS = {"DEVICE": "cpu"}


def instructions() -> list[tuple[str, str]]:
    """The instructions of the last stage, with their arguments filled in."""
    text = re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    lines = [line.partition(" ")[::2] for line in text.splitlines() if line]
    last = max(number for number, (name, _) in enumerate(lines) if name == "FROM")
    return [(name, re.sub(r"\$\{(\w+)\}", lambda word: ARGUMENTS[word[1]], rest)) for name, rest in lines[last:]]


def ignored() -> list[str]:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def is_ignored(path: Path) -> bool:
    """Whether .dockerignore keeps a file of the repository from the build, by itself or with a folder around it."""
    for pattern in ignored():
        anywhere = pattern.removeprefix("**/")
        names = [str(each) for each in (path, *path.parents)] if anywhere == pattern else path.parts
        if any(fnmatch.fnmatch(name, anywhere) for name in names):
            return True
    return False


def sources() -> list[Path]:
    """The tracked and new files of the repository that the build sees."""
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, check=True, capture_output=True, text=True).stdout.splitlines()
    return [Path(name) for name in names if not is_ignored(Path(name)) and (ROOT / name).is_file()]


def copy(words: list[str], folder: Path) -> None:
    """COPY: files, folders with their contents, or all."""
    *origins, target = words
    for origin in origins:
        files = [path for path in sources() if origin == "." or path.is_relative_to(origin)]
        assert files, f"COPY {origin}: nothing to copy"
        for path in files:
            inside = path.name if str(path) == origin else path.relative_to(origin)
            (folder / target / inside).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / path, folder / target / inside)


def test_the_image_has_what_a_job_needs_and_no_tests() -> None:
    names = {str(path) for path in sources()}
    assert {"stem_torchrec/data/batch.py", "launch/run.py", ".torchxconfig", "benchmarks/sharding.py"} <= names
    assert not [name for name in names if name.startswith(("tests/", ".git", "benchmarks/results/"))]


@pytest.mark.parametrize(
    "name",
    ["bundles/adult/model.pt2", "adult.data", "report.html", "shared/log/part.parquet", "mlruns/0/meta.yaml", ".env"],
)
def test_what_commands_leave_in_the_repository_stays_out_of_the_image(name: str) -> None:
    assert is_ignored(Path(name))


def test_the_image_names_the_extras_of_its_commands() -> None:
    # The packages of this environment would hide that one is missing.
    (extras,) = [found[1] for _, rest in instructions() if (found := re.search(r"--editable \"\.\[(.+?)\]", rest))]
    assert extras.split(",") == [ARGUMENTS["DEVICE"], "s3", "serve"]
    lines = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["serve"]
    # What stem-serve asks for before it starts.
    assert {line.partition(">=")[0] for line in lines} == set(PACKAGES)


@dataclass(frozen=True)
class Image:
    """What the steps have made: the folder of the repository, and commands and variables of the environment."""

    folder: Path
    scripts: Path
    variables: dict[str, str]

    def run(self, command: list[str], folder: Path) -> str:
        """Runs a command of the image in a folder, and returns what it prints."""
        line = [str(self.scripts / command[0]), *command[1:]]
        done = subprocess.run(line, cwd=folder, env=self.variables, text=True, capture_output=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Image:
    """The COPY and RUN steps, taken in an environment where pip finds the packages of this one and downloads none."""
    root = tmp_path_factory.mktemp("image")
    folder, environment = root / "stem_torchrec", root / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True)
    (site,) = environment.glob("lib/*/site-packages")
    (site / "packages.pth").write_text(sysconfig.get_path("purelib"))
    (environment / "bin/pip").write_text(f'#!/bin/bash\nexec {environment}/bin/python -m pip "$@"\n')
    (environment / "bin/pip").chmod(0o755)
    variables = {
        **{name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        "PATH": f"{environment}/bin:{os.environ['PATH']}",
        "PIP_NO_INDEX": "1",
        "PIP_NO_BUILD_ISOLATION": "0",  # pip's name for: no isolation.
    }
    for name, rest in instructions():
        match name:
            case "WORKDIR":
                folder.mkdir()
            case "COPY":
                copy(rest.split(), folder)
            case "RUN":
                done = subprocess.run(["bash", "-c", rest], cwd=folder, env=variables, text=True, capture_output=True)
                assert done.returncode == 0, done.stdout + done.stderr
    return Image(folder, environment / "bin", variables)


def test_the_steps_of_the_dockerfile_give_a_command_that_prints_its_help(image: Image, tmp_path: Path) -> None:
    (command,) = [json.loads(rest) for name, rest in instructions() if name == "CMD"]
    assert "Trains a model, STEM by default." in image.run(command, tmp_path)


def test_the_image_runs_the_files_of_the_repository(image: Image, tmp_path: Path) -> None:
    code = "from importlib.util import find_spec as find; print(find('stem_torchrec').origin)"
    assert image.run(["python", "-c", code], tmp_path) == f"{image.folder}/stem_torchrec/__init__.py\n"


@pytest.mark.long
def test_the_image_trains(image: Image, tmp_path: Path) -> None:
    command = ["stem-train", "--recipe", "tiny", "--train.max-steps", "1", "--output-dir", str(tmp_path / "run")]
    assert "best evaluation" in image.run(command, tmp_path)
