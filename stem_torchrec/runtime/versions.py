"""Checks that the installed torch, fbgemm and torchrec fit together; others fail with undefined symbols.

Releases fit by number: fbgemm 1.X needs torch 2.(X + 5) and torchrec 1.X. The last number is free, as a series need not
begin with 0: torchrec 1.6 has 1.6.1 only. Nightly and source builds have no such numbers, so they pass with a warning.
Nothing is imported: importing an fbgemm that does not fit is what fails.
"""

import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from stem_torchrec.runtime.internals.build_files import fbgemm_has_gpu, torch_has_gpu

_CPU_FBGEMM, _GPU_FBGEMM = "fbgemm-gpu-cpu", "fbgemm-gpu"
_DISTRIBUTIONS: Mapping[str, Sequence[str]] = {
    "torch": ("torch",),
    "fbgemm_gpu": (_GPU_FBGEMM, _CPU_FBGEMM, "fbgemm-gpu-nightly", "fbgemm-gpu-nightly-cpu"),
    "torchrec": ("torchrec", "torchrec-nightly"),
}
"""Names under which each package is published."""
_RELEASE = re.compile(r"(?P<major>\d+)\.(?P<minor>\d+)\.\d+(\+(cpu|cu\d+|rocm[\d.]+|xpu))?")


@dataclass(frozen=True)
class Build:
    """An installed build of torch, fbgemm or torchrec."""

    name: str
    """The distribution as pip knows it, or the folder of a build that pip does not know by a usual name."""
    version: str = ""
    """Empty for a build that has only a folder."""
    has_gpu: bool = False
    """Whether it has kernels for GPUs; False for torchrec, which has none."""

    @property
    def series(self) -> str | None:
        """The releases of fbgemm that it goes with, as 1.8; None for a nightly or source build."""
        release = _RELEASE.fullmatch(self.version)
        if release is None or "nightly" in self.name:
            return None
        major, minor = int(release["major"]), int(release["minor"])
        return f"1.{minor - 5}" if self.name == "torch" else f"{major}.{minor}"

    def __str__(self) -> str:
        return f"{self.name} {self.version}".rstrip()


Builds = Mapping[str, Sequence[Build]]
"""Installed builds by package: torch, fbgemm_gpu, torchrec. Two of one package overwrite each other's files."""


def check_versions() -> None:
    """Raises ImportError, in one sentence, if the installed builds do not fit; warns if that cannot be known."""
    builds = installed_builds()
    problem = version_problem(builds)
    if problem:
        raise ImportError(problem)
    note = version_warning(builds)
    if note:
        warnings.warn(note, stacklevel=2)


def version_problem(builds: Builds) -> str:
    """Names what is installed and what to install, in one sentence; empty if the builds fit or may fit.

    Neither fbgemm nor torchrec is needed to score bundles, so a machine may lack both.

    A CUDA build of torch takes both kinds of fbgemm, `fbgemm-gpu-cpu` for training on CPU; a CPU build takes only that.

    Example::

        builds = {"torch": [Build("torch", "2.13.0")], "fbgemm_gpu": [], "torchrec": [Build("torchrec", "1.8.0")]}
        version_problem(builds)
        # torch, fbgemm and torchrec do not fit together (installed: torch 2.13.0, fbgemm-gpu missing, torchrec 1.8.0;
        # torch is a CPU build); run: pip install --force-reinstall --no-deps fbgemm-gpu-cpu~=1.8.0 torchrec~=1.8.0
    """
    installed = ", ".join(
        ", ".join(map(str, builds[package])) or f"{usual[0]} missing" for package, usual in _DISTRIBUTIONS.items()
    )
    if not builds["torch"]:
        return f"stem_torchrec needs torch, fbgemm-gpu and torchrec, but found {installed}; run make install."
    if not builds["fbgemm_gpu"] and not builds["torchrec"]:
        return ""  # A machine that scores bundles needs neither.
    torch, kept = builds["torch"][0], _fbgemm_to_keep(builds)
    known = [build for name in _DISTRIBUTIONS for build in builds[name] if build.version]
    superfluous = [build.name for build in known if build not in (torch, kept, *builds["torchrec"][:1])]
    series = {build.series for build in known} - {None}
    if kept is not None and builds["torchrec"] and not superfluous and len(series) <= 1:
        return ""
    uninstall = f"pip uninstall -y {' '.join(superfluous)}; " if superfluous else ""
    fbgemm = _GPU_FBGEMM if torch.has_gpu and (kept is None or kept.has_gpu) else _CPU_FBGEMM
    install = f"pip install --force-reinstall --no-deps {fbgemm}~={torch.series}.0 torchrec~={torch.series}.0"
    if torch.series is None:
        install = f"make install, for releases, or install {fbgemm} and torchrec as they are built for this torch."
    return (
        f"torch, fbgemm and torchrec do not fit together (installed: {installed}; torch is "
        f"{'a CUDA' if torch.has_gpu else 'a CPU'} build); run: {uninstall}{install}"
    )


