"""The program of a bundle: as torch.export wrote it, or as AOTInductor compiled it for this machine."""

import hashlib
import platform
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from stem_torchrec.runtime.errors import DamagedError, UserError, reason_of
from stem_torchrec.runtime.internals.export import load_compiled, load_exported
from stem_torchrec.serving.manifest import COMPILED_FILE, PROGRAM_FILE, Machine, Manifest

Program = Callable[[Tensor, list[Tensor], list[Tensor], list[Tensor], list[Tensor]], Tensor]
"""Takes dense features, values, offsets, weights and tables, and returns probabilities; see ServedModel.forward."""


def load_program(folder: Path, manifest: Manifest, *, compiled: bool | None = None) -> Program:
    """The program of a bundle.

    Args:
        folder: the bundle.
        manifest: of the bundle.
        compiled: whether to load the compiled one; by default if the bundle has one for this machine.

    Raises UserError for a compiled program that is missing or of another machine, and DamagedError for one that this
    torch cannot load.
    """
    if compiled and manifest.compiled is None:
        raise UserError(f"{folder} has no compiled program; export it with --compile.")
    if compiled and manifest.compiled != this_machine():
        raise UserError(
            f"{folder} is compiled for {manifest.compiled}, and this is {this_machine()}; export it here with "
            "--compile, or load it without."
        )
    fits = manifest.compiled == this_machine()
    file = folder / (COMPILED_FILE if (fits if compiled is None else compiled) else PROGRAM_FILE)
    try:
        if file.name == COMPILED_FILE:
            return load_compiled(str(file))
        return load_exported(str(file))
    # A program of another version of torch makes its reader raise almost any error.
    except Exception as error:
        exported = manifest.versions.get("torch", "another torch")
        raise DamagedError(
            f"{file} cannot be loaded by torch {torch.__version__} ({reason_of(error)[:200]}); it was exported by "
            f"torch {exported}."
        ) from error


def this_machine() -> Machine:
    """What a compiled program must have been compiled for to run here."""
    file = Path("/proc/cpuinfo")
    return machine_of(file.read_text() if file.exists() else "")


def machine_of(cpuinfo: str) -> Machine:
    """This machine, if its processors are those of a /proc/cpuinfo.

    The compiler takes every instruction that the processor has, so one with the same vector instructions and fewer
    others would end the process.

    Example::

        machine_of("model name: Xeon\\nflags: avx512f sse2\\n").processor  # "x86_64 AVX512 1b9d6bcd8f3a"
    """
    entries = [line.partition(":") for line in cpuinfo.splitlines()]
    # Not all cores of a processor need have the same.
    flags = {" ".join(sorted(value.split())) for key, _, value in entries if key.strip() in ("flags", "Features")}
    instructions = hashlib.sha256("\n".join(sorted(flags)).encode()).hexdigest()[:12]
    name = next((value.strip() for key, _, value in entries if key.strip() == "model name"), "")
    vectors = torch.backends.cpu.get_cpu_capability()
    return Machine(torch.__version__, f"{platform.machine()} {vectors} {instructions}", name)
