"""How much memory this host has, and how this process holds it: memory that one step frees, the next one reuses."""

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stem_torchrec.runtime.cgroups import cgroup_values
from stem_torchrec.runtime.errors import AllocationError

# Parameters of mallopt(3).
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_OF_TORCH = ("DefaultCPUAllocator", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
"""What a RuntimeError of torch says where an allocation failed outside of its own allocator for GPUs."""


def keep_freed_memory() -> None:
    """Makes glibc's malloc keep freed memory; does nothing under other C libraries.

    By default glibc returns every block above 32 MiB to the kernel, and at B=4096 the activations of 8 experts of width
    512 are 64 MiB: every step got them anew, page by page, in 44,000 page faults that took a sixth of its time. The
    process keeps the memory of its largest step.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, -1)


def host_memory(root: Path = Path("/")) -> int:
    """Bytes of memory that the processes of this host or container may use together.

    It is the host's memory, or less if a control group limits it, such as that of a container or a SLURM job.

    Args:
        root: where /proc and /sys are.
    """
    limits = cgroup_values("memory.max", root=root)
    limits += cgroup_values("memory.limit_in_bytes", controller="memory", root=root)
    installed = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([installed, *(int(limit) for limit in limits if limit != "max")])


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation has failed: by Python, NumPy or Arrow, or by torch on CPU or GPU."""
    # torch's own class for GPUs has no name that can be imported without torch.
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or (isinstance(error, RuntimeError) and any(text in str(error) for text in _OF_TORCH))
    )


@contextmanager
def naming_lack_of_memory() -> Iterator[None]:
    """Raises AllocationError, with one sentence, where an allocation fails in the block.

    Example::

        with naming_lack_of_memory():
            torch.empty(2**60)
        # AllocationError: the memory does not suffice ([enforce fail at alloc_cpu.cpp:127] ...); give smaller sizes.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise AllocationError(
            f"the memory does not suffice ({lines[0][:300].rstrip('.')}); give smaller sizes."
        ) from error