def version_warning(builds: Builds) -> str:
    """Names the builds that are not releases, in one sentence; empty if all are."""
    unknown = [str(build) for name in _DISTRIBUTIONS for build in builds[name] if build.series is None]
    if not unknown:
        return ""
    return (
        f"{', '.join(unknown)}: not a release, so nobody can tell whether torch, fbgemm and torchrec fit together; "
        "if importing one of them fails, install builds of the same day, or releases by make install."
    )


def missing_package(error: ModuleNotFoundError) -> str:
    """The fix for a machine that lacks torchrec or fbgemm, in one sentence; empty for what else is missing.

    Example::

        missing_package(ModuleNotFoundError("No module named 'torchrec'", name="torchrec"))
        # torchrec is not installed: this machine can score bundles and prepare logs; for other commands run: ...
    """
    package = (error.name or "").partition(".")[0]
    if package not in ("torchrec", "fbgemm_gpu") or find_spec(package) is not None:
        return ""
    torch = installed_builds()["torch"][0]
    fbgemm = _GPU_FBGEMM if torch.has_gpu else _CPU_FBGEMM
    fix = f"install {fbgemm} and torchrec as they are built for {torch}."
    if torch.series is not None:
        fix = f"run: pip install --no-deps {fbgemm}~={torch.series}.0 torchrec~={torch.series}.0"
    return f"{package} is not installed: this machine can score bundles and prepare logs; for other commands {fix}"


def installed_builds() -> dict[str, list[Build]]:
    """The builds of torch, fbgemm and torchrec that this interpreter would import."""
    return {package: _builds_of(package) for package in _DISTRIBUTIONS}


def fbgemm_has_cuda() -> bool:
    """Whether the installed fbgemm has CUDA kernels."""
    return any(build.has_gpu for build in _builds_of("fbgemm_gpu"))


def _fbgemm_to_keep(builds: Builds) -> Build | None:
    """The build of fbgemm that suits this torch best, if any can be loaded beside it."""
    has_gpu = builds["torch"][0].has_gpu
    loadable = [build for build in builds["fbgemm_gpu"] if has_gpu or not build.has_gpu]
    return max(loadable, key=lambda build: build.has_gpu, default=None)


def _builds_of(package: str) -> list[Build]:
    spec = find_spec(package)
    # A folder of that name beside the script, without an __init__.py, has no origin.
    folder = None if spec is None or spec.origin is None else Path(spec.origin).parent
    builds = []
    for name in _DISTRIBUTIONS[package]:
        try:
            builds.append(Build(name, version(name), has_gpu=_has_gpu(name, folder)))
        except PackageNotFoundError:
            continue
    if not builds and folder is not None:
        builds.append(Build(str(folder), has_gpu=_has_gpu(package, folder)))
    return builds


def _has_gpu(name: str, folder: Path | None) -> bool:
    if name in _DISTRIBUTIONS["fbgemm_gpu"]:
        return not name.endswith("cpu")
    if folder is None:
        return False
    return {"torch": torch_has_gpu, "fbgemm_gpu": fbgemm_has_gpu}.get(name, lambda _: False)(folder)
