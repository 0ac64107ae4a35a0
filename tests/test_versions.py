"""Which builds of torch, fbgemm and torchrec go together, and what importing the package loads."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from stem_torchrec.runtime.versions import Build, missing_package, version_problem, version_warning

pytestmark = pytest.mark.stack

FITTING = {"torch": "torch 2.13.0+cpu", "fbgemm_gpu": "fbgemm-gpu-cpu 1.8.0", "torchrec": "torchrec 1.8.0"}
CUDA = {"torch": "torch 2.13.0 cuda"}
GPU = "fbgemm-gpu 1.8.0 cuda"
OLDER = {"torch": "torch 2.11.0 cuda", "fbgemm_gpu": "fbgemm-gpu-cpu 1.6.0", "torchrec": "torchrec 1.6.1"}
NIGHTLY = {
    "torch": "torch 2.14.0.dev20261120+cpu",
    "fbgemm_gpu": "fbgemm-gpu-nightly-cpu 2026.11.20",
    "torchrec": "torchrec-nightly 2026.11.20",
}


def builds(changes: dict[str, str]) -> dict[str, list[Build]]:
    """From `name version`, several joined by commas, `cuda` behind those that have it."""
    installed: dict[str, list[Build]] = {}
    for package, text in {**FITTING, **changes}.items():
        words = [build.split() for build in text.split(", ") if build]
        installed[package] = [Build(name, number, has_gpu=bool(gpu)) for name, number, *gpu in words]
    return installed


@pytest.mark.parametrize(
    "changes",
    [
        {},
        CUDA,
        {**CUDA, "fbgemm_gpu": GPU},
        {"torch": "torch 2.13.0+cu129 cuda", "fbgemm_gpu": "fbgemm-gpu 1.8.0+cu129 cuda"},
        OLDER,
        # A machine that scores bundles has torch alone.
        {"fbgemm_gpu": "", "torchrec": ""},
        {**OLDER, "torch": "torch 2.11.0+cpu"},
        {**OLDER, "torch": "torch 2.11.0+cu130 cuda", "fbgemm_gpu": "fbgemm-gpu 1.6.0 cuda"},
    ],
)
def test_releases_that_fit_pass_without_a_word(changes: dict[str, str]) -> None:
    installed = builds(changes)
    assert (version_problem(installed), version_warning(installed)) == ("", "")


@pytest.mark.parametrize(
    ("changes", "advice"),
    [
        ({**CUDA, "fbgemm_gpu": f"{GPU}, fbgemm-gpu-cpu 1.8.0"}, "pip uninstall -y fbgemm-gpu-cpu;"),
        ({"torch": "torch 2.14.0"}, "fbgemm-gpu-cpu~=1.9.0 torchrec~=1.9.0"),
        ({"torchrec": "torchrec 1.7.0"}, "torchrec~=1.8.0"),
        # There is no torchrec 1.6.0.
        ({"torch": "torch 2.11.0"}, "--no-deps fbgemm-gpu-cpu~=1.6.0 torchrec~=1.6.0"),
        ({**OLDER, "fbgemm_gpu": ""}, "--no-deps fbgemm-gpu~=1.6.0 torchrec~=1.6.0"),
        ({**OLDER, "torchrec": "torchrec 1.8.0"}, "torchrec~=1.6.0"),
        # The series 0.8 was for torch 2.4.
        ({"fbgemm_gpu": "fbgemm-gpu-cpu 0.8.0", "torchrec": "torchrec 0.8.0"}, "fbgemm-gpu-cpu~=1.8.0"),
        ({"fbgemm_gpu": ""}, "fbgemm-gpu-cpu~=1.8.0"),
        ({**CUDA, "fbgemm_gpu": ""}, "fbgemm-gpu~=1.8.0"),
        ({"torchrec": ""}, "torchrec missing"),
        ({"fbgemm_gpu": f"{GPU}, fbgemm-gpu-cpu 1.8.0"}, "pip uninstall -y fbgemm-gpu;"),
        ({"fbgemm_gpu": GPU}, "pip uninstall -y fbgemm-gpu; pip install"),
        ({"torch": ""}, "make install"),
        # Beside a nightly build, what can be compared must still fit.
        ({"torchrec": "torchrec-nightly 2026.11.20", "torch": "torch 2.12.0"}, "fbgemm-gpu-cpu~=1.7.0"),
        ({**NIGHTLY, "fbgemm_gpu": "fbgemm-gpu-nightly 2026.11.20 cuda"}, "pip uninstall -y fbgemm-gpu-nightly;"),
        ({**NIGHTLY, "torchrec": ""}, "torchrec as they are built for this torch"),
        ({**NIGHTLY, "torchrec": "torchrec 1.8.0, torchrec-nightly 2026.11.20"}, "-y torchrec-nightly;"),
    ],
)
def test_builds_that_do_not_fit_are_one_sentence_with_the_command_that_mends_it(
    changes: dict[str, str], advice: str
) -> None:
    problem = version_problem(builds(changes))
    assert advice in problem
    assert "\n" not in problem


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        (NIGHTLY, ["torch 2.14.0.dev20261120", "fbgemm-gpu-nightly-cpu 2026.11.20", "torchrec-nightly 2026.11.20"]),
        # The names of releases, as download.pytorch.org has nightly builds.
        ({**NIGHTLY, "fbgemm_gpu": "fbgemm-gpu-cpu 1.9.0.dev20261120"}, ["fbgemm-gpu-cpu 1.9.0.dev20261120"]),
        ({**CUDA, "fbgemm_gpu": "fbgemm-gpu-nightly 2026.6.11 cuda"}, ["fbgemm-gpu-nightly 2026.6.11"]),
        ({"torch": "torch 2.13.0a0+gitcf30153"}, ["torch 2.13.0a0+gitcf30153"]),
        ({"torchrec": "torchrec 1.9.0.dev20261120"}, ["torchrec 1.9.0.dev20261120"]),
    ],
)
def test_nightly_builds_pass_with_a_warning_that_names_them(changes: dict[str, str], named: list[str]) -> None:
    installed = builds(changes)
    assert version_problem(installed) == ""
    assert all(name in version_warning(installed) for name in named)


def test_a_source_build_under_another_name_is_not_missing(tmp_path: Path) -> None:
    for package in ("torch", "torchrec", "fbgemm_gpu/docs"):
        (tmp_path / package).mkdir(parents=True)
        (tmp_path / package.split("/")[0] / "__init__.py").touch()
    (tmp_path / "torch" / "version.py").write_text("__version__ = '2.13.0a0'\ncuda: Optional[str] = '13.0'\n")
    target = tmp_path / "fbgemm_gpu" / "docs" / "target.default.json.py"
    code = """
