"""Whether the installed torch, fbgemm and torchrec belong together; a wrong triple fails with undefined symbols."""

from importlib.metadata import PackageNotFoundError, distribution, version


def check_versions() -> None:
    """Raises ImportError, in one sentence, where torch, fbgemm and torchrec do not fit each other.

    fbgemm 1.X needs torch 2.(X + 5) and torchrec 1.X, and beside a CPU torch it must be fbgemm-gpu-cpu; beside a
    CUDA torch either will do, fbgemm-gpu-cpu for training on CPU. Reads metadata only: importing the wrong fbgemm is
    what fails.
    """
    found = {name: _version(name) for name in ("torch", "fbgemm-gpu", "fbgemm-gpu-cpu", "torchrec")}
    problem = version_problem(found, cuda=_torch_has_cuda() if found["torch"] else False)
    if problem:
        raise ImportError(problem)


def version_problem(found: dict[str, str | None], *, cuda: bool) -> str:
    """One sentence that names what is installed and what to install, or nothing where the versions fit.

    Args:
        found: version of torch, fbgemm-gpu, fbgemm-gpu-cpu and torchrec; None where it is not installed.
        cuda: whether torch is a CUDA build.
    """
    installed = ", ".join(
        f"{name} {number or 'missing'}" for name, number in found.items() if number or "cpu" not in name
    )
    if not found["torch"]:
        return f"stem_torchrec needs torch, fbgemm-gpu and torchrec, but found {installed}; run make install."
    minor = int(found["torch"].split(".")[1]) - 5
    fbgemm, other = "fbgemm-gpu-cpu", "fbgemm-gpu"
    if cuda and not (found["fbgemm-gpu-cpu"] and not found["fbgemm-gpu"]):
        fbgemm, other = other, fbgemm
    fits = all((found[name] or "").startswith(f"1.{minor}.") for name in (fbgemm, "torchrec"))
    if fits and not found[other]:
        return ""
    remove = f"pip uninstall -y {other}; " if found[other] else ""
    build = "a CUDA" if cuda else "a CPU"
    return (
        f"torch, fbgemm and torchrec do not fit together (installed: {installed}; torch is {build} build); run: "
        f"{remove}pip install --force-reinstall --no-deps {fbgemm}==1.{minor}.0 torchrec==1.{minor}.0"
    )


def fbgemm_has_cuda() -> bool:
    """Whether the installed fbgemm has CUDA kernels."""
    return _version("fbgemm-gpu") is not None


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _torch_has_cuda() -> bool:
    """Reads torch/version.py, as importing torch for it costs seconds."""
    for file in distribution("torch").files or []:
        if str(file) == "torch/version.py":
            return "cuda: Optional[str] = None" not in file.read_text()
    return False
