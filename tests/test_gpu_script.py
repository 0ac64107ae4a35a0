"""benchmarks/gpu.sh: what it refuses, what it reports of a section that fails or is cut off, and a whole dry run."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from studies.gpu_report import LOG, REPORT, begin, end, judge_tests, start

ROOT = Path(__file__).parent.parent
SECTIONS = ("tests", "contest", "peak", "sweep", "planner")
MOST_FILES, MOST_BYTES = 8, 16 * 2**20
"""What a machine with a GPU gives back."""


def gpu_sh(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if name not in ("DEVICE", "LIMITS")}
    environment = inherited | {"PYTHON": sys.executable, "CUDA_VISIBLE_DEVICES": ""} | environment
    line = [str(ROOT / "benchmarks/gpu.sh"), *arguments]
    return subprocess.run(line, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("arguments", "device", "sentence"),
    [
        ((), "cpu", "say where the results go: benchmarks/gpu.sh OUT [SECTION...]."),
        (
            ("OUT", "tests", "contst"),
            "cpu",
            "there is no section 'contst'; there are tests contest peak sweep planner.",
        ),
        (("OUT",), "tpu", "DEVICE is 'tpu', but must be cuda or cpu."),
        (("OUT",), "cuda", "torch sees no GPU; DEVICE=cpu makes a dry run on CPU."),
    ],
)
def test_what_cannot_be_measured_is_refused_in_a_sentence(
    arguments: tuple[str, ...], device: str, sentence: str, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    result = gpu_sh(*(str(out) if each == "OUT" else each for each in arguments), DEVICE=device)
    assert (result.returncode, result.stdout, result.stderr) == (2, "", f"error: {sentence} [STEM-INPUT]\n")
    assert not out.exists()


def test_packages_that_are_missing_are_named(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')  # Without what is installed.
    python.chmod(0o755)
    result = gpu_sh(str(tmp_path / "out"), PYTHON=str(python))
    assert (result.returncode, result.stdout) == (2, "")
    assert re.fullmatch(
        r"error: this python has no numpy, pyarrow, pydantic, .*, xdist; docs/gpu.md lists what the machine needs. "
        r"\[STEM-INPUT\]\n",
        result.stderr,
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.long
def test_one_section_runs_by_itself(tmp_path: Path) -> None:
    # pytest reads the variables: of all GPU tests it runs one, which takes a second, in one process.
    options = {"PYTEST_ADDOPTS": "-k 'batches_of_all_sizes and fp32-12'", "PYTEST_XDIST_AUTO_NUM_WORKERS": "1"}
    result = gpu_sh(str(tmp_path), "tests", DEVICE="cpu", **options)
    assert result.returncode == 0, result.stdout + result.stderr + (tmp_path / LOG).read_text()
    assert "\n1 passed.\n" in (tmp_path / REPORT).read_text()
    assert {path.name for path in tmp_path.iterdir()} == {REPORT, LOG, "sections.json"}


@pytest.mark.long
def test_every_section_runs_even_if_those_before_have_failed(tmp_path: Path) -> None:
    python, out = tmp_path / "python", tmp_path / "out"
    python.write_text(
        f'#!/bin/bash\ncase $* in *gpu_report* | "- "*) exec {sys.executable} "$@" ;; esac\necho no: $*\nexit 3\n'
    )
    python.chmod(0o755)
    result = gpu_sh(str(out), DEVICE="cpu", PYTHON=str(python))
    assert result.returncode == 1
    sections = json.loads((out / "sections.json").read_text())["sections"]
    assert tuple(sections) == SECTIONS
    assert sections["tests"]["outcome"] == "failed with status 3: no test passed"
    assert sections["planner"]["outcome"] == "failed with status 3: it has left no report"
    assert "    no: " in (out / REPORT).read_text()
    assert re.search(r"^no: .*throughput.py --out contest --cases others ", (out / LOG).read_text(), re.MULTILINE)
    # The planner reads what the sweep has measured.
    (out / "sections.json").unlink()
    gpu_sh(str(out), "planner", DEVICE="cpu", PYTHON=str(python))
    assert list(json.loads((out / "sections.json").read_text())["sections"]) == ["sweep", "planner"]


@pytest.mark.long
def test_a_dry_run_passes_every_section_and_gives_back_few_small_files(tmp_path: Path) -> None:
    result = gpu_sh(str(tmp_path), DEVICE="cpu")
    log = (tmp_path / LOG).read_text()
    assert result.returncode == 0, result.stdout + result.stderr + log[-20_000:]
    sections = json.loads((tmp_path / "sections.json").read_text())["sections"]
    assert {name: section["outcome"] for name, section in sections.items()} == dict.fromkeys(SECTIONS, "passed")
    files = {path.name: path.stat().st_size for path in tmp_path.iterdir()}
    assert len(files) <= MOST_FILES
    assert max(files.values()) < MOST_BYTES
    assert {f"{name}.parquet" for name in SECTIONS[1:]} <= files.keys()
    report = (tmp_path / REPORT).read_text()
    for piece in (
        "samples/s of ours fp32 over dense fp32",
        "step as a share of the GEMM peak",
        "| packed ",
        "| after ",
    ):
        assert piece in report
    assert str(tmp_path) not in report
    assert "/tmp" not in report


def test_a_section_that_is_cut_off_has_failed_and_shows_what_it_has_measured(tmp_path: Path) -> None:
    out, folder = tmp_path / "out", tmp_path / "contest"
    folder.mkdir()
    start(out)
    begin(out, "contest", 110)
    assert "| contest   | has begun; if the script has ended, it was cut off |" in (out / REPORT).read_text()
    (folder / REPORT).write_text("# Throughput\n\n- machine: m\n\n| what |\n\n## others\n\n![plot](step_time.png)\n")
    (folder / "step_time.png").write_bytes(b"png")
    assert not end(out, "contest", 124, folder)
    report = (out / REPORT).read_text()
    assert "| contest   | cut off after 110 s |" in report
    assert "## contest\n\n| what |\n\n### others\n\n![plot](contest.png)\n" in report
    assert "machine: m" not in report
    assert (out / "contest.png").read_bytes() == b"png"
    begin(out, "peak", 30)
    assert not end(out, "peak", 137, tmp_path / "none")
    assert (out / REPORT).read_text().index("## contest") < (out / REPORT).read_text().index("## peak")


@pytest.mark.parametrize(
    ("status", "learns", "passed"), [("ok", "same", True), ("ok", "other", False), ("failed", "", False)]
)
def test_a_sweep_passes_only_if_all_cases_learn_the_same(
    status: str, learns: str, passed: bool, tmp_path: Path
) -> None:
    out, folder = tmp_path / "out", tmp_path / "sweep"
    folder.mkdir()
    start(out)
    begin(out, "sweep", 50)
    (folder / REPORT).write_text("# Sharding sweep\n\n- machine: m\n\n**Take a.**\n\n## How to read this\n\nlong\n")
    rows = [{"name": "a/b", "status": status, "learns": learns}, {"name": "c", "status": "left out", "learns": ""}]
    pq.write_table(pa.Table.from_pylist(rows), folder / "report.parquet")
    assert end(out, "sweep", 0, folder) == passed
    report = (out / REPORT).read_text()
    assert ("such as a/b" in report) != passed
    assert "long" not in report
    assert pq.read_table(out / "sweep.parquet").num_rows == 2


@pytest.mark.parametrize(
    ("line", "problem", "summary"),
    [
        (
            "[gw0] [ 50%] PASSED tests/test_gpu.py::test_a[x-1] \n[gw1] [100%] PASSED tests/test_gpu.py::test_b \n",
            "",
            "2 passed.",
        ),
        (
            "tests/test_gpu.py::test_a PASSED [ 50%]\ntests/test_gpu.py::test_b SKIPPED [100%]\n",
            "",
            "1 passed, 1 skipped.",
        ),
        (
            "[gw0] [ 50%] FAILED tests/test_gpu.py::test_a \nFAILED tests/test_gpu.py::test_a - assert 0\n",
            "1 tests failed",
            "1 failed.\n\n- tests/test_gpu.py::test_a - assert 0",
        ),
        ("[gw0] [ 50%] SKIPPED tests/test_gpu.py::test_a \n", "no test passed", "1 skipped."),
        ("Segmentation fault\n", "no test passed", "no test ended."),
    ],
)
def test_tests_are_judged_by_the_lines_of_those_that_ended(line: str, problem: str, summary: str) -> None:
    assert (judge_tests(line)[0], judge_tests(line)[1].strip()) == (problem, summary)


def test_results_of_other_versions_are_forgotten(tmp_path: Path) -> None:
    start(tmp_path)
    begin(tmp_path, "tests", 10)
    start(tmp_path)
    sections = tmp_path / "sections.json"
    content = json.loads(sections.read_text())
    assert list(content["sections"]) == ["tests"]
    sections.write_text(json.dumps(content | {"head": content["head"] | {"versions": "torch 1"}}))
    start(tmp_path)
    assert json.loads(sections.read_text())["sections"] == {}
    assert "tests" not in (tmp_path / REPORT).read_text()
