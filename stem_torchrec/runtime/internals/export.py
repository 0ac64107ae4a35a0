"""Private parts of torch for exported programs: sizes of 0 and 1, and AOTInductor; both checked with torch 2.13."""

import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch._inductor import aoti_compile_and_package, aoti_load_package
from torch.export import ExportedProgram
from torch.fx.experimental import _config


def any_sizes() -> AbstractContextManager[None]:
    """A block in which torch.export makes no special case of a size of 0 or 1, which would refuse other sizes."""
    config: Any = _config  # torch installs `patch` in it at run time.
    return config.patch(backed_size_oblivious=True)


def compile_for_this_machine(program: ExportedProgram, file: str) -> None:
    """Writes a program as a package of AOTInductor; takes a C++ compiler one to two minutes."""
    with warnings.catch_warnings():
        # torch 2.13 copies a tree of its own in a way that it wants to be no longer used.
        warnings.simplefilter("ignore", FutureWarning)
        aoti_compile_and_package(program, package_path=file)


def load_exported(file: str) -> Callable[..., Any]:
    """The program in a file of torch.export."""
    module: Any = torch.export.load(file).module(check_guards=False)
    # Comparing the sizes of some hundred inputs with each other, by sympy, takes longer than a row; ours fit.
    module.validate_inputs = False
    return module


def load_compiled(file: str) -> Callable[..., Any]:
    """The program in a package of AOTInductor."""
    return aoti_load_package(file)