import sys, json
sys.path.append(sys.argv.pop())
from stem_torchrec.runtime.versions import check_versions, fbgemm_has_cuda
check_versions()
print(json.dumps(fbgemm_has_cuda()))
"""
    root = Path(__file__).parents[1]
    for variant in ("cpu", "cuda"):
        target.write_text(json.dumps({"variant": variant}))
        # -S leaves out the environment's packages.
        command = [sys.executable, "-S", "-c", code, str(tmp_path)]
        result = subprocess.run(command, text=True, capture_output=True, cwd=root, env={"PYTHONPATH": str(root)})
        assert result.returncode == 0, result.stderr
        assert json.loads(result.stdout) == (variant == "cuda")
        assert (
            f"UserWarning: {tmp_path / 'torch'}, {tmp_path / 'fbgemm_gpu'}, {tmp_path / 'torchrec'}: not a"
            in result.stderr
        )


def test_a_package_that_is_there_is_not_called_missing() -> None:
    # As FBGEMM's own imports fail; test_bundle.py hides the packages.
    assert missing_package(ModuleNotFoundError(name="fbgemm_gpu.split_embedding_codegen")) == ""
    assert missing_package(ModuleNotFoundError(name="optuna")) == ""


HEAVY = ("torch", "torchrec", "fbgemm_gpu", "pandas", "pyarrow", "numpy")


def test_importing_the_package_loads_no_heavy_library() -> None:
    code = f"import sys, stem_torchrec; print([name for name in {HEAVY} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True, check=True)
    assert result.stdout.strip() == "[]"
